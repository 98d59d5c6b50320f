"""The anchor of a run as it lies on disk, and the model that it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic.actors.job import layout, load_corpus
from elastic.config import RunConfig
from elastic.errors import MalformedError, StateError
from elastic.messages import Digest, RoundIndex
from elastic.registry import build
from elastic.reports import fits

if TYPE_CHECKING:
    from torch import Tensor

    from elastic.evals.subject import Subject

HELD_OUT_TOKENS = 2**18
"""More of a large corpus would not make bits per byte more exact than they need to be."""


@dataclass(frozen=True, slots=True)
class Held:
    """An anchor."""

    config: RunConfig
    """Of a peer that has it."""
    round: RoundIndex
    """The round that starts from it."""
    digest: Digest
    tensors: dict[str, Tensor]

    def model(self) -> Any:
        """The run's model with these params, which it shares."""
        import torch

        with torch.device("meta"):
            model = build("model", self.config.shared.model)
        model.load_state_dict({name: self.tensors[name] for name, _ in model.named_parameters()}, assign=True)
        return model


def read_anchor(config: RunConfig, round_: RoundIndex, digest: Digest | None, path: Path) -> Held:
    """The anchor in a file, checked against its digest; None: against the part of it that the file's name says.

    Raises:
        StateError: the file is damaged, or of another model than the run file's.
        OSError: it cannot be read.
    """
    from elastic.train.outer import MOMENTUM
    from elastic.wire.dense import StateLayout
    from elastic.wire.tree import Table

    like = layout(config)
    if config.shared.outer.nesterov:
        like |= {MOMENTUM + name: meta_tensor for name, meta_tensor in like.items()}
    found = Table.of_file(path).digest
    if not (fits(path.name, found) if digest is None else found == digest):
        where = "its name" if digest is None else "the run"
        raise StateError(f"{path}: is damaged: its bytes have another digest than {where} says")
    try:
        tensors = StateLayout.of(like).read(path)
    except MalformedError as error:
        raise StateError(f"{path}: {error}; is it the run file of that run?") from error
    return Held(config, round_, found, tensors)


def subject_of(held: Held) -> Subject:
    """The model, to be evaluated on the run's held-out text, as many tokens at a time as it is trained on.

    Raises:
        ElasticError: the run's text is not here, or nothing of it is held out.
    """
    from elastic.evals.subject import Subject, held_out_text

    shared, corpus = held.config.shared, load_corpus(held.config)
    text = held_out_text(corpus.held_out_rows(HELD_OUT_TOKENS), corpus.tokenizer, corpus.ends)
    return Subject(held.model(), corpus.tokenizer, corpus.ends, shared.inner.sequence_length, text)
