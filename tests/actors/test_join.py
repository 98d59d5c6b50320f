"""Peers joined by hand: clusters of their own or shared, interrupted, killed, and come back."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from elastic.wire.signing import Identity
from tests.actors.conftest import ACTORS, ELASTIC, Program, environment, processes, ray_cluster, run_file, shared, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def reports(folder: Path) -> dict[int, dict[str, dict]]:
    """Round → peer name → report."""
    found: dict[int, dict[str, dict]] = {}
    path = folder / "report.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        report = json.loads(line)
        found.setdefault(report["round"], {})[report["name"]] = report
    return found


def validator_of(folder: Path, name: str) -> str:
    """Make the key of the peer that will be the validator."""
    return Identity.load_or_create(folder / name / "peer.key").peer


def gone(folder: Path) -> bool:
    """No p2pd and no actor of the test's peers is left."""
    return not processes(rf"p2pd.*{re.escape(str(folder))}") and not processes("|".join(ACTORS))


def test_two_clusters_one_run_interrupted_and_resumed(tmp_path: Path, bootstrap: str) -> None:
    # given two peers, each with a Ray cluster of its own, that know only a bootstrap address
    common = shared(validator_of(tmp_path, "ann"), min_peers=2)
    with ray_cluster() as first, ray_cluster() as second:
        ann = Program(
            ["join", str(run_file(tmp_path / "ann.toml", shared=common, bootstrap=bootstrap, ray=first))], tmp_path
        )
        bob_file = run_file(tmp_path / "bob.toml", shared=common, bootstrap=bootstrap, ray=second)
        bob = Program(["join", str(bob_file)], tmp_path)
        try:
            # when both train
            until(lambda: len(reports(tmp_path).get(3, {})) == 2, "round 3 on both peers")
            # and one is interrupted
            bob.process.send_signal(signal.SIGINT)
            assert bob.ends() == 0, bob.output()
            assert "Traceback" not in bob.output()
            last = max(index for index, by in reports(tmp_path).items() if "bob" in by)
            # then the other goes on without it
            until(lambda: max(reports(tmp_path)) >= last + 3, "rounds without bob")
            # and the one that left continues where it was, and is counted again
            bob = Program(["join", str(bob_file)], tmp_path)
            until(
                lambda: any(
                    by.get("bob", {}).get("counted") for index, by in reports(tmp_path).items() if index > last
                ),
                f"bob counted after round {last}",
            )
            ann.process.send_signal(signal.SIGTERM)
            assert ann.ends() == 0, ann.output()
            bob.process.send_signal(signal.SIGTERM)
            assert bob.ends() == 0, bob.output()
        finally:
            for program in (ann, bob):
                program.kill()
        # then every round that both saw ended with the same anchor, and nothing of them is left on the clusters
        both = [by for by in reports(tmp_path).values() if len(by) == 2]
        assert both and all(by["ann"]["digest"] == by["bob"]["digest"] for by in both)
        until(lambda: gone(tmp_path), f"an end of {processes('|'.join(ACTORS))}")


def test_a_peer_whose_processes_are_killed_comes_back_until_its_driver_is(tmp_path: Path, cluster: str) -> None:
    # given a peer that trains
    path = run_file(
        tmp_path / "ann.toml",
        shared=shared(validator_of(tmp_path, "ann")),
        bootstrap=None,
        ray=cluster,
        more="workers = 2",
    )
    ann = Program(["join", str(path)], tmp_path)
    try:
        until(lambda: 3 in reports(tmp_path), "round 3")
        daemon = rf"p2pd.*{re.escape(str(tmp_path))}"
        # what a dead life had reserved of the four CPUs must be free for the next: two are needed each time
        for victim in ("ray::TrainController", "ray::PeerActor", daemon, "ray::PeerActor"):
            # when one of its processes is killed
            line = until_one(victim)
            before = max(reports(tmp_path))
            os.kill(int(line.split()[0]), signal.SIGKILL)
            # then it goes on by itself
            until(lambda before=before: max(reports(tmp_path)) >= before + 2, f"rounds after the death of {victim}")
        # and it is told
        assert "restarting in 1 s: its process died" in ann.output()
        assert '"restarts":4' in (tmp_path / "ann" / "status.json").read_text()
        # and no round was decided twice
        chain = [json.loads(line) for line in (tmp_path / "ann" / "chain.jsonl").read_text().splitlines()]
        assert [entry["round"] for entry in chain] == list(range(len(chain)))
        # when the process that the user sees is killed
        ann.process.kill()
        # then nothing survives it
        until(lambda: gone(tmp_path), f"an end of {processes('|'.join(ACTORS))}")
    finally:
        ann.kill()


def until_one(pattern: str) -> str:
    until(lambda: bool(processes(pattern)), pattern)
    return processes(pattern)[0]


def test_two_peers_share_a_cluster_and_a_third_runs_another_configuration(
    tmp_path: Path, cluster: str, bootstrap: str
) -> None:
    # given a peer that trains
    common = shared(validator_of(tmp_path, "ann"))
    ann = Program(
        ["join", str(run_file(tmp_path / "ann.toml", shared=common, bootstrap=bootstrap, ray=cluster))], tmp_path
    )
    programs = [ann]
    try:
        until(lambda: 2 in reports(tmp_path), "round 2")
        # when a stranger comes with another [shared] section
        other = shared(validator_of(tmp_path, "ann"), steps=3)
        eve = Program(
            ["join", str(run_file(tmp_path / "eve.toml", shared=other, bootstrap=bootstrap, ray=cluster))], tmp_path
        )
        programs.append(eve)
        # then it is told so in one line
        assert eve.ends() == 1
        assert "error: the swarm runs" in eve.output() and "Traceback" not in eve.output()
        # when the same peer is started twice
        again = Program(["join", str(tmp_path / "ann.toml")], tmp_path)
        programs.append(again)
        # then it is told so
        assert again.ends() == 1
        assert "already runs" in again.output()
        # when a second peer joins on the same cluster, in mid-run
        bob = Program(
            ["join", str(run_file(tmp_path / "bob.toml", shared=common, bootstrap=bootstrap, ray=cluster))], tmp_path
        )
        programs.append(bob)
        # then it is counted, on the same anchors
        until(lambda: any(by.get("bob", {}).get("counted") for by in reports(tmp_path).values()), "bob counted")
        both = [by for by in reports(tmp_path).values() if len(by) == 2]
        assert both and all(by["ann"]["digest"] == by["bob"]["digest"] for by in both)
        for program in (bob, ann):
            program.process.send_signal(signal.SIGTERM)
        assert bob.ends() == ann.ends() == 0
    finally:
        for program in programs:
            program.kill()


def test_an_evaluator_measures_what_another_trains(tmp_path: Path, cluster: str, bootstrap: str) -> None:
    pytest.importorskip("lm_eval")
    # given a peer that trains and one that evaluates
    common = shared(validator_of(tmp_path, "ann"), rounds=30)
    eve_file = run_file(
        tmp_path / "eve.toml", shared=common, bootstrap=bootstrap, ray=cluster,
        more="[local.evaluator]\nevery = 10\nlimit = 8",
    )  # fmt: skip
    eve = Program(["join", str(eve_file)], tmp_path)
    ann = Program(
        ["join", str(run_file(tmp_path / "ann.toml", shared=common, bootstrap=bootstrap, ray=cluster))], tmp_path
    )
    try:
        # when the run is over
        assert (ann.ends(), eve.ends()) == (0, 0), eve.output()
        # then what it measured is of anchors that the run agreed on, the last one among them
        chain = [json.loads(line) for line in (tmp_path / "ann" / "chain.jsonl").read_text().splitlines()]
        agreed = {entry["round"]: entry["anchor"] for entry in chain}
        agreed[31] = max(reports(tmp_path).items())[1]["ann"]["digest"]
        found = [json.loads(line) for line in (tmp_path / "eve" / "evaluations.jsonl").read_text().splitlines()]
        assert found[-1]["round"] == 31
        for each in found:
            assert each["round"] in (1, 11, 21, 31) and each["anchor"] == agreed[each["round"]]
            assert [result["task"] for result in each["results"]] == ["bits_per_byte", "facts"]
        assert "evaluated  | before round 31: bits_per_byte" in eve.output()
        # and it took no part
        assert all(len(entry["roster"]) == 1 for entry in chain)
        assert not any(by["eve"]["contributed"] for by in reports(tmp_path).values() if "eve" in by)
    finally:
        for program in (ann, eve):
            program.kill()
    until(lambda: gone(tmp_path), f"an end of {processes('|'.join(ACTORS))}")


def test_a_peer_is_submitted_as_a_job_and_stopped_as_one(tmp_path: Path) -> None:
    # given a cluster that takes jobs
    file = run_file(tmp_path / "ann.toml", shared=shared(validator_of(tmp_path, "ann")), bootstrap=None, ray="auto")
    with ray_cluster(jobs=True) as address:

        def ray_job(*args: str) -> subprocess.CompletedProcess[str]:
            command = [str(Path(sys.executable).with_name("ray")), "job", *args]
            return subprocess.run(
                command, env=environment(RAY_ADDRESS=address), capture_output=True, text=True, check=False, timeout=300
            )

        # when a peer is submitted, once the agent that takes jobs is there
        submit = ["submit", "--no-wait", "--submission-id", "ann", "--", *ELASTIC, "join", str(file)]
        until(lambda: ray_job(*submit).returncode == 0, "an agent")
        until(lambda: 2 in reports(tmp_path), "round 2")
        # and stopped
        ray_job("stop", "ann")
        # then it leaves as it does on Ctrl-C
        assert ray_job("logs", "ann").stdout.rstrip().endswith("left")
        until(lambda: gone(tmp_path), f"an end of {processes('|'.join(ACTORS))}")


def test_no_ray_says_how_to_start_it(tmp_path: Path) -> None:
    path = run_file(
        tmp_path / "ann.toml", shared=shared(validator_of(tmp_path, "ann")), bootstrap=None, ray="127.0.0.1:9"
    )
    ann = Program(["join", str(path)], tmp_path)
    assert ann.ends() == 1
    assert "ray start --head" in ann.output() and "Traceback" not in ann.output()


def test_an_unreachable_bootstrap_and_a_taken_port_end_with_advice(tmp_path: Path, cluster: str) -> None:
    # given a peer whose only entry point is nobody
    nobody = Identity.generate().peer
    ann_file = run_file(
        tmp_path / "ann.toml",
        shared=shared(validator_of(tmp_path, "bob")),
        bootstrap=f"/ip4/127.0.0.1/tcp/9/p2p/{nobody}",
        ray=cluster,
    )
    ann_file.write_text(ann_file.read_text().replace("bootstrap_seconds = 20", "bootstrap_seconds = 2"))
    # and one whose port is another's
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        bob_file = run_file(
            tmp_path / "bob.toml", shared=shared(validator_of(tmp_path, "bob")), bootstrap=None, ray=cluster
        )
        bob_file.write_text(bob_file.read_text().replace("[local.network]", f"[local.network]\nport = {port}"))
        # when they join
        for file, says in ((ann_file, nobody), (bob_file, f"port {port} is in use")):
            program = Program(["join", str(file)], tmp_path)
            # then each is told in one line
            assert program.ends() == 1
            last = program.output().splitlines()[-1]
            assert last.startswith("error: ") and says in last
            assert "Traceback" not in program.output()
    until(lambda: gone(tmp_path), "an end of the peers' actors")
