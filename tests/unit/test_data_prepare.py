import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_zoo.corpus import read_corpus
from model_zoo.documents import DataError, Reading
from model_zoo.encoding import Settings
from model_zoo.prepare import END, PROGRESS, prepare, settings_for
from model_zoo.prepared import INDEX, TOKENIZER, Index, Row, open_folder, read_index, verify
from model_zoo.shards import open_shard
from model_zoo.tokenizer import BPETokenizer

TEXT = read_corpus("pride_and_prejudice").decode()[:60_000]
BPE = BPETokenizer.train(TEXT, 400, special=(END,))


class StopError(Exception):
    """The process ends here."""


def text_in(folder: Path, count: int = 6) -> list[Path]:
    """Documents in files of two kinds, an empty one among them."""
    folder.mkdir()
    rows = [{"text": TEXT[at * 3000 : (at + 1) * 3000]} for at in range(count)] + [{"text": " "}]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "b.txt").write_text(TEXT[20_000:])
    return [folder / "a.jsonl", folder / "b.txt"]


def bpe(**changes: Any) -> Settings:
    return Settings(BPE.to_json(), "bpe", BPE.vocab_size, 0, **{"shard_tokens": 4000, **changes})


def tokens_of(folder: Path) -> np.ndarray[Any, Any]:
    return np.concatenate([open_shard(folder / shard.name) for shard in open_folder(folder).shards])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_the_text_and_the_index_says_what_they_hold(tmp_path: Path) -> None:
    # given
    paths = text_in(tmp_path / "text")
    # when
    index = prepare(paths, tmp_path / "out", bpe(), workers=1)
    # then
    documents = [TEXT[at * 3000 : (at + 1) * 3000] for at in range(6)] + [TEXT[20_000:]]
    found = np.split(tokens := tokens_of(tmp_path / "out"), np.flatnonzero(tokens == 0) + 1)
    assert [BPE.decode(each[:-1]) for each in found[:-1]] == documents
    assert (index.documents, index.empty, index.tokens) == (7, 1, len(tokens))
    assert index.text_bytes == sum(len(each.encode()) for each in documents)
    assert len(index.shards) > 2 and (index.width, index.vocab_size, index.end) == (2, 400, 0)
    assert sorted(files(tmp_path / "out")) == [*(shard.name for shard in index.shards), INDEX, TOKENIZER]
    assert (tmp_path / "out" / INDEX).read_bytes() == index.canonical()
    assert index.tokenizer_of((tmp_path / "out" / TOKENIZER).read_bytes()).digest == BPE.digest


def test_what_looks_like_a_mark_in_a_text_is_text(tmp_path: Path) -> None:
    # given
    path = tmp_path / "a.txt"
    path.write_text(f"before {END} after")
    # when
    prepare([path], tmp_path / "out", bpe(), workers=1)
    # then
    tokens = tokens_of(tmp_path / "out")
    assert np.flatnonzero(tokens == 0).tolist() == [len(tokens) - 1]
    assert BPE.decode(tokens[:-1]) == f"before {END} after"


def test_bytes_are_tokens_and_documents_end_with_a_zero(tmp_path: Path) -> None:
    # given
    (tmp_path / "a.jsonl").write_text('{"text": "né"}\n{"text": "b"}\n')
    settings = settings_for("bytes", None, [], Reading(), 1000, 0.05)
    # when
    prepare([tmp_path / "a.jsonl"], tmp_path / "out", settings, workers=1)
    # then
    assert tokens_of(tmp_path / "out").tolist() == [*"né".encode(), 0, *b"b", 0]


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    # given
    paths = text_in(tmp_path / "text")
    # when
    for workers in (1, 2):
        prepare(paths, tmp_path / str(workers), bpe(), workers)
    # then
    assert files(tmp_path / "1") == files(tmp_path / "2")


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 30), st.booleans())
def test_an_interrupted_one_goes_on(tmp_path_factory: pytest.TempPathFactory, stop: int, torn: bool) -> None:
    # given one that ended after some batches, perhaps while it wrote down what is done
    folder = tmp_path_factory.mktemp("interrupted")
    paths = text_in(folder / "text")
    whole = prepare(paths, folder / "whole", bpe(), workers=1)
    seen: list[bool] = []

    def on_batch(text_bytes: int, tokens: int, encoded: bool) -> None:
        seen.append(encoded)
        if len(seen) == stop:
            raise StopError

    try:
        prepare(paths, folder / "out", bpe(), workers=1, on_batch=on_batch)
    except StopError:
        assert not (folder / "out" / INDEX).exists()
        if torn:
            with (folder / "out" / PROGRESS).open("ab") as file:
                file.write(b'{"name": "000')
    done = len(list((folder / "out").glob("*.tokens")))
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*.tokens")}
    # when
    seen, stop = [], -1
    index = prepare(paths, folder / "out", bpe(), workers=1, on_batch=on_batch)
    # then nothing finished was made again, and the result is the same
    assert index == whole and files(folder / "out") == files(folder / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert seen == sorted(seen) and (done == 0) == (False not in seen)


def test_a_finished_one_is_left_as_it_is(tmp_path: Path) -> None:
    # given
    paths = text_in(tmp_path / "text")
    index = prepare(paths, tmp_path / "out", bpe(), workers=1)
    before = files(tmp_path / "out")
    encoded: list[bool] = []
    # when
    again = prepare(paths, tmp_path / "out", bpe(), 1, on_batch=lambda size, tokens, made: encoded.append(made))
    # then
    assert again == index and files(tmp_path / "out") == before and not any(encoded)


@pytest.mark.parametrize("finished", [True, False])
def test_another_text_or_other_options_are_no_continuation(tmp_path: Path, finished: bool) -> None:
    # given
    paths, out = text_in(tmp_path / "text"), tmp_path / "out"
    prepare(paths, out, bpe(), workers=1)
    if not finished:
        (out / INDEX).unlink()
        lines = [json.dumps({"settings": bpe().sha256()}, separators=(",", ":"))]
        lines += [shard.model_dump_json() for shard in open_or_made(paths, tmp_path).shards[:2]]
        (out / PROGRESS).write_text("".join(line + "\n" for line in lines))
    # when / then
    with pytest.raises(DataError, match=r"with other options|with another tokenizer"):
        prepare(paths, out, bpe(held_out=0.1), workers=1)
    paths[0].write_text('{"text": "another"}\n' + paths[0].read_text())
    with pytest.raises(DataError, match="another text"):
        prepare(paths, out, bpe(), workers=1)


def open_or_made(paths: list[Path], tmp_path: Path) -> Index:
    return prepare(paths, tmp_path / "twin", bpe(), workers=1)


def test_a_longer_text_is_another_one(tmp_path: Path) -> None:
    paths = text_in(tmp_path / "text")
    prepare(paths, tmp_path / "out", bpe(), workers=1)
    (tmp_path / "text" / "c.txt").write_text("more")

    with pytest.raises(DataError, match="finished, of another text"):
        prepare([*paths, tmp_path / "text" / "c.txt"], tmp_path / "out", bpe(), workers=1)


def test_others_may_read_what_is_prepared_as_the_umask_says(tmp_path: Path) -> None:
    prepare(text_in(tmp_path / "text"), tmp_path / "out", bpe(), workers=1)

    usual = (tmp_path / "text" / "b.txt").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {usual}


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")

    with pytest.raises(DataError, match=r"something else in it \(thesis.tex\)"):
        prepare([], tmp_path / "out", bpe(), workers=1)


def test_nothing_but_empty_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "  "}\n')

    with pytest.raises(DataError, match=r"no document has any text \(2 empty ones\)"):
        prepare([tmp_path / "a.jsonl"], tmp_path / "out", bpe(), workers=1)


def test_a_full_disk_leaves_whole_shards_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    paths, out, size = text_in(tmp_path / "text"), tmp_path / "out", [0]

    def append(self: Any, tokens: bytes) -> None:
        size[0] += 1
        if size[0] > 3:
            raise OSError(28, "No space left on device")
        plain(self, tokens)

    plain = prepare.__globals__["ShardWriter"].append
    monkeypatch.setattr("model_zoo.prepare.ShardWriter.append", append)
    # when
    with pytest.raises(OSError, match="No space"):
        prepare(paths, out, bpe(shard_tokens=2000), workers=1)
    # then
    assert not list(out.glob("*.tmp")) and not (out / INDEX).exists()
    for path in out.glob("*.tokens"):
        open_shard(path)


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    # given
    out = tmp_path / "out"
    index = prepare(text_in(tmp_path / "text"), out, bpe(), workers=1)
    data = bytearray((out / index.shards[1].name).read_bytes())
    data[-1] ^= 1
    (out / index.shards[1].name).write_bytes(data)
    (out / index.shards[2].name).unlink()
    # when
    found = {shard.name: problem for shard, problem in verify(out)}
    # then
    assert "do not have the digest" in (found.pop(index.shards[1].name) or "")
    assert "No such file" in (found.pop(index.shards[2].name) or "")
    assert set(found.values()) == {None}


def test_another_shard_in_its_place_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    index = prepare(text_in(tmp_path / "text"), out, bpe(), workers=1)

    with pytest.raises(ValueError, match="other tokens than the index"):
        index.open(out / index.shards[1].name, index.shards[0])


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    index = prepare(text_in(tmp_path / "text"), out, bpe(), workers=1).model_copy(update={"vocab_size": 200})

    with pytest.raises(ValueError, match="and the vocabulary is 200"):
        index.open(out / index.shards[0].name, index.shards[0])


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40), st.integers(0, 10**6), st.integers(0, 255))
def test_any_other_index_is_refused(data: bytes, place: int, byte: int) -> None:
    # given junk, and an index with one changed byte
    shard = {"name": "00000.tokens", "tokens": 5, "sha256": "0" * 64, "text_bytes": 5, "text_sha256": "0" * 64}
    whole = Index.model_validate(
        {"tokenizer": "bytes", "tokenizer_sha256": "0" * 64, "vocab_size": 256, "end": 0, "width": 2,
         "held_out": 0.05, "documents": 1, "empty": 0, "text_bytes": 5, "shards": [shard]}
    ).canonical()  # fmt: skip
    changed = bytearray(whole)
    changed[place % len(whole)] = byte
    # when / then it is refused, or is a canonical index that says what it says
    for each in (data, bytes(changed)):
        try:
            assert read_index(each).canonical() == each
        except DataError as error:
            assert "\n" not in str(error)


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_a_row_is_its_shards_one_behind_the_other(sizes: list[int], data: st.DataObject) -> None:
    # given
    total, opened = sum(sizes), []
    row_of = np.split(np.arange(total), np.cumsum(sizes)[:-1])
    shards = [{"name": f"{at:05d}.tokens", "tokens": size, "sha256": "0" * 64, "text_bytes": 1, "text_sha256": "0" * 64}
              for at, size in enumerate(sizes)]  # fmt: skip
    index = Index.model_validate(
        {"tokenizer": "bytes", "tokenizer_sha256": "0" * 64, "vocab_size": 256, "end": 0, "width": 2,
         "held_out": 0.05, "documents": 1, "empty": 0, "text_bytes": 5, "shards": shards}
    )  # fmt: skip
    row = Row(index, lambda shard: opened.append(shard.name) or row_of[int(shard.name[:5])], lambda shards: None)  # type: ignore[func-returns-value]
    places = data.draw(st.lists(st.integers(0, total - 1), max_size=20))
    start = data.draw(st.integers(0, total - 1))
    width = data.draw(st.integers(1, total - start))
    # when / then
    assert len(row) == total
    assert row[np.array(places, np.int64)].tolist() == places
    assert len(set(opened)) == len(opened)
    spans = [row_of[int(name[:5])][first:stop].tolist() for name, first, stop in row.spans(start, width)]
    assert sum(spans, []) == list(range(start, start + width))  # noqa: RUF017
    with pytest.raises(ValueError, match="places are in"):
        row[np.array([total])]


@pytest.mark.parametrize(
    ("tokenizer", "message"), [("nowhere.json", 'or "bytes", or "bpe"'), (__file__, "not a tokenizer definition")]
)
def test_what_is_no_tokenizer_is_refused(tokenizer: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        settings_for(tokenizer, None, [], Reading(), 1000, 0.05)


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    # given one that is under way
    paths, out = text_in(tmp_path / "text"), tmp_path / "out"
    refused: list[str] = []

    def another(text_bytes: int, tokens: int, encoded: bool) -> None:
        if not refused:
            with pytest.raises(DataError) as caught:
                prepare(paths, out, bpe(), workers=1)
            refused.append(str(caught.value))

    # when
    index = prepare(paths, out, bpe(), workers=1, on_batch=another)
    # then the other says so, and the result is whole
    assert refused == [f"{out}: another process is writing it"]
    assert {problem for _, problem in verify(out)} == {None} and open_folder(out) == index


def test_a_tokenizer_is_learnt_equally_from_however_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given more files than the sample has thousands of characters, each of letters of its own
    monkeypatch.setattr("model_zoo.prepare.SAMPLE_CHARS", 4000)
    paths = [tmp_path / f"{letter}.txt" for letter in "abcdefghijklmnopqrst"]
    for path in paths:
        path.write_text(path.stem * 100_000)
    # when
    settings = settings_for("bpe", 400, paths, Reading(), 1000, 0.05)
    # then each has its words in the vocabulary
    learnt = BPETokenizer(settings.definition)
    assert all(learnt.token_of(path.stem * 2) is not None for path in paths)


def test_a_tokenizer_is_learnt_from_all_files_and_the_same_each_time(tmp_path: Path) -> None:
    # given
    paths = text_in(tmp_path / "text")
    # when
    one, two = (settings_for("bpe", 300, paths, Reading(), 1000, 0.05) for _ in range(2))
    # then
    assert one == two and (one.vocab_size, one.end) == (300, 0)
