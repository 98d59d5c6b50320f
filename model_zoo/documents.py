"""Documents out of files of text, JSON lines or parquet, one after the other, in bounded memory.

A document comes in pieces of at most `PIECE` characters, cut where a word ends if one does. Which pieces there are
follows from the text alone.
"""

import codecs
import gzip
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson

PIECE = 2**14
"""Characters that are tokenised at a time: encoders are fastest at some thousand. Another value gives other tokens."""
MAX_LINE = 2**28
"""Bytes of a line of JSON: it is in memory at once."""
ROWS = 64
"""Rows of parquet that are in memory at once."""
_READ = 2**20
_WORD_ENDS = re.compile(r"(?<=\S)(?=[ \n]\S)")
_FORMATS = {".txt": "text", ".text": "text", ".md": "text", ".rst": "text", ".jsonl": "jsonl", ".ndjson": "jsonl",
            ".parquet": "parquet"}  # fmt: skip


class DataError(ValueError):
    """Something is wrong with text, or with what was prepared of it; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document."""

    text: str
    ends: bool
    """The document is over. An empty one is a single piece without text."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read."""

    kind: str = "auto"
    """"text": each file is a document; "jsonl"; "parquet"; "auto": by the file's name."""
    field: str = "text"
    """Of JSON lines and parquet: where the text is."""
    errors: str = "strict"
    """What is not UTF-8: "strict" is an error, "replace" makes it "�"."""


def pieces(path: Path, reading: Reading) -> Iterator[Piece]:
    """All pieces of a file's documents.

    Raises:
        DataError: it is of another format, or damaged.
        OSError: it cannot be read.
    """
    kind = kind_of(path, reading.kind)
    if kind == "parquet":
        documents = ([text] for text in _parquet(path, reading))
        yield from _cut_all(documents)
        return
    opened: Callable[[], Any] = partial(gzip.open, path) if path.suffix.lower() == ".gz" else partial(path.open, "rb")
    try:
        with opened() as file:
            if kind == "text":
                yield from _cut(_decoded(file, path, reading.errors))
            else:
                yield from _cut_all([text] for text in _json_lines(file, path, reading))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged, or not a whole gzip file: {error}") from error


def kind_of(path: Path, kind: str) -> str:
    """The format of a file, by its name if it is not said.

    Raises:
        DataError: its name does not tell.
    """
    if kind != "auto":
        return kind
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    try:
        return _FORMATS[suffix.lower()]
    except KeyError as error:
        raise DataError(
            f'{path}: "{suffix}" tells no format (known: {", ".join(_FORMATS)}, also .gz); say it with --format'
        ) from error


def _cut_all(documents: Iterable[Iterable[str]]) -> Iterator[Piece]:
    for document in documents:
        yield from _cut(document)


def _cut(parts: Iterable[str]) -> Iterator[Piece]:
    """One document, however it comes."""
    held, begun = "", False
    for part in parts:
        held += part
        start = 0
        while len(held) - start > PIECE:
            end = _end(held, start)
            yield Piece(held[start:end], ends=False)
            start, begun = end, True
        held = held[start:]
    yield Piece(held if begun or held.strip() else "", ends=True)


def _end(text: str, start: int) -> int:
    """Where to cut: before the last single space or line end between two words, or anywhere if there is none."""
    for back in (256, PIECE):
        found = [match.start() for match in _WORD_ENDS.finditer(text, start + PIECE - back, start + PIECE)]
        if found and found[-1] > start:
            return found[-1]
    return start + PIECE


def _decoded(file: IO[bytes], path: Path, errors: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    place = 0
    while True:
        data = file.read(_READ)
        waiting = len(decoder.getstate()[0])
        try:
            yield decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _broken(path, place - waiting + error.start, error) from error
        place += len(data)
        if not data:
            return


def _broken(path: Path, byte: int, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path}: not UTF-8: {error.reason} at byte {byte}; --errors replace puts � there")


def _json_lines(file: IO[bytes], path: Path, reading: Reading) -> Iterator[str]:
    place, number = 0, 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1 and line.startswith(BOM_UTF8):
            line, place = line.removeprefix(BOM_UTF8), len(BOM_UTF8)
        if len(line) > MAX_LINE:
            raise DataError(f"{path} line {number}: longer than {MAX_LINE} bytes; cut the document, or take plain text")
        if line.strip():
            yield _text_of(_parsed(line, path, number, place, reading), f"{path} line {number}", reading)
        place += len(line)


def _parsed(line: bytes, path: Path, number: int, place: int, reading: Reading) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            text = line.decode("utf-8", reading.errors)
            if reading.errors == "replace":
                return json.loads(text)
        except UnicodeDecodeError as broken:
            raise _broken(path, place + broken.start, broken) from broken
        except (ValueError, RecursionError) as worse:
            raise DataError(f"{path} line {number}: not JSON: {worse}") from worse
        raise DataError(f"{path} line {number}: not JSON: {error}") from error


def _text_of(row: Any, where: str, reading: Reading) -> str:
    field = reading.field
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object, {{ … }}")
    if field not in row:
        there = ", ".join(sorted(row)[:8]) or "none"
        raise DataError(f'{where}: no field "{field}" (there: {there:.200}); choose one with --field')
    value = row[field]
    if value is not None and not isinstance(value, str):
        raise DataError(f'{where}: "{field}" is {type(value).__name__} and not text')
    text = value or ""
    if reading.errors == "replace":  # Python's parser lets halves of a surrogate pair through
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet(path: Path, reading: Reading) -> Iterator[str]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if reading.field not in names:
                there = ", ".join(names[:8])
                raise DataError(f'{path}: no column "{reading.field}" (there: {there:.200}); choose one with --field')
            kind = file.schema_arrow.field(reading.field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f'{path}: its column "{reading.field}" is {kind} and not text')
            for batch in file.iter_batches(batch_size=ROWS, columns=[reading.field]):
                for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                    number += 1
                    yield (value or b"").decode("utf-8", reading.errors)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} row {number}: not UTF-8: {error.reason} at byte {error.start}; --errors replace puts � there"
        ) from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: damaged, or not parquet: {str(error).splitlines()[0]:.200}") from error
