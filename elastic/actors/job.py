"""What a trainer's worker is told, the text it trains on, the shapes of the model. No Ray: drivers read this too."""

from dataclasses import dataclass
from typing import Any

from elastic.config import RunConfig
from elastic.errors import MissingCorpusError
from elastic.messages import RoundPlan
from elastic.registry import CORPUS, build, load
from elastic.schedule.assignment import assigned_sequences, num_train_sequences


@dataclass(frozen=True, slots=True)
class Job:
    """Whose worker it is, and the run file."""

    actor: str
    namespace: str
    config: RunConfig


def load_corpus(config: RunConfig) -> Any:
    """The tokens of the run.

    Raises:
        MissingCorpusError: no such text, or another text than the run's.
    """
    data, local = config.shared.data, config.local
    try:
        return load(CORPUS)(
            data.corpus,
            local.corpus,
            data.sha256,
            data.tokenizer,
            data.vocab_size,
            local.state_dir / "corpus",
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise MissingCorpusError(f"{where}{error.strerror or error}; can local.state_dir be written?") from error
    except ValueError as error:
        raise MissingCorpusError(str(error)) from error


def assigner(config: RunConfig, num_tokens: int) -> Any:
    """Plan → ids of the sequences this peer trains on in that round."""
    shared = config.shared
    total = num_train_sequences(num_tokens, shared.data.held_out, shared.inner.sequence_length)

    def assign(plan: RoundPlan) -> Any:
        assert plan.slot is not None
        count = plan.inner_steps * shared.inner.batch_size
        return assigned_sequences(total, plan.seed, plan.run, plan.round, plan.slot, count, len(plan.roster))

    return assign


def layout(config: RunConfig) -> dict[str, Any]:
    """Parameter name → meta tensor: shapes without memory."""
    import torch  # seconds that a driver which never asks need not spend

    with torch.device("meta"):
        model = build("model", config.shared.model)
    return dict(model.named_parameters())


def fp32_bytes(config: RunConfig) -> int:
    """Bytes of the run's model in fp32, which is a dense pseudo-gradient too."""
    return sum(4 * meta.numel() for meta in layout(config).values())
