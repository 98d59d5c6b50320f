"""The quickstart, small: everything real, two workers in one peer, and nothing left behind."""

import json
import re
from pathlib import Path

import pytest

from elastic.actors.devnet import MEANING
from elastic.actors.journal import newest_statuses
from tests.actors.conftest import Program, processes, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RAY = r"ray::|raylet|gcs_server"
KEYS = {"round", "peer", "loss", "tokens", "bytes_out", "bytes_in", "digest", "verdicts", "seconds"}


@pytest.mark.parametrize(("reducer", "workers"), [("sparseloco", "2,1,1"), ("average", "1")])
def test_a_quickstart_ends_with_equal_anchors_and_leaves_nothing(tmp_path: Path, reducer: str, workers: str) -> None:
    # given nothing but the command
    peers, rounds = len(workers.split(",")) if "," in workers else 2, 3
    before = {line.split()[0] for line in processes(RAY)}
    program = Program(
        ["quickstart", "--peers", str(peers), "--rounds", str(rounds), "--inner-steps", "3", "--reducer", reducer,
         "--workers", workers, "--report", "report.jsonl", "--plain", "--metrics"],
        tmp_path,
    )  # fmt: skip
    try:
        # when it runs
        code = program.ends()
    finally:
        program.kill()
    output = program.output()
    # then it succeeds, without a word from the libraries below
    assert code == 0, output
    assert not re.search(r"Traceback|raylet|core_worker|Warning|WARN", output), output
    assert "bit-identical on all peers after every round" in output
    # and reports one object per peer and round, with equal digests in each round
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert len(lines) == peers * rounds
    assert all(set(line) >= KEYS for line in lines)
    for index in range(1, rounds + 1):
        mine = [line for line in lines if line["round"] == index]
        assert len({line["digest"] for line in mine}) == 1
        assert all(line["tokens"] > 0 for line in mine)
        if index == 1:  # later ones have deadlines that a busy machine may miss
            assert all(line["counted"] and set(line["verdicts"].values()) == {"accepted"} for line in mine), mine
    # and each peer said where its numbers are, and to measure them disturbed nothing
    assert output.count("metrics of peer-") == peers
    assert [status.restarts for status in newest_statuses(tmp_path / "runs")] == [0] * peers
    # and the run replays from its records to that anchor
    audit = Program(["replay", *map(str, tmp_path.glob("runs/*"))], tmp_path)
    assert audit.ends() == 0, audit.output()
    last = max(lines, key=lambda line: line["round"])
    assert f"The anchor of round {rounds + 1}: {last['digest']}" in audit.output()
    # and the trace of each round is one trace, with one root
    spans = _spans(tmp_path)
    roots = [span for span in spans if span["name"] == "swarm.round"]
    assert len(roots) == rounds
    for root in roots:
        members = [s for s in spans if s["name"] == "round" and s["traceId"] == root["traceId"]]
        assert len(members) == peers and all(member["parentSpanId"] == root["spanId"] for member in members)
    # in which nothing dangles, whichever process of a peer it is from
    ids = {span["spanId"] for span in spans}
    inside = [span for span in spans if span["traceId"] in {root["traceId"] for root in roots}]
    assert all(span["parentSpanId"] in ids for span in inside if span not in roots)
    carried = {"round.transfer"} if reducer == "sparseloco" else set()  # who averages holds all payloads: they are one
    assert {"worker.inner_steps", "worker.outer_step", "round.serve"} | carried <= {s["name"] for s in inside}
    # and which says who was slow
    slow = Program(["trace", "slow", *map(str, tmp_path.glob("runs/*"))], tmp_path)
    assert slow.ends() == 0, slow.output()
    assert f"of {rounds} rounds" in slow.output()
    # and nothing runs on
    until(lambda: not _left(tmp_path, before), f"an end of {_left(tmp_path, before)}")


def _left(folder: Path, before: set[str]) -> set[str]:
    """Processes of the swarm: those that name its folder, and Ray's, which do not; `before` has older ones' ids."""
    rays = {line for line in processes(RAY) if line.split()[0] not in before}
    return set(processes(re.escape(str(folder)))) | rays


def _spans(folder: Path) -> list[dict]:
    return [
        span
        for file in folder.glob("runs/*/*/traces.jsonl")
        for line in file.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_ctrl_c_stops_a_quickstart_and_leaves_nothing(tmp_path: Path) -> None:
    # given a quickstart in its first rounds
    before = {line.split()[0] for line in processes(RAY)}
    program = Program(["quickstart", "--peers", "2", "--rounds", "500", "--inner-steps", "2", "--plain"], tmp_path)
    try:
        program.prints(r"round +2/")
        # when it is interrupted
        import signal

        program.process.send_signal(signal.SIGINT)
        # then it says so, and nothing runs on
        assert program.ends() == 130
        assert "nothing is left running" in program.output()
        until(lambda: not _left(tmp_path, before), f"an end of {_left(tmp_path, before)}")
    finally:
        program.kill()


def test_a_swarm_whose_processes_are_killed_ends_with_equal_anchors_and_leaves_nothing(tmp_path: Path) -> None:
    # given a quickstart that kills one of its processes every few seconds
    before = {line.split()[0] for line in processes(RAY)}
    flags = ["--chaos", "8", "--seed", "3", "--rounds", "30", "--inner-steps", "4", "--plain"]
    program = Program(["quickstart", *flags], tmp_path)
    try:
        # when it runs
        code = program.ends()
    finally:
        program.kill()
    output = program.output()
    # then every peer comes to the same anchor
    assert code == 0, output
    assert not re.search(r"Traceback|raylet|core_worker|Warning|WARN|DIFFERENT", output), output
    assert len(re.findall(r"^chaos: killed", output, re.MULTILINE)) >= 3
    assert "bit-identical on all peers after every round that they lived to see, and now" in output
    # and the run replays from its records
    audit = Program(["replay", *map(str, tmp_path.glob("runs/*"))], tmp_path)
    assert audit.ends() == 0, audit.output()
    # and nothing runs on
    until(lambda: not _left(tmp_path, before), f"an end of {_left(tmp_path, before)}")


def test_a_quickstart_on_a_local_devnet_sets_weights_and_explains_scores(tmp_path: Path) -> None:
    # given a subnet as incentive
    before = {line.split()[0] for line in processes(RAY)}
    program = Program(
        ["quickstart", "--peers", "2", "--rounds", "10", "--inner-steps", "5", "--incentive", "subnet", "--plain"],
        tmp_path,
    )  # fmt: skip
    try:
        code = program.ends()
    finally:
        program.kill()
    output = program.output()
    # then weights landed on the chain, which says that it is none that counts
    assert code == 0, output
    assert "a local devnet at ws://127.0.0.1:" in output and "which is no real chain" in output
    assert "set by peer-1: peer-2 1.000" in output and "set by peer-2: none" not in output
    assert MEANING in output
    # and its scores can be explained, and compared with others
    (folder,) = tmp_path.glob("runs/*")
    for command, told in (
        (["score", "peer-2", str(folder)], "on others' tokens"),
        (["incentives", "compare", str(folder)], "uniform"),
    ):
        explained = Program(command, tmp_path)
        assert explained.ends() == 0 and told in explained.output(), explained.output()
    until(lambda: not _left(tmp_path, before), f"an end of {_left(tmp_path, before)}")
