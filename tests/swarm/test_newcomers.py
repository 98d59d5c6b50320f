"""Who gets into a run of each kind, whole: members, the invited, those who have worked for it; and nobody else."""

from pathlib import Path

from elastic.audit.compare import play
from elastic.audit.evidence import Witness
from elastic.exchange.memory import MemoryExchange
from elastic.messages import GENESIS, Invitation, RoundIndex
from elastic.peer import Peer
from elastic.registry import build
from elastic.reports import RoundEvidence
from elastic.testify import INVITATION, invitations
from tests.swarm.builder import RUN, Node, Swarm, identity

ROUNDS = 6


def members(*names: str, **settings: object) -> dict[str, object]:
    return {"name": "reputation", "members": [identity(name).peer for name in names], **settings}


def invited(by: str, name: str, number: int = 0) -> Invitation:
    text = Invitation(run=RUN, inviter=identity(by).peer, number=number, invited=identity(name).peer)
    return identity(by).sign(text)


def counted(swarm: Swarm, name: str) -> int:
    return sum(manifest.counts(swarm[name].id) for manifest in swarm.check_chain("ann"))


async def test_to_a_listed_run_nobody_else_contributes(tmp_path: Path) -> None:
    names = ("ann", "bob", "eve", "fay")
    async with Swarm(
        tmp_path, *names, validators=("ann", "bob"), rounds=ROUNDS,
        incentive=members("ann", "bob", entry="listed"), round={"min_peers": 2},
    ) as swarm:  # fmt: skip
        swarm.start()
        await swarm.finish()
        assert [counted(swarm, name) for name in names] == [ROUNDS, ROUNDS, 0, 0]
        assert len(swarm.anchors()) == 1, "who does not contribute may follow"


async def test_who_is_invited_comes_in_and_who_shows_anothers_invitation_does_not(tmp_path: Path) -> None:
    names = ("ann", "bob", "cyd", "eve")
    async with Swarm(
        tmp_path, *names, validators=("ann", "bob"), rounds=ROUNDS,
        incentive=members("ann", "bob", entry="invited"), round={"min_peers": 2},
    ) as swarm:  # fmt: skip

        def bears(node: Node, invitation: Invitation) -> None:
            def on_start(peer: Peer) -> None:
                peer.invitation = invitation

            node.on_start = on_start

        bears(swarm["cyd"], invited("bob", "cyd"))
        bears(swarm["eve"], invited("bob", "cyd"))
        # when
        swarm.start()
        await swarm.finish()
        # then
        assert counted(swarm, "cyd") >= ROUNDS - 3
        assert counted(swarm, "eve") == 0


async def test_where_work_is_the_price_newcomers_count_little_at_first_and_no_round_is_lost(tmp_path: Path) -> None:
    async with Swarm(
        tmp_path, "ann", "bob", "cyd", validators=("ann", "bob", "cyd"), rounds=18,
        incentive={"name": "reputation", "entry": "work", "probation": 2},
    ) as swarm:  # fmt: skip
        swarm.start()
        await swarm.rounds_done(4)
        # when one comes later
        swarm.add("dan").start()
        await swarm.finish()
        # then its first work counts for almost nothing, its later work for more, and everyone agrees on it
        shares = [
            entry.share for manifest in swarm.check_chain("ann") for entry in manifest.counted
            if entry.peer == swarm["dan"].id
        ]  # fmt: skip
        assert shares[0] < 0.03
        assert shares[-1] > 5 * shares[0]
        assert all(not manifest.void for manifest in swarm.check_chain("ann")[1:])
        assert len(swarm.anchors()) == 1


async def test_only_genuine_invitations_of_this_run_shown_by_their_bearers_are_heard(tmp_path: Path) -> None:
    # given a validator, and what strangers show
    async with Swarm(tmp_path, "ann", validators=("ann",), rounds=1) as swarm:
        swarm.start()
        await swarm.finish()
        peer = swarm["ann"].peer
        head = peer.chain.head()
        plan = peer.plan(head)
        good = invited("ann", "bob")
        bob, eve = identity("bob").peer, identity("eve").peer
        elsewhere = identity("ann").sign(good.model_copy(update={"run": "other"}))
        shown = {
            bob: good.canonical(),
            eve: good.canonical(),
            identity("fay").peer: b"garbage",
            identity("gus").peer: good.model_copy(update={"invited": identity("gus").peer}).canonical(),
            identity("hal").peer: elsewhere.canonical(),
        }
        # then
        assert invitations(peer, plan, shown) == [good]
        # and of a crowd some are looked at in each round, others in the next
        crowd = {identity(f"crowd {each}").peer: invited("ann", f"crowd {each}").canonical() for each in range(200)}
        first = {each.invited for each in invitations(peer, plan, crowd)}
        later = plan.model_copy(update={"round": RoundIndex(plan.round + 1)})
        second = {each.invited for each in invitations(peer, later, crowd)}
        assert len(first) == len(second) == 64 and first != second


async def test_an_invitation_is_a_record_like_any_other(tmp_path: Path) -> None:
    async with Swarm(
        tmp_path, "ann", "cyd", validators=("ann",), rounds=2, round={"min_peers": 1},
        incentive=members("ann", entry="invited"),
    ) as swarm:  # fmt: skip
        swarm["cyd"].on_start = lambda peer: setattr(peer, "invitation", invited("ann", "cyd"))
        swarm.start()
        await swarm.finish()
        reader = MemoryExchange(swarm.network, identity("zoe").peer, RUN)
        shown = await reader.records(INVITATION, GENESIS)
        assert shown == {swarm["cyd"].id: invited("ann", "cyd").canonical()}


async def test_what_a_validator_wrote_down_shows_that_a_guest_was_asked(tmp_path: Path) -> None:
    async with Swarm(
        tmp_path, "ann", "cyd", validators=("ann",), rounds=ROUNDS, round={"min_peers": 1},
        incentive=members("ann", entry="invited"),
    ) as swarm:  # fmt: skip
        seen: list[RoundEvidence] = []
        swarm["ann"].on_start = lambda peer: setattr(peer, "on_evidence", seen.append)
        swarm["cyd"].on_start = lambda peer: setattr(peer, "invitation", invited("ann", "cyd"))
        swarm.start()
        await swarm.finish()
        took_part = counted(swarm, "cyd")
        assert took_part > 0
        # when that is played again
        books = play(Witness(swarm["ann"].id, seen), build("incentive", swarm.shared.incentive))
        # then the guest comes in where it did
        account = books.of(swarm["cyd"].id)
        assert (account.rounds, account.left_out) == (took_part, 0)
        # and each round has the invitations of that round, as far as it heard any
        assert {each for round_ in seen for each in round_.invitations} == {invited("ann", "cyd")}
