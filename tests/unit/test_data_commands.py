import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from data_cases import KEY, made

from elastic.agreement.manifests import genesis
from elastic.messages import Digest
from elastic.wire.signing import Identity
from model_zoo.corpus import read_corpus
from model_zoo.prepared import open_folder

TEXT = read_corpus("pride_and_prejudice").decode()[:30_000]
RUN_FILE = """
[shared]
run = "demo"
[shared.agreement]
validators = ["{key}"]
[shared.inner]
steps = 2
batch_size = 4
sequence_length = 16
[shared.data]
tokenizer = "bytes"
{data}
[local]
state_dir = "state"
{places}
"""


def run_file(folder: Path, data: str = "", places: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(RUN_FILE.format(key=KEY, data=data, places=places))
    return path


def test_prepare_takes_files_and_globs_of_several_kinds(tmp_path: Path, elastic: Run) -> None:
    # given
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "b.jsonl").write_text(json.dumps({"body": TEXT}) + "\n")
    (tmp_path / "c.jsonl").write_text(json.dumps({"body": ""}) + "\n")
    # when
    code, out, err = elastic("data", "prepare", "a.txt.gz", "*.jsonl", "--out", "out", "--field", "body", "--plain")
    # then
    index = open_folder(tmp_path / "out")
    assert (code, err) == (0, "")
    assert (index.documents, index.empty, index.text_bytes) == (2, 1, 2 * len(TEXT.encode()))
    assert f"index      {index.sha256}" in out and "3 files (jsonl, text)" in out
    # and what it prints makes a run file
    said = out.partition("for a run file:")[2]
    data, _, places = said.partition("[local.data.sources]")
    run_file(
        tmp_path, data.partition("[shared.data]")[2].replace('tokenizer = "bytes"', ""), "[local.data.sources]" + places
    )
    code, out, _ = elastic("check", "run.toml")
    assert code == 0 and f"source   out, weight 1, {index.tokens:,} tokens in 1 shards" in out


def test_a_learnt_tokenizer_serves_another_text(tmp_path: Path, elastic: Run) -> None:
    # given
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT[:5000])
    # when
    assert elastic("data", "prepare", "a.txt", "--out", "a", "--tokenizer", "bpe", "--vocab-size", 300)[0] == 0
    code, out, _ = elastic("data", "prepare", "b.txt", "--out", "b", "--tokenizer", "a/tokenizer.json")
    # then
    assert code == 0 and "vocab_size = 300" in out
    first, second = (open_folder(tmp_path / name) for name in "ab")
    assert first.tokenizer_sha256 == second.tokenizer_sha256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no*thing"], "no*thing: no such file, and nothing that matches it"),
        (["folder"], 'folder is a folder: say which files of it, "folder/**/*.txt"'),
        (["a.bin"], 'a.bin: ".bin" tells no format'),
        (["a.txt", "--format", "jsonl"], "a.txt line 1: not JSON"),
        (["a.bin", "--format", "text"], "a.bin: not UTF-8: invalid start byte at byte 2"),
        (["a.jsonl"], 'a.jsonl line 1: no field "text" (there: body)'),
        (["a.txt", "--vocab-size", "300"], "--vocab-size is for --tokenizer bpe only"),
        (["a.txt", "--tokenizer", "gpt2"], "--tokenizer gpt2: No such file or directory"),
        (["a.txt", "--out", "a.txt"], "a.txt"),
        (["a.txt", "--out", "folder"], "folder: there is something else in it"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, elastic: Run, arguments: list[str], message: str) -> None:
    # given
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("")
    (tmp_path / "a.bin").write_bytes(b"ab\xff")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.jsonl").write_text('{"body": "text"}\n')
    # when
    code, _, err = elastic("data", "prepare", "--workers", 1, "--out", "out", *arguments)
    # then
    assert code == 1 and message in err and err.count("\n") == 1


def test_no_space_is_said_and_what_to_do(tmp_path: Path, elastic: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, tokens: bytes) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr("model_zoo.prepare.ShardWriter.append", full)

    code, _, err = elastic("data", "prepare", "a.txt", "--out", "out", "--workers", 1)

    assert code == 1
    assert err == "error: out: no space is left there; what is finished stays, and the same command goes on with it\n"


def test_show_and_verify_tell_what_is_there(tmp_path: Path, elastic: Run) -> None:
    # given
    index = made(tmp_path / "web")
    # when / then
    code, out, _ = elastic("data", "show", "web")
    assert code == 0 and index.sha256 in out and all(shard.sha256 in out for shard in index.shards)
    assert elastic("data", "verify", "web")[:2] == (0, f"whole: {len(index.shards)} shards\n")
    path = tmp_path / "web" / index.shards[1].name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, out, err = elastic("data", "verify", "web")
    assert (code, out.count("damaged  ")) == (1, 1) and f"1 of {len(index.shards)} shards are damaged" in err
    (tmp_path / "web" / "tokenizer.json").write_text("")
    assert "tokenizer.json has SHA-256" in elastic("data", "verify", "web")[2]
    (tmp_path / "web" / "index.json").unlink()
    assert "web: no index.json there" in elastic("data", "show", "web")[2]


def test_assigned_prints_lines_that_anyone_can_hash(tmp_path: Path, elastic: Run) -> None:
    # given a mixture, of which this machine has nothing but the indexes
    web, code_ = made(tmp_path / "web", "w"), made(tmp_path / "code", "c")
    for path in tmp_path.glob("*/*.tokens"):
        path.unlink()
    mixed = "".join(f'[[shared.data.sources]]\nname = "{name}"\nindex = "{index.sha256}"\n'
                    for name, index in (("web", web), ("code", code_)))  # fmt: skip
    run_file(tmp_path, mixed, '[local.data.sources]\nweb = "web"\ncode = "code"')
    # when
    printed = [elastic("data", "assigned", "run.toml", "--round", 3, "--slot", slot, "--roster", 2) for slot in (0, 1)]
    # then
    seen = set()
    for slot, (code, out, _) in enumerate(printed):
        *lines, last = out.splitlines()
        digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        assert code == 0 and last == f"8 sequences of round 3 for slot {slot} of 2: sha256 {digest}"
        assert sum(line.startswith("web[") for line in lines) == 4
        assert all(re.fullmatch(r"(web|code)\[\d+:\d+\]( \d{5}\.tokens\[\d+:\d+\])+", line) for line in lines)
        seen |= set(lines)
    assert len(seen) == 16


def test_assigned_of_a_text_is_what_its_peer_is_assigned(tmp_path: Path, elastic: Run) -> None:
    # given
    from elastic.schedule.assignment import assigned_sequences, num_train_sequences

    run_file(tmp_path)
    # when
    _, out, _ = elastic("data", "assigned", "run.toml", "--round", 3, "--slot", 1, "--roster", 4)
    # then
    total = num_train_sequences(len(read_corpus("pride_and_prejudice")), 0.05, 16)
    numbers = assigned_sequences(total, 0, "demo", 3, 1, 8, 4)
    assert out.splitlines()[:-1] == [f"text[{number * 16}:{number * 16 + 17}]" for number in numbers]


def test_assigned_finds_a_peers_slot_in_the_manifests(tmp_path: Path, elastic: Run) -> None:
    # given the genesis, which names the roster of round 1
    run_file(tmp_path)
    ann, bob = sorted(Identity.generate().peer for _ in range(2))
    (tmp_path / "state").mkdir()
    chain = genesis("demo", Digest("0" * 64), [ann, bob], ann).canonical() + b"\n"
    (tmp_path / "state" / "chain.jsonl").write_bytes(chain)
    # when
    code, out, _ = elastic("data", "assigned", "run.toml", "--round", 1, "--peer", bob)
    # then
    assert code == 0 and "for slot 1 of 2" in out
    assert elastic("data", "assigned", "run.toml", "--round", 1, "--slot", 1, "--roster", 2)[1] == out
    assert "is not in the roster of round 1" in elastic("data", "assigned", "run.toml", "--round", 1, "--peer", KEY)[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say either --peer, or --slot with --roster"),
        (["--slot", 1], "say either --peer, or --slot with --roster"),
        (["--slot", 4, "--roster", 4], "slot 4 is not in a roster of 4"),
        (["--peer", KEY], "no manifest of round 2, and so no roster"),
    ],
)
def test_assigned_wants_to_know_who(tmp_path: Path, elastic: Run, arguments: list[Any], message: str) -> None:
    run_file(tmp_path)

    code, _, err = elastic("data", "assigned", "run.toml", "--round", 3, *arguments)

    assert code == 1 and message in err


@pytest.mark.slow
def test_a_killed_prepare_goes_on(tmp_path: Path) -> None:
    # given one with two workers, killed after its first shard
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": TEXT}) + "\n" for _ in range(200)))
    command = [sys.executable, "-m", "elastic", "data", "prepare", "a.jsonl", "--shard-tokens", "200000",
               "--workers", "2", "--plain", "--out"]  # fmt: skip
    first = subprocess.Popen([*command, "out"], cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
    progress = tmp_path / "out" / "progress.jsonl"
    while first.poll() is None and not (progress.exists() and progress.read_bytes().count(b"\n") > 1):
        os.sched_yield()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out" / "index.json").exists()
    # when
    for out in ("out", "whole"):
        subprocess.run([*command, out], cwd=tmp_path, check=True, capture_output=True)
    # then
    found, whole = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole"))
    assert {name: data for name, data in found.items() if not name.endswith(".tmp")} == whole
