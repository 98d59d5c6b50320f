"""A model that can be asked, and what it reads and writes with: from a run, or from a folder of Hugging Face's kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic.actors.anchors import Held
from elastic.actors.job import load_corpus
from elastic.errors import ConfigError
from elastic.models.held import kept, newest, of_round, peers_of
from elastic.registry import OPEN_FOLDER, load

SIGN = "config.json"
"""A folder with this file is one of Hugging Face's kind."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A model and its tokenizer."""

    model: Any
    """On the CPU; see `model_zoo.llama.Llama` for what it does."""
    tokenizer: Any
    """`encode(text)` gives an array of tokens, `decode(tokens)` text; they raise ValueError."""
    ends: frozenset[int]
    """Tokens with which a text ends; none, of a run."""
    origin: str
    """What it is, for people."""
    held: Held | None = None
    """Whose model it is, if it is a run's."""


def open_model(where: Path, run_file: Path | None = None, round_: int | None = None) -> Opened:
    """The model of a folder that `elastic export` or `transformers` wrote, or of an anchor file that a peer keeps; or a
    run's newest, see `held.peers_of`.

    Args:
        where: such a folder, or a run's.
        run_file: of that run, for folders without one.
        round_: of a run, the model that this round starts from, instead of the newest.

    Raises:
        ConfigError: there is none, or a folder that is not as it should be.
        StateError: the run's is damaged.
    """
    if (where / SIGN).is_file():
        if round_ is not None:
            raise ConfigError(f"--round {round_}: {where} holds one model, not a run")
        return _of_folder(where)
    if round_ is None:
        held = kept(where, run_file) or newest(peers_of(where, run_file), where)
    else:
        held = of_round(peers_of(where, run_file), round_)
    text = f"run {held.config.shared.run}, before round {held.round}, anchor {held.digest[:12]}"
    corpus = load_corpus(held.config)
    return Opened(held.model(), corpus.tokenizer, corpus.ends, text, held)


def _of_folder(where: Path) -> Opened:
    try:
        found = load(OPEN_FOLDER)(where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Opened(found.model, found.tokenizer, found.ends, f"folder {where}")
