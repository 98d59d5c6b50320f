"""Text → shards of tokens: all cores encode, one thread reads and writes in order.

What is written follows from the text and the settings alone, not from how many work at it. A shard is there when it
is whole; what is done stands in `progress.jsonl`, until `index.json` takes its place. After an interruption the text
is read again, which costs little, and only what is missing is encoded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from pydantic import ValidationError

from model_zoo.documents import DataError, Piece, Reading, pieces
from model_zoo.encoding import Batch, Count, Encoded, Settings, encoders
from model_zoo.folders import FolderError, locked
from model_zoo.prepared import INDEX, TOKENIZER, Index, Shard, open_folder
from model_zoo.shards import ShardWriter
from model_zoo.tokenizer import BPETokenizer, ByteTokenizer, write_whole

PROGRESS = "progress.jsonl"
BATCH_CHARS = 2**20
"""Text that a worker gets at a time, about."""
SAMPLE_CHARS = 2**25
"""Text from which a tokenizer is learnt, at most, of all files alike."""
END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "<eos>", "</s>", "<|im_end|>")
"""How definitions of others call what ends a document."""


def settings_for(
    tokenizer: str, vocab_size: int | None, paths: Sequence[Path], reading: Reading, shard_tokens: int, held_out: float
) -> Settings:
    """Settings with a tokenizer of that name.

    Args:
        tokenizer: "bytes"; "bpe": learnt from the text; or the path of a `tokenizer.json`.
        vocab_size: of "bpe", at most.
        paths: the text.

    Raises:
        DataError: there is no such tokenizer.
    """
    if tokenizer == "bytes":
        return Settings(ByteTokenizer().to_json(), "bytes", 256, 0, reading, shard_tokens, held_out)
    if tokenizer == "bpe":
        try:
            made = BPETokenizer.train(_sample(paths, reading), vocab_size or 32_768, special=(END,))
        except ValueError as error:
            raise DataError(str(error)) from error
    else:
        try:
            made = BPETokenizer(Path(tokenizer).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f'--tokenizer {tokenizer}: {error.strerror}; or "bytes", or "bpe"') from error
        except ValueError as error:
            raise DataError(f"--tokenizer {tokenizer}: {error}") from error
    end = next((token for each in ENDS if (token := made.token_of(each)) is not None), None)
    return Settings(made.to_json(), "bpe", made.vocab_size, end, reading, shard_tokens, held_out)


def prepare(
    paths: Sequence[Path],
    folder: Path,
    settings: Settings,
    workers: int,
    on_batch: Callable[[int, int, bool], None] = lambda text_bytes, tokens, encoded: None,
) -> Index:
    """Make shards and an index of all documents, or go on where it was interrupted; gives the index.

    Args:
        paths: files, in this order.
        folder: where the result goes; made if it is not there.
        settings: see there.
        workers: processes that encode, on all cores together; 1: this one.
        on_batch: told of each batch how much it was; False: it had been encoded before.

    Raises:
        DataError: something is wrong with the text, or with what lies in the folder.
        OSError: no space, or no permission.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            return _prepared(paths, folder, settings, workers, on_batch)
    except FolderError as error:
        raise DataError(str(error)) from error


def _prepared(
    paths: Sequence[Path], folder: Path, settings: Settings, workers: int, on_batch: Callable[[int, int, bool], None]
) -> Index:
    finished = open_folder(folder) if (folder / INDEX).exists() else None
    done = list(_same(folder, finished, settings).shards) if finished else _begin(folder, settings)
    count = Count()
    batches = _batches(paths, settings, count)
    try:
        for shard in done:
            _skip(folder, settings, shard, batches, on_batch)
        if finished:
            if next(batches, None) is not None:
                raise DataError(_other(folder))
            (folder / PROGRESS).unlink(missing_ok=True)
            return finished
        with encoders(settings, workers) as encode:
            for shard in _shards(folder, settings, encode(batches), len(done), on_batch):
                done.append(shard)
                with (folder / PROGRESS).open("ab") as file:
                    file.write(shard.model_dump_json().encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
    except BrokenProcessPool as error:
        raise DataError("a worker process was ended, perhaps for memory: take fewer --workers; it goes on") from error
    if not done:
        raise DataError(f"no document has any text ({count.empty:,} empty ones)")
    index = settings.index(count, done)
    write_whole(folder / INDEX, index.canonical())
    (folder / PROGRESS).unlink()
    return index


def _batches(paths: Iterable[Path], settings: Settings, count: Count) -> Iterator[Batch]:
    """All text, in batches of which each has some; `count` is kept up with them."""
    most = min(BATCH_CHARS, settings.shard_tokens)
    texts: list[bytes] = []
    chars, batch = 0, Batch()
    for piece in _all_pieces(paths, settings.reading):
        if not piece.text:
            count.empty += 1
            continue
        data = piece.text.encode()
        texts.append(data)
        batch.lengths.append(len(data))
        batch.ends.append(piece.ends)
        count.documents += piece.ends
        count.text_bytes += len(data)
        chars += len(piece.text)
        if chars >= most:
            batch.data = b"".join(texts)
            yield batch
            texts, chars, batch = [], 0, Batch()
    if texts:
        batch.data = b"".join(texts)
        yield batch


def _all_pieces(paths: Iterable[Path], reading: Reading) -> Iterator[Piece]:
    for path in paths:
        yield from pieces(path, reading)


def _sample(paths: Sequence[Path], reading: Reading) -> str:
    """The beginning of each file, equally much of all."""
    each, found = max(1, SAMPLE_CHARS // max(1, len(paths))), []
    for path in paths:
        left = each
        for piece in pieces(path, reading):
            found.append(piece.text[:left])
            left -= len(found[-1])
            if not left:
                break
    return "".join(found)


def _begin(folder: Path, settings: Settings) -> list[Shard]:
    """Shards that an interrupted `prepare` with these settings had finished."""
    path = folder / PROGRESS
    if not path.exists():
        if strange := sorted(each.name for each in folder.iterdir() if not each.name.startswith(PROGRESS)):
            raise DataError(f"{folder}: there is something else in it ({strange[0]}); choose an empty folder")
        write_whole(path, orjson.dumps({"settings": settings.sha256()}) + b"\n")
    first, *rest = path.read_bytes().split(b"\n")
    if first != orjson.dumps({"settings": settings.sha256()}):
        raise DataError(
            f"{folder}: begun with another tokenizer or other options; repeat those, or choose another --out"
        )
    write_whole(folder / TOKENIZER, settings.definition.encode())
    done = []
    for line in rest[:-1]:  # what has no line end is torn
        try:
            done.append(Shard.model_validate_json(line))
        except ValidationError as error:
            raise DataError(f"{path}: damaged; remove {folder} and begin again") from error
    if rest[-1]:
        whole = [first, *(shard.model_dump_json().encode() for shard in done)]
        write_whole(path, *(line + b"\n" for line in whole))
    return done


def _same(folder: Path, index: Index, settings: Settings) -> Index:
    """An index that is there already, if these settings made it."""
    ours = settings.index(Count(index.documents, index.empty, index.text_bytes), index.shards)
    if ours != index:
        raise DataError(_other(folder))
    return index


def _other(folder: Path) -> str:
    return f"{folder}: finished, of another text or with other options; choose another --out"


def _skip(folder: Path, settings: Settings, shard: Shard, batches: Iterator[Batch], on_batch: Any) -> None:
    """Read the text of a finished shard, and look whether it is that; then at the shard."""
    text, read = hashlib.sha256(), 0
    while read < shard.text_bytes and (batch := next(batches, None)):
        read += len(batch.data)
        _take_in(text, batch)
        on_batch(len(batch.data), 0, False)
    if read != shard.text_bytes or text.hexdigest() != shard.text_sha256:
        raise DataError(f"{folder / shard.name} was made of another text than this; choose another --out")
    try:
        settings.index(Count(), [shard]).open(folder / shard.name, shard)
    except (OSError, ValueError) as error:
        raise DataError(f"{error}; it was whole before: remove {folder} and begin again") from error


def _take_in(text: Any, batch: Batch) -> None:
    text.update(batch.data)
    text.update(np.array(batch.lengths, "<u4").tobytes())
    text.update(bytes(batch.ends))


def _shards(
    folder: Path, settings: Settings, encoded: Encoded, first: int, on_batch: Callable[[int, int, bool], None]
) -> Iterator[Shard]:
    """Write shards; each is whole when it is given."""
    writer, number, text, read = None, first, hashlib.sha256(), 0

    def closed() -> Shard:
        assert writer is not None
        return Shard(
            name=f"{number:05d}.tokens", tokens=writer.count, sha256=writer.close(),
            text_bytes=read, text_sha256=text.hexdigest(),
        )  # fmt: skip

    try:
        for batch, tokens in encoded:
            if writer is None:
                writer, text, read = ShardWriter(folder / f"{number:05d}.tokens", settings.width), hashlib.sha256(), 0
            writer.append(tokens)
            _take_in(text, batch)
            read += len(batch.data)
            on_batch(len(batch.data), len(tokens) // settings.width, True)
            if writer.count >= settings.shard_tokens:
                yield closed()
                writer, number = None, number + 1
        if writer is not None:
            yield closed()
            writer = None
    finally:
        if writer is not None:
            writer.discard()
