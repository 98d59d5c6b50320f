"""A blob among many peers, in virtual time: what the origin uploads, how long it takes, and who cannot spoil it."""

import pytest

from elastic.messages import PeerId
from tests.sim.exchange import SimSwarm

RATE = 2.5e6
"""Bytes per second."""
CHUNKS = 200
COPY_SECONDS = CHUNKS * 256 * 1024 / RATE


def fetched_by_all(swarm: SimSwarm) -> float:
    """Everyone begins at once; gives when the last was done."""
    others = list(swarm.peers.values())[1:]
    for peer in others:
        swarm.start(peer.name)
    swarm.run(100 * COPY_SECONDS)
    ends = [peer.done_at for peer in others if peer.dies_at == float("inf")]
    assert None not in ends
    return max(end for end in ends if end is not None)


@pytest.mark.parametrize("receivers", [1, 2, 8, 16])
def test_the_origin_uploads_about_one_copy(receivers: int) -> None:
    # given peers with equal links
    swarm = SimSwarm(CHUNKS, [RATE] * (receivers + 1))
    # when all fetch from all
    seconds = fetched_by_all(swarm)
    # then the origin gave about one copy, hardly anything was sent in vain, and it took little longer than one copy
    sent = sum(peer.sent for peer in swarm.peers.values())
    assert swarm.origin.sent < 1.35 * CHUNKS
    assert sent < 1.02 * CHUNKS * receivers
    assert seconds < 1.5 * COPY_SECONDS


def test_slow_peers_hold_nobody_up_for_long() -> None:
    # given peers half of which send at a twelfth of the others' speed
    swarm = SimSwarm(CHUNKS, [RATE] * 5 + [RATE / 12] * 4)
    # then the origin gives more than once what only they got, rather than let all wait
    assert fetched_by_all(swarm) < 2.5 * COPY_SECONDS
    assert swarm.origin.sent < 2.5 * CHUNKS


@pytest.mark.parametrize("seed", range(3))
def test_an_origin_that_dies_after_one_copy_is_not_missed(seed: int) -> None:
    swarm = SimSwarm(CHUNKS, [RATE] * 7, seed)
    swarm.origin.dies_at = 1.15 * COPY_SECONDS
    assert fetched_by_all(swarm) < 2 * COPY_SECONDS


@pytest.mark.parametrize("seed", range(3))
def test_peers_that_die_or_lie_cost_no_more_than_they_took(seed: int) -> None:
    # given eight receivers, two of which die half-way; two others send wrong bytes
    swarm = SimSwarm(CHUNKS, [RATE] * 9, seed)
    peers = list(swarm.peers.values())
    for dying in peers[1:3]:
        dying.dies_at = COPY_SECONDS / 2
    for liar in peers[3:5]:
        liar.lies = True
    # then all others get everything
    assert fetched_by_all(swarm) < 3 * COPY_SECONDS
    assert swarm.origin.sent < 2.5 * CHUNKS


def test_a_joiner_takes_state_from_many_donors_at_once() -> None:
    # given eight donors that have everything
    swarm = SimSwarm(CHUNKS, [RATE] * 9)
    donors, joiner = list(swarm.peers.values())[:-1], list(swarm.peers.values())[-1]
    for donor in donors:
        donor.holds[:] = True
    # when one joins
    swarm.start(joiner.name)
    swarm.run(10 * COPY_SECONDS)
    # then it is far quicker than one donor could be
    assert joiner.done_at is not None
    assert joiner.done_at < 0.25 * COPY_SECONDS


def test_who_is_late_gets_it_from_the_others() -> None:
    # given a swarm that has what it wants, but for one that comes later
    swarm = SimSwarm(CHUNKS, [RATE] * 9)
    for peer in list(swarm.peers.values())[1:-1]:
        swarm.start(peer.name)
    swarm.start(PeerId("peer08"), at=2 * COPY_SECONDS)
    swarm.run(10 * COPY_SECONDS)
    # then it takes little from the origin
    assert swarm.peers[PeerId("peer08")].done_at is not None
    assert swarm.origin.sent < 1.35 * CHUNKS


def test_a_schedule_is_the_same_every_time() -> None:
    def history(seed: int) -> list[float | None]:
        swarm = SimSwarm(CHUNKS, [RATE] * 5, seed)
        fetched_by_all(swarm)
        return [peer.done_at for peer in swarm.peers.values()]

    assert history(1) == history(1) != history(2)
