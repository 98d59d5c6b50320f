"""Agreement keeps the promises of `elastic.contracts.Agreement`, with any number of validators."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from elastic.agreement.charter import Charter
from elastic.agreement.manifests import check_final, draft, genesis
from elastic.agreement.quorum import POLL, STRANGERS, Memory, Quorum
from elastic.agreement.simplex import max_liars, proposer_of, quorum
from elastic.agreement.talk import BALLOT, DRAFT, MANIFEST
from elastic.agreement.votes import Ballot, Proposal, Vote, VoteKind
from elastic.contracts import Accepts, Agreement, Drafts, Times
from elastic.errors import FetchError, MalformedError, NetworkError
from elastic.exchange.memory import MemoryNetwork
from elastic.messages import (
    NO_DIGEST,
    BlobRef,
    Counted,
    Digest,
    Manifest,
    PeerCard,
    PeerId,
    PeerStage,
    RoundIndex,
    Seconds,
    Terms,
    View,
    digest_of,
)
from elastic.schedule.clock import ManualClock
from elastic.wire.signing import Identity

KEYS = sorted((Identity.generate() for _ in range(7)), key=lambda key: key.peer)
PEER, STRANGER = Identity.generate(), Identity.generate()
ANCHOR = digest_of(b"anchor")
SIZES = [1, 2, 3, 4, 7]
ZERO, ONE = RoundIndex(0), RoundIndex(1)


async def yes(manifest: Manifest) -> bool:
    return True


async def no(manifest: Manifest) -> bool:
    return False


class House:
    """Validators and a peer on one network."""

    def __init__(self, size: int) -> None:
        self.clock = ManualClock()
        self.network = MemoryNetwork(self.clock.now, 1000.0, self.clock.sleep)
        self.keys = KEYS[:size]
        self.names = [key.peer for key in self.keys]
        self.terms = Terms(validators=tuple(sorted(self.names)), incentive="{}")
        self.disks: dict[PeerId, bytes] = {}
        self.all: dict[PeerId, Quorum] = {key.peer: self.start(key) for key in self.keys}
        self.peer: Agreement = self.start(PEER)

    def start(self, key: Identity, *, disk: bool = True) -> Quorum:
        """A life of this validator or peer."""

        def save(ballot: bytes) -> None:
            self.disks[key.peer] = ballot

        exchange = self.network.join(key.peer, "demo")
        memory = Memory(self.disks.get(key.peer) if disk else None, save)
        return Quorum(key, Charter("demo", self.terms), "demo", exchange, self.clock, memory)

    def proposer(self, round_: int, view: int = 0) -> PeerId:
        return proposer_of("demo", RoundIndex(round_), View(view), self.names)

    def key(self, peer: PeerId) -> Identity:
        return next(key for key in self.keys if key.peer == peer)

    async def decide(
        self, make: Callable[[PeerId], Manifest], *, only: Sequence[PeerId] | None = None, accepts: Accepts = yes,
        seconds: float = 100.0,
    ) -> list[Manifest | None]:  # fmt: skip
        """What each of these validators (or all) comes to."""
        now = self.clock.now()
        times = Times(proposer=Seconds(now + 5), patience=Seconds(2), give_up=Seconds(now + seconds))

        def drafts_of(peer: PeerId) -> Drafts:
            async def drafts(_: View) -> Manifest:
                return make(peer)

            return drafts

        peers = only or self.names
        round_ = make(peers[0]).round
        return await asyncio.gather(*(self.all[peer].decide(round_, drafts_of(peer), accepts, times) for peer in peers))


def start_of(peer: PeerId) -> Manifest:
    return genesis("demo", ANCHOR, [PEER.peer], proposer=peer)


def after(previous: Manifest, what: bytes | None = None) -> Callable[[PeerId], Manifest]:
    def make(peer: PeerId) -> Manifest:
        entry = Counted(peer=PEER.peer, payload=digest_of(what or peer.encode()), size_bytes=7, share=1.0)
        return draft(previous, ANCHOR, [entry], [PEER.peer], peer)

    return make


def one(manifests: Sequence[Manifest | None]) -> Manifest:
    """They are all there and all the same."""
    assert len({manifest and manifest.digest() for manifest in manifests}) == 1
    assert manifests[0] is not None
    return manifests[0]


@pytest.mark.parametrize("size", SIZES)
async def test_all_come_to_the_same_and_everyone_can_check_it(size: int) -> None:
    # given
    house = House(size)
    assert await house.peer.decided(ZERO) is None
    # when
    start = one(await house.decide(start_of))
    first = one(await house.decide(after(start)))
    # then
    for manifest in (start, first):
        seen = await house.peer.decided(manifest.round)
        assert seen is not None and seen.digest() == manifest.digest()
        check_final(seen, house.names)
        assert seen.proposer == house.proposer(manifest.round)
    assert await house.peer.decided(RoundIndex(2)) is None
    assert house.peer.terms(RoundIndex(2)) == house.terms and house.peer.amendments() == []


@pytest.mark.parametrize("size", [3, 4, 7])
async def test_it_goes_on_without_those_that_it_can_spare_the_proposer_among_them(size: int) -> None:
    # given as many are down as a quorum can spare
    house = House(size)
    spared = size - quorum(size)
    down = [house.proposer(0, view) for view in range(spared)]
    # when
    manifest = one(await house.decide(start_of, only=[name for name in house.names if name not in down]))
    # then the first proposer that is there had its way
    assert manifest.proposer == house.proposer(0, spared)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
async def test_a_minority_decides_nothing_and_the_others_are_heard_when_they_come(size: int) -> None:
    # given
    house = House(size)
    minority = house.names[: quorum(size) - 1]
    # when
    assert set(await house.decide(start_of, only=minority, seconds=300)) == {None}
    assert await house.peer.decided(ZERO) is None
    # then
    one(await house.decide(start_of))


async def test_what_the_others_would_not_sign_is_not_decided() -> None:
    # given a proposer whose manifest nobody else accepts
    house = House(4)
    first = house.proposer(0)

    async def accepts(manifest: Manifest) -> bool:
        return manifest.proposer != first

    # when
    manifest = one(await house.decide(start_of, accepts=accepts))
    # then
    assert manifest.proposer == house.proposer(0, 1)


async def test_nothing_at_all_is_decided_when_nobody_accepts_anything() -> None:
    house = House(4)
    assert set(await house.decide(start_of, accepts=no, seconds=200)) == {None}
    one(await house.decide(start_of))


async def test_an_unsound_draft_is_neither_proposed_nor_looked_at() -> None:
    # given a lying proposer that posts a draft with half a share
    house = House(4)
    start = one(await house.decide(start_of))
    liar = house.proposer(1)
    entry = Counted(peer=PEER.peer, payload=ANCHOR, size_bytes=7, share=0.5)
    bad = house.key(liar).sign(draft(start, ANCHOR, [entry], [PEER.peer], liar))
    with pytest.raises(MalformedError, match="shares that sum to"):
        await house.decide(lambda peer: bad.model_copy(update={"proposer": peer}), only=[liar])
    proposal = Proposal(run="demo", round=ONE, view=View(0), manifest=bad.digest(), proposer=liar)
    exchange = house.network.peers[liar]
    await exchange.post(DRAFT, ONE, bad.canonical())
    ballot = Ballot.of("demo", ONE, [], [house.key(liar).sign(proposal)])
    await exchange.post(BALLOT, ONE, ballot.canonical())
    # when
    honest = [name for name in house.names if name != liar]
    manifest = one(await house.decide(after(start), only=honest))
    # then
    assert manifest.proposer == house.proposer(1, 1)


@pytest.mark.parametrize("body", [b"", b"garbage", b"{}", b"[" * 1000], ids=repr)
async def test_garbage_stops_nobody(body: bytes) -> None:
    house = House(4)
    liar = house.proposer(0)
    for kind in (DRAFT, BALLOT, MANIFEST):
        await house.network.peers[liar].post(kind, ZERO, body)
        await house.network.join(STRANGER.peer, "demo").post(kind, ZERO, body)
    one(await house.decide(start_of, only=[name for name in house.names if name != liar]))
    assert await house.peer.decided(ZERO) is not None


async def test_forged_votes_count_for_nothing() -> None:
    # given a liar that posts votes in the names of all
    house = House(4)
    liar = house.key(house.proposer(0))
    wanted = liar.sign(start_of(liar.peer))
    votes = [
        liar.sign(Vote(run="demo", round=ZERO, view=View(0), kind=kind, manifest=wanted.digest(), peer=liar.peer))
        .model_copy(update={"peer": name})
        for kind in (VoteKind.NOTARIZE, VoteKind.FINALIZE) for name in house.names
    ]  # fmt: skip
    exchange = house.network.peers[liar.peer]
    await exchange.post(DRAFT, ZERO, wanted.canonical())
    await exchange.post(BALLOT, ZERO, Ballot.of("demo", ZERO, votes).canonical())
    # when nobody else would sign it
    honest = [name for name in house.names if name != liar.peer]

    async def accepts(manifest: Manifest) -> bool:
        return manifest.proposer != liar.peer

    manifest = one(await house.decide(start_of, only=honest, accepts=accepts))
    # then
    assert manifest.digest() != wanted.digest()


async def test_a_liar_that_votes_for_everything_splits_nobody() -> None:
    # given a proposer that shows one manifest, then another, and votes for both
    house = House(4)
    liar = house.key(house.proposer(0))
    exchange = house.network.peers[liar.peer]
    honest = [name for name in house.names if name != liar.peer]
    running = asyncio.ensure_future(house.decide(start_of, only=honest))
    for anchor in (b"one", b"two"):
        manifest = liar.sign(genesis("demo", digest_of(anchor), [PEER.peer], proposer=liar.peer))
        votes = [
            liar.sign(Vote(run="demo", round=ZERO, view=View(0), kind=kind, manifest=manifest.digest(), peer=liar.peer))
            for kind in (VoteKind.NOTARIZE, VoteKind.FINALIZE)
        ]
        proposal = Proposal(run="demo", round=ZERO, view=View(0), manifest=manifest.digest(), proposer=liar.peer)
        await exchange.post(DRAFT, ZERO, manifest.canonical())
        await exchange.post(BALLOT, ZERO, Ballot.of("demo", ZERO, votes, [liar.sign(proposal)]).canonical())
        await house.clock.sleep(Seconds(0.15))
    # when / then
    one(await running)


@pytest.mark.parametrize("disk", [True, False], ids=["disk", "no disk"])
@pytest.mark.parametrize("size", [1, 2, 4])
async def test_a_round_is_decided_once_whatever_a_restarted_validator_would_rather(size: int, disk: bool) -> None:
    # given all are restarted, from their disks or from what the network remembers of them
    house = House(size)
    start = one(await house.decide(start_of))
    first = one(await house.decide(after(start, b"one")))
    house.all = {key.peer: house.start(key, disk=disk) for key in house.keys}
    # when
    again = one(await house.decide(after(start, b"another")))
    # then
    if disk or size > 1:
        assert again.digest() == first.digest()


async def test_who_proposed_and_lost_its_disk_repeats_what_the_network_heard() -> None:
    # given a proposer that was heard by too few
    house = House(4)
    first, second = house.proposer(0), house.proposer(0, 1)
    await house.decide(lambda peer: genesis("demo", digest_of(b"one"), [PEER.peer], proposer=peer),
                       only=[first, second], seconds=2)  # fmt: skip
    said = house.network.records["demo", BALLOT, ZERO][first]
    # when
    house.all[first] = house.start(house.key(first), disk=False)
    manifest = one(await house.decide(start_of))
    # then
    assert [each.manifest for each in Ballot.from_bytes(said).proposals if each.view == 0] == [manifest.digest()]


async def test_nobody_votes_in_a_round_before_its_last() -> None:
    house = House(1)
    start = one(await house.decide(start_of))
    one(await house.decide(after(start)))
    house.network.records.clear()
    house.all = {key.peer: house.start(key) for key in house.keys}
    begin = house.clock.now()
    assert await house.decide(start_of, seconds=10) == [None]
    assert house.clock.now() >= begin + 10  # it waits for who knows


async def test_what_was_said_in_another_run_does_not_matter() -> None:
    house = House(1)
    start = one(await house.decide(start_of))
    one(await house.decide(after(start)))
    said = Ballot.from_bytes(house.disks[house.names[0]]).model_copy(update={"run": "another"})
    house.disks[house.names[0]] = said.canonical()
    house.network.records.clear()
    house.all = {key.peer: house.start(key) for key in house.keys}
    one(await house.decide(start_of))


async def test_a_proposer_thinks_again_at_its_next_turn() -> None:
    # given nobody accepts the first two manifests that anyone makes
    house = House(4)
    made: dict[PeerId, int] = {}
    third = digest_of(b"3")

    def make(peer: PeerId) -> Manifest:
        made[peer] = made.get(peer, 0) + 1
        return genesis("demo", digest_of(b"%d" % made[peer]), [PEER.peer], proposer=peer)

    async def accepts(manifest: Manifest) -> bool:
        return manifest.anchor == third

    # when
    manifest = one(await house.decide(make, accepts=accepts, seconds=5000))
    # then
    assert manifest.anchor == third


async def test_a_ballot_that_could_not_be_fetched_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # given ballots that travel as blobs, the first fetch of which fails for everyone
    monkeypatch.setattr("elastic.agreement.talk.MAX_RECORD_BYTES", 0)
    house = House(3)
    for name in house.names:
        exchange = house.network.peers[name]
        failed: set[Digest] = set()

        async def fetch(
            digest: Digest, size: int, holders: Sequence[PeerId], real: Any = exchange.fetch, failed: Any = failed
        ) -> bytes:
            if digest not in failed:
                failed.add(digest)
                raise FetchError("a stream broke")
            found: bytes = await real(digest, size, holders)
            return found

        monkeypatch.setattr(exchange, "fetch", fetch)
    # when / then
    one(await house.decide(start_of, seconds=30))


async def test_a_ballot_that_nobody_can_fetch_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a liar that refers to a blob, lets itself be asked for it, and says nothing
    house = House(4)
    liar = house.proposer(0, 3)
    record = BlobRef(digest=digest_of(b"never sent"), size_bytes=1000).canonical()
    await house.network.peers[liar].post(BALLOT, ZERO, record)
    asked, given_up = [], []

    async def fetch(digest: Digest, size: int, holders: Sequence[PeerId]) -> bytes:
        asked.append(holders)
        try:
            await house.clock.sleep(Seconds(20))
        except asyncio.CancelledError:
            given_up.append(holders)
            raise
        raise FetchError("nothing came")

    honest = [name for name in house.names if name != liar]
    for name in honest:
        monkeypatch.setattr(house.network.peers[name], "fetch", fetch)
    # when
    one(await house.decide(start_of, only=honest))
    # then nobody waited for it, each asked once, and nobody asks on behind the round
    assert house.clock.now() < 5
    assert asked == [[liar]] * 3
    await house.clock.sleep(POLL)
    assert given_up == asked


async def test_a_text_that_its_proposer_took_back_is_had_from_who_voted_for_it() -> None:
    # given a liar whose manifest two honest validators notarized, and are killed before they say more
    house = House(4)
    liar = house.key(house.proposer(0))
    honest = [name for name in house.names if name != liar.peer]
    exchange = house.network.peers[liar.peer]
    manifest = liar.sign(start_of(liar.peer))
    vote = Vote(
        run="demo", round=ZERO, view=View(0), kind=VoteKind.NOTARIZE, manifest=manifest.digest(), peer=liar.peer
    )
    proposal = Proposal(run="demo", round=ZERO, view=View(0), manifest=manifest.digest(), proposer=liar.peer)
    await exchange.post(DRAFT, ZERO, manifest.canonical())
    ballot = Ballot.of("demo", ZERO, [liar.sign(vote)], [liar.sign(proposal)])
    await exchange.post(BALLOT, ZERO, ballot.canonical())
    await house.decide(start_of, only=honest[:2], seconds=0.25)
    # when the liar takes its text back, and they come again
    await exchange.post(DRAFT, ZERO, b"garbage")
    for name in honest[:2]:
        house.all[name] = house.start(house.key(name))
    # then
    assert one(await house.decide(start_of, only=honest, seconds=3000)).digest() == manifest.digest()


async def test_who_comes_after_very_many_views_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    # given three validators that accept nothing for so long that what they say fits into no record
    monkeypatch.setattr("elastic.agreement.talk.LONGEST_VIEW", Seconds(20))
    monkeypatch.setattr("elastic.agreement.quorum.POLL", Seconds(5))
    house = House(4)
    three, late = house.names[:3], house.names[3]
    assert set(await house.decide(start_of, only=three, accepts=no, seconds=900)) == {None}
    assert len(house.all[three[0]]._talk.seat.ballot().canonical()) > 16 * 1024
    # when one goes, and the fourth comes
    manifests = await house.decide(start_of, only=[*three[:2], late], seconds=900)
    # then
    one(manifests)


async def test_a_final_manifest_is_repeated_while_its_validators_go_on() -> None:
    # given one of two decided, and the network forgot
    house = House(2)
    start = one(await house.decide(start_of))
    first, second = house.names
    house.network.records.clear()
    house.all[second] = house.start(house.key(second), disk=False)
    # when the other one waits in the next round
    await house.decide(after(start), only=[first], seconds=70)
    # then
    found = await house.all[second].decided(ZERO)
    assert found is not None and found.digest() == start.digest()


async def test_a_flood_of_strangers_hides_no_manifest_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    # given
    house = House(1)
    for number in range(100):
        stranger = house.network.join(PeerId(f"1{number:03d}" + "A" * 44), "demo")
        await stranger.post(MANIFEST, ZERO, b"garbage %d" % number)
    for _ in range(20):
        assert await house.peer.decided(ZERO) is None
    assert not caplog.records
    # when
    start = one(await house.decide(start_of))
    # then
    assert await house.peer.decided(ZERO) == start


async def test_a_flood_that_changes_all_the_time_costs_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    # given strangers that post another piece of garbage before each look
    house = House(1)
    strangers = [house.network.join(PeerId(f"1{number:03d}" + "A" * 44), "demo") for number in range(100)]
    looks: list[bytes] = []
    upstream = Manifest.from_bytes
    monkeypatch.setattr(Manifest, "from_bytes", lambda body: looks.append(body) or upstream(body))
    for turn in range(10):
        for stranger in strangers:
            await stranger.post(MANIFEST, ZERO, b"garbage %d" % turn)
        assert await house.peer.decided(ZERO) is None
    # then few of them are looked at each time
    assert len(looks) <= 10 * STRANGERS
    # and the manifest of a validator is found at once
    start = one(await house.decide(start_of))
    assert await house.peer.decided(ZERO) == start


async def test_strangers_drafts_and_ballots_are_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # given four validators, and strangers that post drafts and ballots, some that cannot be read
    house = House(4)
    for number in range(100):
        stranger = house.network.join(PeerId(f"1{number:03d}" + "A" * 44), "demo")
        await stranger.post(DRAFT, ZERO, start_of(house.names[0]).canonical() if number % 2 else b"garbage")
        await stranger.post(BALLOT, ZERO, b"garbage %d" % number)
    read: list[bytes] = []
    for kind in (Manifest, Ballot):
        upstream = kind.from_bytes
        monkeypatch.setattr(kind, "from_bytes", lambda body, upstream=upstream: read.append(body) or upstream(body))
    # when they agree
    one(await house.decide(start_of))
    # then nobody looked at any of these
    posted = {body for kind in (DRAFT, BALLOT) for author, body in house.network.records["demo", kind, ZERO].items()
              if author not in house.names}  # fmt: skip
    assert read and not posted & set(read)


async def test_a_refused_record_is_posted_when_the_network_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    house = House(1)
    exchange = house.network.peers[house.names[0]]
    post = exchange.post

    async def refused(*_: Any) -> None:
        raise NetworkError("no node of the DHT took the record")

    monkeypatch.setattr(exchange, "post", refused)
    assert await house.decide(start_of, seconds=3) == [None]
    # when
    monkeypatch.setattr(exchange, "post", post)
    manifest = one(await house.decide(lambda peer: genesis("demo", NO_DIGEST, [], proposer=peer)))
    # then
    assert manifest.anchor == ANCHOR
    assert await house.peer.decided(ZERO) == manifest


async def test_what_does_not_hold_is_not_taken_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    house = House(1)
    unfinal = house.keys[0].sign(start_of(house.names[0]))
    exchange = house.network.peers[house.names[0]]
    for body in (b"garbage", unfinal.canonical(), start_of(house.names[0]).canonical()):
        await exchange.post(MANIFEST, ZERO, body)
        assert await house.peer.decided(ZERO) is None
        assert await house.peer.decided(ZERO) is None
    assert len(caplog.records) == 1  # a warning for each author and round


async def test_anyone_may_repeat_what_is_final() -> None:
    # given the network forgot
    house = House(4)
    start = one(await house.decide(start_of))
    house.network.records.clear()
    late = house.start(STRANGER)
    assert await late.decided(ZERO) is None
    # when
    await late.repeat(start)
    # then
    assert await house.start(Identity.generate()).decided(ZERO) == start


async def test_nobody_can_repeat_what_is_not_final() -> None:
    house = House(4)
    start = one(await house.decide(start_of, only=house.names[:3]))
    house.network.records.clear()
    assert start.finality is not None
    no_votes = start.finality.model_copy(update={"signatures": {}})
    with pytest.raises(MalformedError, match="carries 0 votes"):
        await house.peer.repeat(start.model_copy(update={"finality": no_votes}))


async def test_a_manifest_that_does_not_continue_ours_is_not_taken() -> None:
    house = House(1)
    one(await house.decide(start_of))
    assert await house.peer.decided(ZERO) is not None
    other = House(1)
    fork = one(await other.decide(lambda peer: genesis("demo", digest_of(b"else"), [PEER.peer], proposer=peer)))

    def forked(peer: PeerId) -> Manifest:
        entry = Counted(peer=PEER.peer, payload=ANCHOR, size_bytes=7, share=1.0)
        return draft(fork, digest_of(b"else"), [entry], [PEER.peer], peer)

    manifest = one(await other.decide(forked))
    await house.network.peers[house.names[0]].post(MANIFEST, ONE, manifest.canonical())
    assert await house.peer.decided(ONE) is None


async def chain_of(house: House, length: int) -> Manifest:
    head = one(await house.decide(start_of))
    for _ in range(length):
        head = one(await house.decide(after(head)))
    return head


def card(peer: PeerId, round_: int) -> PeerCard:
    return PeerCard(peer=peer, run="demo", shared=ANCHOR, stage=PeerStage.READY, round=RoundIndex(round_), addresses=())


@pytest.mark.parametrize("on_card", [0, 3, 6, 7, 9])
async def test_the_head_is_found_near_a_validators_card(on_card: int) -> None:
    house = House(1)
    newest = await chain_of(house, 6)
    await house.network.peers[house.names[0]].announce(card(house.names[0], on_card))
    assert await house.peer.head() == newest


async def test_a_lying_validators_card_hides_no_head() -> None:
    house = House(4)
    newest = await chain_of(house, 3)
    for name, round_ in zip(house.names, (2**40, 3, 3, 3), strict=True):
        await house.network.peers[name].announce(card(name, round_))
    head = await house.peer.head()
    assert head is not None and head.digest() == newest.digest()


async def test_other_peers_cards_lead_nowhere() -> None:
    house = House(1)
    await chain_of(house, 2)
    await house.network.peers[PEER.peer].announce(card(PEER.peer, 2))
    assert await house.peer.head() is None


async def test_memory_is_bounded() -> None:
    house = House(1)
    newest = await chain_of(house, 100)
    validator = house.all[house.names[0]]
    assert await validator.head() == newest
    assert len(validator._known) < 100
    assert await validator.decided(ONE) is not None  # forgotten, and found where it was posted


@pytest.mark.parametrize("size", range(1, 17))
def test_two_quorums_share_an_honest_validator_and_the_honest_are_one(size: int) -> None:
    assert 2 * quorum(size) - size > max_liars(size)
    assert size - max_liars(size) >= quorum(size)


async def test_what_led_a_validator_here_is_on_its_disk() -> None:
    # given one that skipped a view with two others, which are then gone
    house = House(4)
    down = house.proposer(0)
    three = [name for name in house.names if name != down]
    assert set(await house.decide(start_of, only=three, accepts=no, seconds=6)) == {None}
    me = three[0]
    view = house.all[me]._talk.seat.view
    assert view > 0
    # when it comes again and nobody else says anything
    house.network.records.clear()
    again = house.start(house.key(me))
    now = house.clock.now()
    times = Times(proposer=Seconds(now + 1), patience=Seconds(1), give_up=Seconds(now))

    async def drafts(_: View) -> Manifest:
        return start_of(me)

    await again.decide(ZERO, drafts, no, times)
    # then
    assert again._talk is not None and again._talk.seat.view == view
