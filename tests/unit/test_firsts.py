"""When commitments were first seen: nothing posted later moves it, and nobody gains by what was posted before."""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from elastic.errors import NetworkError
from elastic.exchange.gather import Arrival, Gathered
from elastic.firsts import Firsts, may_reveal, noting
from elastic.messages import (
    ContributionHeader,
    Digest,
    PeerCard,
    PeerId,
    PeerStage,
    RoundIndex,
    RoundPlan,
    Seconds,
    Verdict,
    digest_of,
)
from elastic.peer import Peer
from elastic.schedule.clock import ManualClock
from elastic.schedule.phases import Phases

ANN, BOB, EVE = (PeerId("12D3KooW" + letter * 44) for letter in "ABE")
WORK, OTHER = digest_of(b"work"), digest_of(b"other work")
ROUND, ANCHOR = RoundIndex(3), digest_of(b"anchor")
PLAN = RoundPlan(
    run="demo", round=ROUND, previous=digest_of(b"previous"), anchor=ANCHOR, peer=ANN, roster=(ANN, BOB, EVE), slot=0,
    inner_steps=1, seed=0, train_seconds=1.0, gather_seconds=10.0, validators=(ANN,),
)  # fmt: skip


def header(sender: PeerId, payload: Digest) -> ContributionHeader:
    return ContributionHeader(
        run="demo", round=ROUND, peer=sender, anchor=ANCHOR, proof=ANCHOR, payload=payload, size_bytes=1, steps=1,
        tokens=8, loss=1.0,
    )  # fmt: skip


def record(sender: PeerId, payload: Digest = WORK) -> bytes:
    return header(sender, payload).canonical()


def dates(firsts: Firsts, committed: float, **payloads: Digest) -> dict[str, float]:
    """What becomes of arrivals that the gathering all saw at once."""
    names = {"bob": BOB, "eve": EVE}
    arrivals = {
        names[name]: Arrival(header(names[name], payload), b"", Verdict(peer=names[name], round=ROUND), committed, 9.0)
        for name, payload in payloads.items()
    }
    dated = firsts.date(Gathered(arrivals, frozenset({ANN})))
    assert dated.unfetched == {ANN} and list(dated.arrivals) == list(arrivals)
    return {name: dated.arrivals[names[name]].committed for name in payloads}


def test_a_commitment_is_as_old_as_it_was_first_seen() -> None:
    firsts = Firsts(PLAN.roster)
    firsts.note({BOB: record(BOB)}, 1.0)
    firsts.note({BOB: record(BOB), EVE: record(EVE)}, 2.0)
    assert dates(firsts, 5.0, bob=WORK, eve=WORK) == {"bob": 1.0, "eve": 2.0}
    assert dates(firsts, 0.5, bob=WORK) == {"bob": 0.5}
    assert firsts.missing == {ANN}


def test_who_commits_to_anything_early_and_to_a_copy_later_gains_nothing() -> None:
    firsts = Firsts(PLAN.roster)
    firsts.note({EVE: record(EVE, OTHER)}, 0.1)
    firsts.note({EVE: record(EVE), BOB: record(BOB)}, 1.0)
    assert dates(firsts, 5.0, bob=WORK, eve=WORK) == {"bob": 1.0, "eve": 5.0}


def test_what_is_no_commitment_holds_no_place() -> None:
    firsts = Firsts(PLAN.roster)
    firsts.note({EVE: b"\xff garbage"}, 0.1)
    firsts.note({EVE: record(EVE)}, 1.0)
    assert dates(firsts, 5.0, eve=WORK) == {"eve": 5.0}


def test_strangers_are_not_remembered() -> None:
    firsts = Firsts([BOB])
    firsts.note({PeerId(f"stranger {number}"): record(EVE) for number in range(100)}, 0.1)
    assert firsts.missing == {BOB} and firsts._seen == {}


class Network:
    """Records appear, and the first looks fail."""

    def __init__(self, failures: int) -> None:
        self.looks, self.failures = 0, failures
        self.shown: dict[PeerId, bytes] = {}
        self.told: list[PeerCard] = []

    async def records(self, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
        assert (kind, round_) == ("contribution", ROUND)
        self.looks += 1
        if self.looks <= self.failures:
            raise NetworkError("nobody answers")
        return dict(self.shown)

    async def cards(self) -> list[PeerCard]:
        return self.told


def peer_on(network: Network, clock: ManualClock, *, sequences: int = 8, reveal: bool = False) -> Peer:
    parts: dict[str, Any] = {
        "shared": SimpleNamespace(
            scoring=SimpleNamespace(sequences=sequences), round=SimpleNamespace(reveal=reveal)
        ),
        "exchange": network, "clock": clock, "id": ANN,
    }  # fmt: skip
    return cast(Peer, SimpleNamespace(**parts))


async def test_they_are_noted_beside_the_block_and_a_network_that_fails_costs_nothing() -> None:
    clock, network = ManualClock(), Network(failures=3)
    async with noting(peer_on(network, clock), PLAN, Phases(clock, lambda _: None)) as firsts:
        await clock.sleep(Seconds(1.0))
        network.shown[BOB] = record(BOB)
        await clock.sleep(Seconds(2.0))
        network.shown |= {sender: record(sender) for sender in (ANN, EVE)}
        await clock.sleep(Seconds(1.0))
        # then it looks no more when everyone has committed
        looks = network.looks
        await clock.sleep(Seconds(5.0))
        assert network.looks == looks
    found = dates(firsts, 9.0, bob=WORK, eve=WORK)
    assert 1.0 <= found["bob"] < 1.5 and 3.0 <= found["eve"] < 3.5


async def test_nothing_is_noted_after_the_block_nor_by_who_does_not_decide_or_score() -> None:
    clock, network = ManualClock(), Network(failures=0)
    async with noting(peer_on(network, clock), PLAN, Phases(clock, lambda _: None)):
        await clock.sleep(Seconds(1.0))
    looks = network.looks
    watching = PLAN.model_copy(update={"validators": (BOB,)})
    for other, plan in ((peer_on(network, clock, sequences=0), PLAN), (peer_on(network, clock), watching)):
        async with noting(other, plan, Phases(clock, lambda _: None)):
            await asyncio.sleep(0)
            await clock.sleep(Seconds(1.0))
    assert looks > 0 and network.looks == looks


async def revealed_after(network: Network, clock: ManualClock, **changes: bool) -> float:
    begin = clock.now()
    await may_reveal(peer_on(network, clock, **changes), PLAN, Phases(clock, lambda _: None))
    return clock.now() - begin


async def test_a_payload_is_kept_back_until_everyone_has_committed_or_half_of_the_deadline_has_gone() -> None:
    clock, network = ManualClock(), Network(failures=2)
    network.shown = {ANN: record(ANN), BOB: record(BOB)}
    # nobody waits unless the run says so
    assert await revealed_after(network, clock) == 0
    # for one that does not come half of the deadline is waited
    assert 5.0 <= await revealed_after(network, clock, reveal=True) < 5.5
    # not at all for one that has committed, or is leaving
    network.told = [PeerCard(peer=EVE, name="eve", run="demo", shared=ANCHOR, stage=PeerStage.LEAVING, round=ROUND)]
    assert await revealed_after(network, clock, reveal=True) == 0
    network.told, network.shown[EVE] = [], record(EVE)
    assert await revealed_after(network, clock, reveal=True) == 0
