"""From a run file to the run's tokens: a text, or prepared sources wherever they lie."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from elastic.config import RunConfig
from elastic.config_data import SourceConfig
from elastic.data.cache import Cache
from elastic.data.corpus import Corpus, Source, of_text
from elastic.data.places import Place, place_of
from elastic.errors import MissingCorpusError
from elastic.registry import CORPUS, READ_INDEX, ROW, load
from elastic.state.files import write_durably

INDEX, TOKENIZER = "index.json", "tokenizer.json"
MAX_BYTES = 2**28
"""Of either."""
GB = 1_000_000_000


def open_corpus(config: RunConfig) -> Corpus:
    """The run's tokens. Of sources only indexes and the tokenizer are read; shards come when they are needed.

    Raises:
        MissingCorpusError: something is not there, or is not what the run trains on.
        FetchError: it lies elsewhere, and did not come.
        ConfigError: a place in `local.data.sources` is none.
        StateError: there is no space for what is kept of it.
    """
    try:
        return _mixture(config) if config.shared.data.sources else _text(config)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise MissingCorpusError(f"{where}{error.strerror or error}; can local.state_dir be written?") from error
    except ValueError as error:
        raise MissingCorpusError(str(error)) from error


def is_remote(where: str) -> bool:
    """Whether a place is not on this machine's disks."""
    return "://" in where


def where_is(config: RunConfig, source: SourceConfig) -> str:
    """A source's place.

    Raises:
        MissingCorpusError: the run file does not say.
    """
    where = config.local.data.sources.get(source.name)
    if where is None:
        raise MissingCorpusError(
            f'local.data.sources does not say where "{source.name}" is: write {source.name} = "/folder", '
            '"https://…" or "s3://…" there'
        )
    return where


def cache_folder(config: RunConfig) -> Path:
    """Where fetched shards lie."""
    return config.local.data.cache or config.local.state_dir / "data"


def _text(config: RunConfig) -> Corpus:
    data, local = config.shared.data, config.local
    found = load(CORPUS)(
        data.corpus, local.corpus, data.sha256, data.tokenizer, data.vocab_size, local.state_dir / "corpus"
    )
    return of_text(found.tokens, data.held_out, found.tokenizer, found.vocab_size, found.sha256)


def _mixture(config: RunConfig) -> Corpus:
    data = config.shared.data
    opened = [OpenedSource(config, source) for source in data.sources]
    first = opened[0]
    for each in opened:
        index, name = each.index, each.source.name
        if (index.tokenizer, index.vocab_size) != (data.tokenizer, data.vocab_size):
            raise MissingCorpusError(
                f'source {name} has the tokenizer "{index.tokenizer}" of {index.vocab_size:,} tokens, and the run '
                f'"{data.tokenizer}" of {data.vocab_size:,}: set tokenizer and vocab_size in [shared.data] to the '
                "source's, or prepare it anew"
            )
        if index.tokenizer_sha256 != first.index.tokenizer_sha256:
            raise MissingCorpusError(
                f"the sources {first.source.name} and {name} were made with different tokenizers: prepare one of them "
                f"anew with --tokenizer and the other's {TOKENIZER}"
            )
    sources = tuple(Source(each.row(), each.index.held_out, each.source.name, each.source.index) for each in opened)
    ends = frozenset(each.index.end for each in opened if each.index.end is not None)
    return Corpus(sources, data.weights(1), first.tokenizer(), data.vocab_size, ends)


class OpenedSource:
    """One source: its index, and how to come by the rest."""

    def __init__(self, config: RunConfig, source: SourceConfig) -> None:
        self.source, self._config, self._where = source, config, where_is(config, source)
        self._place = place_for(self._where, config) if is_remote(self._where) else None
        data = self._file(INDEX, source.index)
        try:
            self.index: Any = load(READ_INDEX)(data)
        except ValueError as error:
            raise MissingCorpusError(f"source {source.name}: {self._where}: {error}") from error

    def tokenizer(self) -> Any:
        try:
            return self.index.tokenizer_of(self._file(TOKENIZER, self.index.tokenizer_sha256))
        except ValueError as error:
            raise MissingCorpusError(f"source {self.source.name}: {self._where}: {error}") from error

    def row(self) -> Any:
        if self._place is None:
            return load(ROW)(self.index, partial(self._open_here, Path(self._where)), lambda shards: None)
        local = self._config.local.data
        cache = Cache(self.index, self._place, cache_folder(self._config), int(local.cache_gb * GB), local.fetchers)
        return load(ROW)(self.index, cache.open, cache.want)

    def _open_here(self, folder: Path, shard: Any) -> Any:
        try:
            return self.index.open(folder / shard.name, shard)
        except (OSError, ValueError) as error:
            told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            raise MissingCorpusError(f"source {self.source.name}: {told}") from error

    def _file(self, name: str, sha256: str) -> bytes:
        """A small file, whose digest is known; one that lies elsewhere is fetched once."""
        if self._place is None:
            path = Path(self._where) / name
            try:
                data = _read(path)
            except OSError as error:
                raise MissingCorpusError(
                    f"source {self.source.name}: {path}: {error.strerror}; `elastic data prepare` writes it"
                ) from error
            if len(data) > MAX_BYTES:
                raise MissingCorpusError(f"source {self.source.name}: {path}: more than {MAX_BYTES} bytes")
            where = str(path)
        else:
            kept, where = cache_folder(self._config) / f"{sha256}.json", f"{self._where}/{name}"
            if kept.is_file() and hashlib.sha256(data := _read(kept)).hexdigest() == sha256:
                return data
            data = self._place.read(name, MAX_BYTES)
            if hashlib.sha256(data).hexdigest() == sha256:
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_durably(kept, data)
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise MissingCorpusError(
                f"source {self.source.name}: {where} has SHA-256 {found}, but this run trains on {sha256}"
            )
        return data


def place_for(url: str, config: RunConfig) -> Place:
    """What speaks to that place; nothing is asked of it yet.

    Raises:
        ConfigError: it is none, or a key cannot be read.
        MissingExtraError: S3 needs a library that is not installed.
    """
    if url.startswith("s3://"):
        open_s3 = load("elastic.data.bucket:open_s3")
        place: Place = open_s3(url, config.local.data)
        return place
    return place_of(url)


def _read(path: Path) -> bytes:
    """A file, or the beginning of one that is too large."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)
