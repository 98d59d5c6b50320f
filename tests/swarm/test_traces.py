"""Whole swarms in virtual time, with something slow planted: the spans alone tell who, and with what."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builder import NodeExchange, Swarm

from elastic import trace
from elastic.config_local import TraceConfig
from elastic.messages import Digest, PeerId, Seconds
from elastic.peer import Peer
from elastic.tracing.culprit import Finding, findings
from elastic.tracing.links import Phase
from elastic.tracing.model import Span
from elastic.tracing.otlp import spans_in
from elastic.tracing.rounds import rounds_of

NAMES = ("ann", "bob", "cyd", "dan")


@pytest.fixture(autouse=True)
def _off_afterwards() -> Iterator[None]:
    yield
    trace.shutdown()


def spans_of(folder: Path) -> list[Span]:
    """All spans; of whom, they say themselves, as all peers are one process here."""
    trace.shutdown()
    found = []
    for line in (folder / "traces.jsonl").read_text().splitlines():
        tree = json.loads(line)
        for group in tree["resourceSpans"]:
            group["resource"] = {}
        found += spans_in(tree).spans
    return found


async def traced(folder: Path, plant: Callable[[Swarm], None], rounds: int = 5, **config: Any) -> list[Span]:
    """The spans of a short run in which something was planted."""
    async with Swarm(folder, *NAMES, rounds=rounds, round={"train_seconds": 20.0, "gather_seconds": 20.0}) as swarm:
        for node in swarm.nodes.values():
            node.lag = 0.05
        plant(swarm)
        settings = TraceConfig.model_validate({"exporter": "file", **config})
        trace.setup(
            settings, run="demo", peer=PeerId("all"), name="", state_dir=folder,
            now=lambda: 10**18 + round(swarm.clock.now() * 1e9),
        )  # fmt: skip
        swarm.start()
        await swarm.finish()
    return spans_of(folder)


def named(swarm_names: dict[str, str], found: list[Finding]) -> set[tuple[str, Phase | None]]:
    return {(swarm_names.get(each.peer or "", ""), each.phase) for each in found}


def names(folder: Path) -> dict[str, str]:
    from builder import identity

    return {identity(name).peer: name for name in NAMES}


async def test_a_peer_that_computes_slowly_is_named(tmp_path: Path) -> None:
    def plant(swarm: Swarm) -> None:
        swarm["bob"].pace = 3.0

    found = findings(rounds_of(await traced(tmp_path, plant)))
    assert [each.round for each in found] == [1, 2, 3, 4, 5]
    assert named(names(tmp_path), found) == {("bob", Phase.COMPUTE)}
    assert all(2.0 < each.lost < 3.0 for each in found)


async def test_the_validator_too(tmp_path: Path) -> None:
    def plant(swarm: Swarm) -> None:
        swarm["ann"].pace = 3.0

    found = findings(rounds_of(await traced(tmp_path, plant)))
    assert named(names(tmp_path), found) == {("ann", Phase.COMPUTE)}


@pytest.mark.parametrize("name", ["ann", "cyd"])
async def test_a_slow_download_is_named(tmp_path: Path, name: str) -> None:
    def plant(swarm: Swarm) -> None:
        swarm[name].lag = 0.5

    found = findings(rounds_of(await traced(tmp_path, plant)))
    assert named(names(tmp_path), found) == {(name, Phase.DOWNLINK)}


async def test_a_slow_upload_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = NodeExchange.fetch

    async def slowly(self: NodeExchange, digest: Digest, size_bytes: int, holders: list[PeerId]) -> bytes:
        if holders[0] == self.node.swarm["dan"].id != self.node.id:
            await self.node.swarm.clock.sleep(Seconds(2.0))
        return await fetch(self, digest, size_bytes, holders)

    monkeypatch.setattr(NodeExchange, "fetch", slowly)
    found = findings(rounds_of(await traced(tmp_path, lambda swarm: None)))
    assert named(names(tmp_path), found) == {("dan", Phase.UPLINK)}


async def test_a_slow_validator_is_named(tmp_path: Path) -> None:
    def plant(swarm: Swarm) -> None:
        def slow(peer: Peer) -> None:
            decide = peer.agreement.decide

            async def slowly(*args: Any) -> Any:
                await swarm.clock.sleep(Seconds(2.0))
                return await decide(*args)

            peer.agreement.decide = slowly  # type: ignore[method-assign]

        swarm["ann"].on_start = slow

    found = findings(rounds_of(await traced(tmp_path, plant)))
    assert named(names(tmp_path), found) == {("ann", Phase.VALIDATION)}


async def test_where_nothing_is_planted_nobody_is_named(tmp_path: Path) -> None:
    found = findings(rounds_of(await traced(tmp_path, lambda swarm: None)))
    assert named(names(tmp_path), found) == {("", None)}


async def test_every_span_has_its_parent_and_every_round_one_root(tmp_path: Path) -> None:
    spans = await traced(tmp_path, lambda swarm: None)
    ids = {(span.trace, span.id) for span in spans}
    assert len(ids) == len(spans)
    of_rounds = rounds_of(spans)
    assert len(of_rounds) == 5 and all(each.root is not None and len(each.peers) == 4 for each in of_rounds)
    inside = [span for span in spans if span.name != "round.catch_up" and span.name != "swarm.round"]
    roots = {each.root.trace for each in of_rounds if each.root is not None}
    assert all((span.trace, span.parent) in ids for span in inside if span.trace in roots)


async def test_what_a_round_tells(tmp_path: Path) -> None:
    spans = await traced(tmp_path, lambda swarm: None, rounds=2)
    last = rounds_of(spans)[-1]
    ann = next(each for peer, each in last.peers.items() if names(tmp_path)[peer] == "ann")
    assert ann.decides and sum(each.decides for each in last.peers.values()) == 1
    fetches = [span for span in ann.all("round.fetch") if span.text("peer_from") != ann.peer]
    assert len(fetches) == 3
    for fetch in fetches:
        (transfer,) = ann.inside(fetch, "round.transfer")
        givers = [event for event in transfer.events if event.name == "from"]
        assert sum(event.number("bytes") for event in givers) == fetch.number("bytes") > 0
    served = [event for each in last.peers.values() for span in each.all("round.serve") for event in span.events]
    assert {event.name for event in served} == {"to"}
    assert all(event.number("bytes") > 0 and event.text("peer") in last.peers for event in served)
    assessed = {span.text("peer_of") for span in ann.all("round.assess") if span.text("peer_of")}
    assert assessed == set(last.peers) and all("swarm.gain" in s.attributes for s in ann.all("round.assess")[:1])


async def test_all_peers_leave_the_same_rounds_out(tmp_path: Path) -> None:
    kept = {round_ for round_ in range(1, 9) if trace.sampled(trace.round_trace_id("demo", round_), 0.5)}
    spans = await traced(tmp_path, lambda swarm: None, rounds=8, sample=0.5)
    assert 0 < len(kept) < 8
    found = rounds_of(spans)
    assert {each.index for each in found} == kept
    assert all(len(each.peers) == 4 and each.root is not None for each in found)


async def test_a_round_tells_only_what_others_took_in_it(tmp_path: Path) -> None:
    # given that only some of the rounds are traced
    every = await traced(tmp_path / "all", lambda swarm: None, rounds=8)
    some = await traced(tmp_path / "some", lambda swarm: None, rounds=8, sample=0.5)

    # then these tell as much as if all were, and not what was taken in the others too
    def taken(spans: list[Span]) -> dict[int, list[float]]:
        served = [span for span in spans if span.name == "round.serve"]
        found = {int(span.number("round")): list[float]() for span in served}
        for span in served:
            found[int(span.number("round"))].append(span.number("bytes"))
        return {index: sorted(each) for index, each in found.items()}

    kept = taken(some)
    assert 0 < len(kept) < 8
    assert kept == {index: each for index, each in taken(every).items() if index in kept}
