"""What a worker does with errors of the session's verbs, and what it tells of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_trace import PEERS, plan
from torch import OutOfMemoryError

from elastic import trace
from elastic.actors.mailbox import Command
from elastic.actors.ray_train import room_for
from elastic.actors.worker import execute
from elastic.config_local import TraceConfig
from elastic.errors import DivergedError, TrainerFailedError
from elastic.tracing.files import read_files, trace_files


def session(error: Exception, world_size: int) -> Any:
    def verb() -> None:
        raise error

    return SimpleNamespace(verb=verb, worker=SimpleNamespace(world_size=world_size))


def test_alone_a_bug_travels_back_as_one_line() -> None:
    reply = execute(session(RuntimeError("first\nsecond"), 1), Command(1, "verb", ()))
    assert isinstance(reply.error, TrainerFailedError) and "\n" not in str(reply.error)


def test_our_own_errors_travel_back_as_themselves() -> None:
    reply = execute(session(DivergedError("nan"), 2), Command(1, "verb", ()))
    assert isinstance(reply.error, DivergedError)


def test_when_a_partner_died_the_worker_fails_too_so_that_the_group_is_restarted() -> None:
    with pytest.raises(RuntimeError, match="closed by peer"):
        execute(session(RuntimeError("Connection closed by peer"), 2), Command(1, "verb", ()))


def test_what_a_worker_does_for_a_round_is_a_span_of_it_and_each_step_one_of_the_peers_own(tmp_path: Path) -> None:
    # given a session that takes three steps, and a peer that waits for it in its round
    told: list[int] = []

    def inner_steps(plan: Any) -> str:
        for step in range(3):
            working.on_step(step, 0.0)
        return "done"

    def on_step(step: int, loss: Any) -> bool:
        told.append(step)
        return False

    working: Any = SimpleNamespace(
        inner_steps=inner_steps, state=lambda: "state", on_step=on_step, worker=SimpleNamespace(rank=1, world_size=1)
    )
    trace.setup(TraceConfig(fine=True), run="demo", peer=PEERS[0], name="", state_dir=tmp_path)
    with trace.round_span(plan()), trace.span(trace.INNER):
        headers = trace.carrier()
    # when
    reply = execute(working, Command(1, "inner_steps", (None,), headers, asked=0.0))
    assert execute(working, Command(2, "state", (), headers, asked=0.0)).value == "state"
    assert execute(working, Command(3, "state", ())).value == "state"
    trace.shutdown()
    # then
    assert (reply.value, told, working.on_step) == ("done", [0, 1, 2], on_step)
    spans = {span.name: span for span in read_files(trace_files(tmp_path)).spans}
    worker = spans.pop("worker.inner_steps")
    assert worker.parent == spans["round.inner"].id and worker.trace == spans["round.inner"].trace
    assert worker.number("rank") == 1 and worker.number("waited_s") > 0
    assert set(spans) == {"round", "round.inner", "fine.round", "fine.inner_steps", "fine.step"}


@pytest.mark.parametrize(
    ("there_is", "workers"),
    [({"CPU": 8.0, "GPU": 8.0}, 4), ({"CPU": 8.0, "GPU": 3.0}, 3), ({"CPU": 8.0}, 1), ({"GPU": 4.0}, 4)],
)
def test_a_group_is_started_with_what_is_left_of_the_cluster(there_is: dict[str, float], workers: int) -> None:
    assert room_for(4, {"GPU": 1.0}, there_is) == workers


def test_parts_of_a_cpu_add_up() -> None:
    assert room_for(20, {"CPU": 0.1}, {"CPU": 1.0}) == 10 and room_for(3, {"CPU": 0.0}, {}) == 3


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError("x")]
)
def test_whoever_runs_out_of_memory_is_told_the_knobs_and_not_started_again(error: Exception) -> None:
    reply = execute(session(error, 2), Command(1, "verb", ()))
    assert isinstance(reply.error, TrainerFailedError)
    assert all(knob in str(reply.error) for knob in ("micro_batch", "recompute", "bf16", "local.ray.workers"))
