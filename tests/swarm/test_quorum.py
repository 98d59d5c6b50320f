"""Several validators, nobody in charge: any of them may be down, cut off, slow or restarted, and the swarm goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from builder import RUN, Node, NodeExchange, Swarm, identity

from elastic.agreement.simplex import proposer_of
from elastic.contracts import Drafts
from elastic.deliberate import NOTES
from elastic.errors import FetchError
from elastic.exchange.blobs.store import BLOB_FOLDER, BlobStore
from elastic.exchange.gather import CONTRIBUTION
from elastic.messages import (
    NO_DIGEST,
    BlobRef,
    ContributionHeader,
    Digest,
    Manifest,
    PeerId,
    RejectReason,
    RoundIndex,
    Seconds,
    View,
    digest_of,
)
from elastic.peer import Peer

FOUR = ("ann", "bob", "cyd", "dan")


def proposer(swarm: Swarm, round_: int, view: int = 0) -> str:
    """Name of the validator whose turn it is."""
    validators = swarm.shared.agreement.validators
    turn = proposer_of(swarm.shared.run, RoundIndex(round_), View(view), validators)
    return next(name for name, node in swarm.nodes.items() if node.id == turn)


def same_chains(swarm: Swarm, *names: str) -> None:
    """No two of them ever applied different manifests."""
    chains = [swarm.check_chain(name) for name in names or swarm.nodes]
    by_round: dict[int, set[str]] = {}
    for chain in chains:
        for manifest in chain:
            by_round.setdefault(manifest.round, set()).add(manifest.digest())
    assert all(len(digests) == 1 for digests in by_round.values())


@pytest.mark.parametrize("num", [2, 3, 4])
async def test_validators_agree_and_everyone_counts(tmp_path: Path, num: int) -> None:
    async with Swarm(tmp_path, *FOUR, "eve", validators=FOUR[:num]) as swarm:
        swarm.start()
        await swarm.finish()
        assert len(swarm.anchors()) == 1
        same_chains(swarm)
        for manifest in swarm.check_chain("eve")[1:]:
            assert len(manifest.counted) == 5
            assert manifest.proposer == swarm[proposer(swarm, manifest.round)].id


async def test_a_proposer_that_dies_in_its_round_costs_a_deadline_and_not_the_round(tmp_path: Path) -> None:
    # given
    async with Swarm(tmp_path, *FOUR, validators=FOUR) as swarm:
        victim = proposer(swarm, 2)
        swarm[victim].crash_at = "agree 2"
        # when
        swarm.start()
        await swarm.finish(victim)
        others = [name for name in FOUR if name != victim]
        await swarm.rounds_done(3, *others)
        # then round 2 was proposed by the next one, and the dead one's work, which was out already, counts
        second = swarm.check_chain(others[0])[2]
        assert second.proposer == swarm[proposer(swarm, 2, view=1)].id
        assert swarm[victim].id in {entry.peer for entry in second.counted}
        report = swarm[others[0]].report(2)
        assert report.seconds["total"] < 2 * (swarm.shared.round.train_seconds + swarm.shared.round.gather_seconds)
        # and it comes back to where the others are
        swarm[victim].start()
        await swarm.finish()
        assert len(swarm.anchors()) == 1
        same_chains(swarm)


async def test_a_proposer_that_is_dead_when_its_turn_comes_is_not_waited_for_twice(tmp_path: Path) -> None:
    # given a swarm whose rounds have become short, one that decides nothing, and a proposer that dies as it trains
    async with Swarm(tmp_path, *FOUR, "eve", validators=FOUR, rounds=12) as swarm:
        victim = proposer(swarm, 10)
        swarm[victim].crash_at = "inner 10"
        swarm.start()
        await swarm.finish(victim)
        others = [name for name in swarm.nodes if name != victim]
        await swarm.rounds_done(11, *others)
        # then nobody gave the round up, and it took the deadline and what the next proposer needed
        deadline = swarm["eve"].peer.plan(swarm.check_chain("eve")[9]).gather_seconds
        for name in others:
            (report,) = [report for report in swarm[name].reports if report.round == 10]
            assert report.manifest is not None and report.seconds["total"] < deadline + 1.5


async def test_one_of_three_may_be_gone_for_good(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", "cyd", validators=("ann", "bob", "cyd")) as swarm:
        swarm["bob"].crash_at = "gather 1"
        swarm.start()
        await swarm.finish()
        assert {len(swarm.check_chain(name)) for name in ("ann", "cyd")} == {5}
        same_chains(swarm, "ann", "cyd")
        assert len(swarm.anchors("ann", "cyd")) == 1


@pytest.mark.parametrize("boundary", ["inner 2", "agree 2", "outer 2"])
async def test_a_run_outlives_its_founder_and_all_validators_but_a_quorum(tmp_path: Path, boundary: str) -> None:
    # given seven validators, two of which die for good: who made the genesis, which others entered by, and another
    seven = (*FOUR, "eve", "fay", "gus")
    async with Swarm(tmp_path, *seven, "hal", validators=seven, rounds=5) as swarm:
        founder = proposer(swarm, 0)
        dead = {founder, next(name for name in seven if name != founder)}
        for name in dead:
            swarm[name].crash_at = boundary
        swarm.start()
        await swarm.finish(*dead)
        others = [name for name in swarm.nodes if name not in dead]
        await swarm.rounds_done(2, *others)
        assert swarm.check_chain(others[0])[0].proposer == swarm[founder].id
        # when one comes who knew neither of them
        swarm.add("newcomer").start()
        await swarm.finish(*others, "newcomer")
        # then every round is decided by those who are left, and counts who is there
        assert {len(swarm.check_chain(name)) for name in others} == {6}
        assert swarm.check_chain("hal")[-1].counts(swarm["newcomer"].id)
        assert len(swarm.anchors(*others, "newcomer")) == 1
        same_chains(swarm, *others, "newcomer")


async def test_the_half_without_a_quorum_waits_and_loses_nothing(tmp_path: Path) -> None:
    # given four validators, two of which are cut off from everyone
    async with Swarm(tmp_path, *FOUR, validators=FOUR, rounds=6) as swarm:
        swarm.start()
        await swarm.rounds_done(2)
        for name in ("cyd", "dan"):
            swarm.network.cut(swarm[name].id)
        before = {name: swarm[name].peer.holds() for name in FOUR}
        await swarm.until(lambda: swarm.clock.now() > 40)
        # then nobody has a quorum, so at most the round that was being decided has ended
        for name in FOUR:
            assert swarm[name].peer.holds() <= before[name] + 1
        # when
        for name in ("cyd", "dan"):
            swarm.network.heal(swarm[name].id)
        await swarm.finish()
        # then
        assert len(swarm.anchors()) == 1
        same_chains(swarm)
        assert {len(swarm.check_chain(name)) for name in FOUR} == {7}


async def test_a_validator_that_was_cut_off_finds_what_the_others_decided(tmp_path: Path) -> None:
    async with Swarm(tmp_path, *FOUR, validators=FOUR, rounds=5) as swarm:
        swarm.start()
        await swarm.rounds_done(1)
        swarm.network.cut(swarm["dan"].id)
        await swarm.rounds_done(3, "ann", "bob", "cyd")
        assert swarm["dan"].peer.holds() <= 3
        swarm.network.heal(swarm["dan"].id)
        await swarm.finish()
        assert len(swarm.anchors()) == 1
        same_chains(swarm)


@pytest.mark.parametrize("boundary", ["commit 2", "gather 2", "agree 2", "outer 2", "before outer step 2"])
async def test_all_validators_killed_go_on_from_their_disks(tmp_path: Path, boundary: str) -> None:
    async with Swarm(tmp_path, *FOUR, validators=FOUR) as swarm:
        for node in swarm.nodes.values():
            node.crash_at = boundary
        swarm.start()
        await swarm.finish(proposer(swarm, 2))
        for name in FOUR:
            await swarm[name].stop()
            swarm[name].crash_at = None
        swarm.new_network()
        swarm.start()
        await swarm.finish()
        assert len(swarm.anchors()) == 1
        same_chains(swarm)


def only_mine(draft: Manifest) -> dict[str, Any]:
    mine = [entry.model_copy(update={"share": 1.0}) for entry in draft.counted if entry.peer == draft.proposer]
    return {"counted": tuple(mine)}


def mostly_mine(draft: Manifest) -> dict[str, Any]:
    rest = 0.1 / (len(draft.counted) - 1)
    shares = [0.9 if entry.peer == draft.proposer else rest for entry in draft.counted]
    new = [entry.model_copy(update={"share": share}) for entry, share in zip(draft.counted, shares, strict=True)]
    return {"counted": tuple(new)}


def all_but_nothing(draft: Manifest) -> dict[str, Any]:
    """The whole outer step for itself, though enough are counted."""
    mine = next(entry for entry in draft.counted if entry.peer == draft.proposer)
    others = [entry for entry in draft.counted if entry.peer != draft.proposer][:2]
    shares = [(mine, 1 - 2e-9), *((entry, 1e-9) for entry in others)]
    new = [entry.model_copy(update={"share": share}) for entry, share in shares]
    return {"counted": tuple(sorted(new, key=lambda entry: entry.peer))}


def mine_for_anothers(draft: Manifest) -> dict[str, Any]:
    mine = next(entry for entry in draft.counted if entry.peer == draft.proposer)
    return {"counted": tuple(entry.model_copy(update={"payload": mine.payload}) for entry in draft.counted)}


def invented(draft: Manifest) -> dict[str, Any]:
    return {"counted": tuple(entry.model_copy(update={"payload": NO_DIGEST}) for entry in draft.counted)}


LIES: dict[str, tuple[Callable[[Manifest], dict[str, Any]], str]] = {
    "counts only its own": (only_mine, "it counts 1, we would 4"),
    "counts nobody": (lambda draft: {"counted": ()}, "it counts 0, we would 4"),
    "gives the others next to nothing": (
        all_but_nothing, "a share of",
    ),
    "gives itself the most": (mostly_mine, "a share of 0.900, we 0.250"),
    "counts its own for all": (mine_for_anothers, "it counts another payload"),
    "counts what nobody made": (invented, "it counts another payload"),
    "wants friends in the next round": (
        lambda draft: {"roster": tuple(sorted((*draft.roster, *(identity(f"{n}").peer for n in range(5)))))},
        "names 5 of 9 whom we do not see",
    ),
    "wants nobody in the next round": (lambda draft: {"roster": ()}, "leaves out most of those"),
    "starts from another anchor": (lambda draft: {"anchor": NO_DIGEST}, "another anchor than ours"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
async def test_a_lying_proposer_loses_its_turn(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    # given a validator that proposes what serves it, whenever it is its turn
    lie, objection = LIES[name]
    async with Swarm(tmp_path, *FOUR, validators=FOUR, rounds=2) as swarm:
        liar = swarm[proposer(swarm, 2)]

        def propose_a_lie(peer: Peer) -> None:
            decide = peer.agreement.decide

            async def lying(round_: RoundIndex, drafts: Drafts, *args: Any) -> Manifest | None:
                async def lied(view: View) -> Manifest:
                    draft = await drafts(view)
                    return draft.model_copy(update=lie(draft)) if round_ == 2 else draft

                return await decide(round_, lied, *args)

            peer.agreement.decide = lying  # type: ignore[method-assign]

        liar.on_start = propose_a_lie
        # when
        swarm.start()
        await swarm.finish()
        # then
        assert objection in caplog.text
        second = swarm.check_chain(liar.name)[2]
        assert second.proposer == swarm[proposer(swarm, 2, view=1)].id
        assert len(second.counted) == 4
        assert len(swarm.anchors()) == 1
        same_chains(swarm)


def opposite(node: Node) -> bytes:
    """Another payload than the node's own of this round, which nothing is wrong with."""
    reducer, like = node.peer.reducer, node.peer.like
    made = reducer.decompress(reducer.decode(node.session.pending.payload, like), like)
    return bytes(reducer.encode(reducer.compress({name: -value for name, value in made.items()}, {})[0]))


def two_faced(swarm: Swarm, name: str, fools: Sequence[str], *, silent: bool = False) -> None:
    """From round 2 on this peer shows these validators another commitment than everyone, or none at all."""
    liar = swarm[name]

    async def lie(header: ContributionHeader, node: Node) -> bytes:
        if header.round > 1:
            other = opposite(node)
            changes = {"payload": await node.peer.exchange.provide(other), "size_bytes": len(other)}
            lied = header.model_copy(update=changes)
            shown = None if silent else identity(name).sign(lied).canonical()
            readers = [swarm[fool].id for fool in fools]
            swarm.network.show(liar.id, CONTRIBUTION, header.round, shown, *readers)
        return header.canonical()

    liar.lie = lie


async def test_who_commits_to_two_payloads_stops_no_round_and_counts_in_none(tmp_path: Path) -> None:
    # given a contributor that shows two validators one payload and the two others another
    async with Swarm(tmp_path, *FOUR, "eve", validators=FOUR, rounds=3) as swarm:
        two_faced(swarm, "eve", FOUR[:2])
        # when
        swarm.start()
        await swarm.finish(*FOUR)
        # then
        chain = swarm.check_chain("ann")
        for manifest in chain[2:]:
            assert swarm["eve"].id not in {entry.peer for entry in manifest.counted}
            assert len(manifest.counted) == 4
        verdicts = [swarm[name].report(2).verdicts[swarm["eve"].id] for name in FOUR]
        assert RejectReason.EQUIVOCAL in verdicts
        same_chains(swarm, *FOUR)


async def test_what_is_withheld_from_some_validators_stops_no_round(tmp_path: Path) -> None:
    # given two contributors, each of which is seen by half of the validators: each proposal counts one of them
    async with Swarm(tmp_path, *FOUR, "eve", "fay", validators=FOUR, rounds=3) as swarm:
        two_faced(swarm, "eve", FOUR[:2], silent=True)
        two_faced(swarm, "fay", FOUR[2:], silent=True)
        # when
        swarm.start()
        await swarm.finish(*FOUR)
        # then the others' notes helped
        assert len(swarm.check_chain("ann")) == 4
        counted = {entry.peer for manifest in swarm.check_chain("ann")[2:] for entry in manifest.counted}
        assert counted & {swarm["eve"].id, swarm["fay"].id}
        same_chains(swarm, *FOUR)


async def test_notes_that_nobody_can_fetch_keep_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given validators that need each other's notes, and a liar that refers to some, takes the stream and says nothing
    names, bob = ("ann", "cyd", "dan"), identity("bob").peer
    fetch = NodeExchange.fetch

    async def stalling(self: NodeExchange, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        if list(holders) == [bob]:
            await self.node.swarm.clock.sleep(Seconds(20))
            raise FetchError("nothing came")
        return await fetch(self, digest, size_bytes, holders)

    monkeypatch.setattr(NodeExchange, "fetch", stalling)
    async with Swarm(tmp_path, *names, "eve", "fay", validators=(*names, "bob"), rounds=3) as swarm:
        two_faced(swarm, "eve", names[:1], silent=True)
        two_faced(swarm, "fay", names[1:], silent=True)
        record = BlobRef(digest=digest_of(b"never sent"), size_bytes=1000).canonical()
        for round_ in range(2, 4):
            await swarm.network.join(bob, RUN).post(NOTES, RoundIndex(round_), record)
        # when
        swarm.start()
        await swarm.finish(*names)
        # then
        assert all(swarm[name].report(round_).seconds["agree"] < 20 for name in names for round_ in (2, 3))
        same_chains(swarm, *names)


async def test_what_a_proposer_counts_is_fetched_before_it_is_signed(tmp_path: Path) -> None:
    # given three validators that are all needed, one of which sees nothing of eve until its own gathering is over
    names = ("ann", "cyd", "dan")
    async with Swarm(tmp_path, *names, "eve", validators=("ann", "bob", *names[1:])) as swarm:
        turn = proposer_of(RUN, RoundIndex(2), View(0), swarm.shared.agreement.validators)
        blind = next(swarm[name] for name in names if swarm[name].id != turn)

        def open_eyes(peer: Peer) -> None:
            on_phase = peer.on_phase

            def at_last(phase: str) -> None:
                on_phase(phase)
                if phase == "agree" and blind._round == 2:
                    swarm.network.heal(blind.id)

            peer.on_phase = at_last

        blind.on_start = open_eyes
        # when
        swarm.start()
        await swarm.rounds_done(1, blind.name)
        swarm.network.cut(blind.id, swarm["eve"].id)
        await swarm.finish()
        # then
        assert swarm["eve"].id in {entry.peer for entry in swarm.check_chain(blind.name)[2].counted}
        assert len(swarm.anchors()) == 1
        same_chains(swarm)


async def test_what_its_author_can_no_longer_give_is_had_from_the_proposer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given eve's bytes get to the proposer of round 2 alone
    async with Swarm(tmp_path, *FOUR, "eve", validators=FOUR, rounds=2) as swarm:
        first, eve = swarm[proposer(swarm, 2)].id, swarm["eve"].id
        fetch = NodeExchange.fetch

        async def not_from_eve(self: NodeExchange, digest: Digest, size: int, holders: Sequence[PeerId]) -> bytes:
            hers = (2, digest) in swarm["eve"].offered
            left = [each for each in holders if not hers or self.peer in (first, eve) or each != eve]
            return await fetch(self, digest, size, left)

        monkeypatch.setattr(NodeExchange, "fetch", not_from_eve)
        # when
        swarm.start()
        await swarm.finish()
        # then
        second = swarm.check_chain("ann")[2]
        assert eve in {entry.peer for entry in second.counted}
        assert second.proposer == first


async def test_payloads_that_cannot_be_had_for_a_while_stop_nobody_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given bytes do not travel, records do, until everyone has proposed what it had by itself
    async with Swarm(tmp_path, *FOUR, validators=FOUR) as swarm:
        fetch = NodeExchange.fetch
        broken = True

        async def down(self: NodeExchange, digest: Digest, size: int, holders: Sequence[PeerId]) -> bytes:
            if broken and self.held(digest) is None:
                await swarm.clock.sleep(Seconds(0.1))
                raise FetchError("the streams are down")
            return await fetch(self, digest, size, holders)

        swarm.start()
        await swarm.rounds_done(1)
        monkeypatch.setattr(NodeExchange, "fetch", down)
        until = swarm.clock.now() + 25
        await swarm.until(lambda: swarm.clock.now() > until)
        # when
        broken = False
        # then
        await swarm.finish()
        assert len(swarm.anchors()) == 1
        same_chains(swarm)


def keep_payloads(peer: Peer) -> None:
    """On a disk, as peers outside do."""
    folder = Path(peer.state.state_path).parents[2] / BLOB_FOLDER
    peer.exchange.store = BlobStore(folder)  # type: ignore[attr-defined]


async def test_what_the_dead_proposers_disk_held_is_on_others_too(tmp_path: Path) -> None:
    # given all are killed when they have voted, the network forgets, and the proposer's machine is gone for good
    async with Swarm(tmp_path, *FOUR, validators=FOUR) as swarm:
        for node in swarm.nodes.values():
            node.crash_at = "outer 2"
            node.on_start = keep_payloads
        first = proposer(swarm, 2)
        swarm.start()
        await swarm.finish()
        others = [name for name in FOUR if name != first]
        for name in others:
            swarm[name].crash_at = None
        swarm.new_network()
        # when
        swarm.start(*others)
        await swarm.rounds_done(2, *others)
        # then
        assert swarm[first].id in {entry.peer for entry in swarm.check_chain(others[0])[2].counted}


async def test_records_that_expire_are_repeated_for_who_was_away(tmp_path: Path) -> None:
    # given of two validators one was away when a round was decided, for longer than records last
    async with Swarm(tmp_path, "ann", "bob", validators=("ann", "bob"), rounds=6) as swarm:
        ann, bob = swarm["ann"], swarm["bob"]
        swarm.start()
        await swarm.rounds_done(1)
        await swarm.until(lambda: ann.peer.holds() != bob.peer.holds())
        behind = min((ann, bob), key=lambda node: int(node.peer.holds()))
        swarm.network.cut(behind.id)
        until = swarm.clock.now() + 20
        await swarm.until(lambda: swarm.clock.now() > until)
        swarm.network.records.clear()
        # when
        swarm.network.heal(behind.id)
        # then
        await swarm.finish()
        assert len(swarm.anchors()) == 1
