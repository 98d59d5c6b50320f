"""Gathering: commitments as they appear, payloads by digest, until everyone arrived, it is decided, or it is time."""

import asyncio
from collections.abc import Sequence

import pytest

from elastic.exchange.gather import CONTRIBUTION, Arrival, Checks, Until, gather
from elastic.exchange.memory import MemoryExchange, MemoryNetwork
from elastic.messages import (
    ContributionHeader,
    Digest,
    PeerCard,
    PeerId,
    PeerStage,
    RejectReason,
    RoundIndex,
    RoundPlan,
    Seconds,
    Verdict,
    digest_of,
)
from elastic.schedule.clock import ManualClock
from elastic.wire.signing import Identity
from elastic.wire.tree import blob_digest

ANN, BOB, CYD = sorted((Identity.generate() for _ in range(3)), key=lambda one: one.peer)
ROUND, ANCHOR = RoundIndex(3), digest_of(b"anchor")
PLAN = RoundPlan(
    run="demo", round=ROUND, previous=digest_of(b"previous"), anchor=ANCHOR, peer=ANN.peer,
    roster=(ANN.peer, BOB.peer, CYD.peer), slot=0, inner_steps=1, seed=0, train_seconds=1.0, gather_seconds=10.0,
)  # fmt: skip


class Scene:
    """Three exchanges on one clock; Ann gathers."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = MemoryNetwork(self.clock.now, sleep=self.clock.sleep)
        self.exchanges = {one.peer: self.network.join(one.peer, "demo") for one in (ANN, BOB, CYD)}
        self.decides_at = float("inf")

    def __getitem__(self, one: Identity) -> MemoryExchange:
        return self.exchanges[one.peer]

    async def commit(self, one: Identity, payload: bytes) -> None:
        header = ContributionHeader(
            run="demo", round=ROUND, peer=one.peer, anchor=ANCHOR, proof=ANCHOR, payload=blob_digest(payload),
            size_bytes=len(payload), steps=1, tokens=8, loss=1.0,
        )  # fmt: skip
        await self[one].post(CONTRIBUTION, ROUND, one.sign(header).canonical())

    async def contribute(self, one: Identity, payload: bytes) -> None:
        await self.commit(one, payload)
        await self[one].provide(payload)

    async def gather(
        self, *, seconds: float = 10.0, patience: float = 0.0, plan: RoundPlan = PLAN
    ) -> dict[PeerId, Arrival]:
        """The arrivals; `unfetched` is kept."""

        async def check(header: ContributionHeader, payload: bytes) -> Verdict:
            bad = RejectReason.MALFORMED if payload == b"garbage" else None
            return Verdict(peer=header.peer, round=header.round, rejected=bad)

        async def decided() -> bool:
            return self.clock.now() >= self.decides_at

        def check_first(sender: PeerId, header: ContributionHeader) -> Verdict:
            large = RejectReason.OVERSIZED if header.size_bytes > 100 else None
            return Verdict(peer=sender, round=header.round, rejected=large)

        deadline = Seconds(self.clock.now() + seconds)
        until = Until(deadline, decided, patience=patience)
        gathered = await gather(self[ANN], self.clock, plan, checks=Checks(check_first, check), until=until)
        self.unfetched = gathered.unfetched
        return gathered.arrivals

    async def later(self, seconds: float, *what: object) -> None:
        """Run these coroutines after that much virtual time."""
        await self.clock.sleep(Seconds(seconds))
        for each in what:
            await each  # type: ignore[misc]


async def together(scene: Scene, *others: object, seconds: float = 10.0) -> dict[PeerId, Arrival]:
    """Gather while the other coroutines run."""
    tasks = [asyncio.ensure_future(other) for other in others]  # type: ignore[call-overload]
    arrivals = await scene.gather(seconds=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return arrivals


async def test_it_ends_as_soon_as_everyone_has_arrived() -> None:
    # given
    scene = Scene()
    for one in (ANN, BOB, CYD):
        await scene.contribute(one, one.peer.encode())
    # when
    arrivals = await scene.gather()
    # then
    assert {sender: arrival.payload for sender, arrival in arrivals.items()} == {
        one.peer: one.peer.encode() for one in (ANN, BOB, CYD)
    }
    assert all(arrival.verdict.accepted for arrival in arrivals.values())
    assert scene.clock.now() < 1.0


async def test_the_deadline_ends_it_with_those_who_came() -> None:
    # given
    scene = Scene()
    await scene.contribute(BOB, b"bob's")
    # when
    arrivals = await scene.gather(seconds=5.0)
    # then
    assert set(arrivals) == {BOB.peer}
    assert 5.0 <= scene.clock.now() < 5.5


async def test_a_decision_ends_it() -> None:
    # given
    scene = Scene()
    scene.decides_at = 2.0
    await scene.contribute(BOB, b"bob's")
    # when
    arrivals = await scene.gather()
    # then
    assert set(arrivals) == {BOB.peer}
    assert 2.0 <= scene.clock.now() < 2.5


async def test_arrivals_know_when_they_committed_and_when_they_were_complete() -> None:
    # given Cyd commits after one second, and its bytes are there after three
    scene = Scene()
    await scene.contribute(ANN, b"ann's")
    await scene.contribute(BOB, b"bob's")
    # when
    arrivals = await together(
        scene, scene.later(1.0, scene.commit(CYD, b"cyd's")), scene.later(3.0, scene[CYD].provide(b"cyd's"))
    )
    # then
    assert list(arrivals)[-1] == CYD.peer
    assert arrivals[BOB.peer].committed == 0.0
    assert 1.0 <= arrivals[CYD.peer].committed < 1.5
    assert 3.0 <= arrivals[CYD.peer].seconds < 6.0


async def test_who_commits_to_bytes_that_never_come_has_not_arrived() -> None:
    # given
    scene = Scene()
    await scene.contribute(ANN, b"ann's")
    await scene.commit(BOB, b"never provided")
    await scene.contribute(CYD, b"cyd's")
    # when
    arrivals = await scene.gather(seconds=4.0)
    # then it is known apart from one who said nothing
    assert set(arrivals) == {ANN.peer, CYD.peer}
    assert scene.unfetched == {BOB.peer}


@pytest.mark.parametrize(("others", "ends"), [(0, 10.0), (6, 4.0)])
async def test_patience_is_for_much_that_is_on_its_way_and_not_for_who_withholds_its_bytes(
    others: int, ends: float
) -> None:
    # given one of three whose bytes do not come, or one of nine
    scene = Scene()
    roster = (*PLAN.roster, *(Identity.generate().peer for _ in range(others)))
    await scene.contribute(ANN, b"ann's")
    await scene.commit(BOB, b"never provided")
    await scene.contribute(CYD, b"cyd's")
    # when rounds before came to nothing
    await scene.gather(seconds=4.0, patience=6.0, plan=PLAN.model_copy(update={"roster": roster}))
    # then
    assert ends <= scene.clock.now() < ends + 0.5


async def test_patience_is_not_for_who_did_not_even_commit() -> None:
    scene = Scene()
    await scene.contribute(ANN, b"ann's")
    await scene.gather(seconds=4.0, patience=6.0)
    assert 4.0 <= scene.clock.now() < 4.5


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"{}", b"[]", b"null", b'{"run": "demo"}', b"{" * 500])
async def test_garbage_is_a_verdict(body: bytes) -> None:
    # given
    scene = Scene()
    await scene.contribute(ANN, b"ann's")
    await scene.contribute(CYD, b"cyd's")
    await scene[BOB].post(CONTRIBUTION, ROUND, body)
    # when
    arrivals = await scene.gather()
    # then
    assert arrivals[BOB.peer].verdict.rejected is RejectReason.MALFORMED
    assert arrivals[BOB.peer].payload is None
    assert arrivals[ANN.peer].verdict.accepted and arrivals[CYD.peer].verdict.accepted
    assert scene.clock.now() < 1.0


async def test_a_refused_header_costs_no_download() -> None:
    # given
    scene = Scene()
    await scene.contribute(ANN, b"ann's")
    await scene.contribute(BOB, bytes(5000))
    await scene.contribute(CYD, b"cyd's")
    # when
    arrivals = await scene.gather()
    # then
    assert arrivals[BOB.peer].verdict.rejected is RejectReason.OVERSIZED
    assert arrivals[BOB.peer].payload is None
    assert (await scene[BOB].traffic())[0] < 5000


async def test_a_refused_payload_is_not_kept() -> None:
    # given
    scene = Scene()
    await scene.contribute(BOB, b"garbage")
    # when
    arrivals = await scene.gather(seconds=1.0)
    # then
    assert arrivals[BOB.peer].verdict.rejected is RejectReason.MALFORMED
    assert arrivals[BOB.peer].payload is None


async def test_strangers_are_not_looked_at() -> None:
    # given
    scene = Scene()
    stranger = Identity.generate()
    scene.exchanges[stranger.peer] = scene.network.join(stranger.peer, "demo")
    await scene.contribute(stranger, b"stranger's")
    # when
    arrivals = await scene.gather(seconds=1.0)
    # then
    assert arrivals == {}
    assert not scene.unfetched


async def test_a_payload_is_had_from_others_when_its_author_is_cut_off() -> None:
    # given Cyd has Bob's bytes too
    scene = Scene()
    await scene.contribute(BOB, b"bob's")
    await scene[CYD].provide(b"bob's")
    header = scene.network.records["demo", CONTRIBUTION, ROUND][BOB.peer]
    scene.network.cut(BOB.peer)
    asked: list[Sequence[PeerId]] = []
    fetch = scene[ANN].fetch

    async def recorded(digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        asked.append(holders)
        return await fetch(digest, size_bytes, holders)

    scene[ANN].fetch = recorded  # type: ignore[method-assign]
    scene[ANN]._own[CONTRIBUTION, ROUND] = b"unreadable"

    async def records(kind: str, round_: RoundIndex) -> dict[PeerId, bytes]:
        return {BOB.peer: header}

    scene[ANN].records = records  # type: ignore[method-assign]
    # when
    arrivals = await scene.gather(seconds=1.0)
    # then
    assert arrivals[BOB.peer].payload == b"bob's"
    assert asked[0][0] == BOB.peer and CYD.peer in asked[0]


async def test_nothing_runs_on_when_it_has_ended() -> None:
    # given a download that would be tried for ever
    scene = Scene()
    await scene.commit(BOB, b"never provided")
    await scene.gather(seconds=1.0)
    tries = 0

    async def counted(*_: object) -> bytes:
        nonlocal tries
        tries += 1
        return b""

    scene[ANN].fetch = counted  # type: ignore[method-assign]
    # when
    await scene.clock.sleep(Seconds(30.0))
    # then
    assert tries == 0


async def test_nobody_waits_for_who_said_goodbye() -> None:
    # given two who contribute, and one who leaves instead
    scene = Scene()
    await scene.contribute(ANN, b"a")
    await scene.contribute(BOB, b"b")
    card = PeerCard(peer=CYD.peer, run="demo", shared=ANCHOR, stage=PeerStage.LEAVING, round=ROUND)
    await scene[CYD].announce(card)
    # when one gathers
    arrivals = await scene.gather(seconds=10.0)
    # then it has the others, long before the deadline
    assert set(arrivals) == {ANN.peer, BOB.peer}
    assert scene.clock.now() < 5.0


async def test_what_one_look_shows_has_no_order() -> None:
    # given a clock that never stands still
    scene = Scene()
    await scene.contribute(BOB, b"bob")
    await scene.contribute(CYD, b"cyd")
    now, ticks = scene.clock.now, iter(range(10**6))
    scene.clock.now = lambda: Seconds(now() + next(ticks) * 1e-6)  # type: ignore[method-assign]
    # when
    arrivals = await scene.gather(seconds=1.0)
    # then whom the DHT names first was not first
    assert arrivals[BOB.peer].committed == arrivals[CYD.peer].committed
