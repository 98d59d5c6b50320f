import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from model_zoo.documents import PIECE, DataError, Reading, kind_of, pieces


def documents(path: Path, reading: Reading | None = None) -> list[str]:
    found, text = [], ""
    for piece in pieces(path, reading or Reading()):
        assert len(piece.text) <= PIECE
        text += piece.text
        if piece.ends:
            found.append(text)
            text = ""
    assert text == ""
    return found


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix.lower() == ".gz" else data)
    return path


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=300), st.integers(0, 300))
def test_a_text_comes_back_from_its_pieces(tmp_path_factory: pytest.TempPathFactory, text: str, times: int) -> None:
    # given a text that may be much longer than a piece and than what is read at once
    path = tmp_path_factory.getbasetemp() / "any.txt"
    long = text * times
    written(path, long.encode())
    # when
    found = documents(path)
    # then
    assert found == [long if len(long) > PIECE or long.strip() else ""]


def test_pieces_end_where_words_do(tmp_path: Path) -> None:
    # given
    path = written(tmp_path / "a.txt", b"some words " * 10_000)
    # when
    found = [piece.text for piece in pieces(path, Reading())]
    # then
    assert len(found) > 1
    assert all(piece.endswith(("some", "words")) for piece in found[:-1])


def test_json_lines_may_begin_with_a_mark_of_their_encoding(tmp_path: Path) -> None:
    path = written(tmp_path / "A.JSONL", b"\xef\xbb\xbf" + lines({"text": "one"}, {"text": "two"}))

    assert documents(path) == ["one", "two"]
    written(path, b"\xef\xbb\xbf" + b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match="at byte 13;"):
        documents(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".JSONL.GZ", ".ndjson"])
def test_each_line_of_json_is_a_document(tmp_path: Path, suffix: str) -> None:
    # given an empty one, none at all, and one that is longer than a piece
    rows = [{"text": "one"}, {"text": ""}, {"text": None}, {"text": "x" * 50_000, "more": 1}]
    path = written(tmp_path / f"a{suffix}", lines(*rows) + b"\n\n")
    # when / then
    assert documents(path) == ["one", "", "", "x" * 50_000]


def test_each_row_of_parquet_is_a_document(tmp_path: Path) -> None:
    # given
    texts = [f"text {number}" for number in range(300)]
    parquet.write_table(pa.table({"body": [*texts, None], "n": range(301)}), tmp_path / "a.parquet", row_group_size=100)
    # when / then
    assert documents(tmp_path / "a.parquet", Reading(field="body")) == [*texts, ""]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"x" * 2**20 + b"caf\xe9!", r"a.txt: not UTF-8: .* at byte 1048579"),
        ("a.txt.gz", b"caf\xe9!", r"a.txt.gz: not UTF-8: .* at byte 3"),
        ("a.txt", "é".encode()[:1], r"unexpected end of data at byte 0"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "caf\xe9"}\n', r"a.jsonl: not UTF-8: .* at byte 30"),
        ("a.jsonl", b'{"text": "fine"}\n{"text"\n', "a.jsonl line 2: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl line 1: not JSON"),
        ("a.jsonl", b'["text"]\n', "line 1: not a JSON object"),
        (
            "a.jsonl",
            b'{"body": "", "id": 1}\n',
            r'line 1: no field "text" \(there: body, id\); choose one with --field',
        ),
        ("a.jsonl", b'{"text": 7}\n', 'line 1: "text" is int and not text'),
        ("a.parquet", b"PAR1 and nothing", "a.parquet: damaged, or not parquet"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        documents(written(tmp_path / name, data))


def test_a_torn_gzip_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt.gz", b"some text " * 1000)
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(DataError, match="not a whole gzip file"):
        documents(path)


def test_a_column_that_is_none_or_no_text_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"n": [1, 2]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r'no column "text" \(there: n\)'):
        documents(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="is int64 and not text"):
        documents(tmp_path / "a.parquet", Reading(field="n"))


def test_broken_text_may_be_replaced(tmp_path: Path) -> None:
    # given
    reading = Reading(errors="replace")
    broken = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    # when / then
    assert documents(written(tmp_path / "a.txt", b"caf\xe9!"), reading) == ["caf�!"]
    assert documents(written(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}'), reading) == ["caf�"]
    assert documents(written(tmp_path / "b.jsonl", b'{"text": "a\\ud800b"}'), reading) == ["a�b"]
    assert documents(tmp_path / "a.parquet", reading) == ["caf�"]
    with pytest.raises(DataError, match="row 1: not UTF-8"):
        documents(tmp_path / "a.parquet")


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_zoo.documents.MAX_LINE", 1000)

    with pytest.raises(DataError, match="line 1: longer than 1000 bytes"):
        documents(written(tmp_path / "a.jsonl", lines({"text": "x" * 1000})))


def test_the_format_is_told_by_the_name_or_by_the_user() -> None:
    assert kind_of(Path("a.md.gz"), "auto") == "text"
    assert kind_of(Path("a.bin"), "jsonl") == "jsonl"
    with pytest.raises(DataError, match=r'a\.bin: "\.bin" tells no format'):
        kind_of(Path("a.bin"), "auto")
