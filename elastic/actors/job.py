"""What a trainer's worker is told, the text it trains on, the shapes of the model. No Ray: drivers read this too."""

from dataclasses import dataclass
from typing import Any

from elastic.config import RunConfig
from elastic.data.corpus import Corpus
from elastic.data.dealing import dealt
from elastic.data.opening import open_corpus
from elastic.errors import MissingCorpusError
from elastic.messages import RoundPlan
from elastic.registry import build
from elastic.schedule.mixture import Deal


@dataclass(frozen=True, slots=True)
class Job:
    """Whose worker it is, and the run file."""

    actor: str
    namespace: str
    config: RunConfig


def load_corpus(config: RunConfig) -> Corpus:
    """The tokens of the run; see `elastic.data.opening`."""
    return open_corpus(config)


def assigner(config: RunConfig, corpus: Corpus) -> Any:
    """Plan → numbers of the sequences this peer trains on in that round.

    Raises:
        MissingCorpusError: a source has not one.
    """
    inner = config.shared.inner
    try:
        corpus.sizes(inner.sequence_length)
    except ValueError as error:
        raise MissingCorpusError(f"{error}: take more text, or lower shared.inner.sequence_length") from error

    def assign(plan: RoundPlan) -> Any:
        assert plan.slot is not None
        deal = Deal(plan.seed, plan.run, plan.round, len(plan.roster), config.shared.data.block)
        return dealt(config, corpus, deal, plan.slot, plan.inner_steps * inner.batch_size)

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
