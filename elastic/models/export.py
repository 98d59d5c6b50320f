"""A run's model as a folder that Hugging Face `transformers` opens."""

from pathlib import Path

from elastic.actors.anchors import Held
from elastic.actors.job import load_corpus
from elastic.errors import ConfigError
from elastic.models.card import card
from elastic.models.held import newest, of_round, peers_of
from elastic.registry import WRITE_FOLDER, load


def export(where: Path, out: Path, round_: int | None, dtype: str, run_file: Path | None) -> Held:
    """Write it; see `elastic export`. Gives what was written.

    Raises:
        ConfigError: there is no model, it is none of the zoo, or `out` cannot be written.
        StateError: the run's records are damaged.
    """
    configs = peers_of(where, run_file)
    held = newest(configs, where) if round_ is None else of_round(configs, round_)
    model, corpus = held.model(), load_corpus(held.config)
    text = card(held, configs, sum(param.numel() for param in model.parameters()))
    try:
        load(WRITE_FOLDER)(model, out, corpus.tokenizer.to_json(), text, dtype, corpus.ends)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{error.filename or out}: {error.strerror}") from error
    return held
