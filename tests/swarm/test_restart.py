"""SIGKILL at any boundary of a round: a peer comes back from its directory, and neither loses nor repeats work."""

from pathlib import Path

import pytest
import torch
from builder import Node, Swarm, make_session

from elastic.agreement.quorum import BALLOT_FILE
from elastic.agreement.votes import Ballot, VoteKind
from elastic.messages import RoundIndex
from elastic.peer import Peer
from elastic.state.store import STATE_FOLDER, StateStore

BOUNDARIES = [
    "compress 2",  # the inner steps are done
    "commit 2",  # the contribution is on disk
    "publish 2",  # its digest is known, its bytes are not
    "gather 2",  # its bytes can be fetched, and nobody has yet
    "agree 2",  # everyone's has arrived
    "outer 2",  # the manifest is known, and on no disk but the validator's
    "before outer step 2",  # the manifest is in the chain
    "after outer step 2",  # the new anchor is on disk
]


def one_life(node: Node) -> None:
    """What every node has done in the end, however often it died."""
    for round_ in range(1, 5):
        assert len({payload for offered, payload in node.offered if offered == round_}) <= 1
    rounds = [round_ for round_, _ in node.settled]
    assert rounds == list(range(5))
    assert node.session.pending is None


def residual_round(node: Node) -> int:
    """The round in which the residual was left that this node's directory names."""
    meta = StateStore(node.directory / STATE_FOLDER).load()
    assert meta is not None and meta.residual_file is not None
    return int(meta.residual_file.split("-")[1])


@pytest.mark.parametrize("name", ["ann", "bob"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_a_peer_killed_anywhere_comes_back_at_once(tmp_path: Path, boundary: str, name: str) -> None:
    # given ann, who validates, or bob, who does not
    async with Swarm(tmp_path, "ann", "bob", "cyd") as swarm:
        node = swarm[name]
        node.crash_at = boundary
        swarm.start()
        assert await swarm.finish(name) == {name: f"crashed at {boundary}"}
        # then its residual on disk is of this round, or of the one before if it had not made another
        assert residual_round(node) == (1 if boundary == "compress 2" else 2)
        # when
        node.start()
        await swarm.finish()
        # then nothing is lost: the round counts its contribution, which it made once
        for each in swarm.nodes.values():
            one_life(each)
            assert len(swarm.check_chain(each.name)) == 5
        assert swarm.check_chain(name)[2].counts(node.id)
        assert len(swarm.anchors()) == 1


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_a_peer_killed_anywhere_comes_back_after_the_round(tmp_path: Path, boundary: str) -> None:
    # given
    async with Swarm(tmp_path, "ann", "bob", "cyd") as swarm:
        bob = swarm["bob"]
        bob.crash_at = boundary
        swarm.start()
        await swarm.finish("bob")
        # when
        await swarm.rounds_done(2, "ann", "cyd")
        bob.start()
        await swarm.finish()
        # then its contribution is settled once, whether it counted or not
        one_life(bob)
        counted = swarm.check_chain("ann")[2].counts(bob.id)
        assert dict(bob.settled)[RoundIndex(2)] == counted
        assert counted == (boundary not in {"compress 2", "commit 2", "publish 2", "gather 2"})
        assert len(swarm.anchors()) == 1


@pytest.mark.parametrize("boundary", BOUNDARIES[:-2])
async def test_a_whole_swarm_killed_goes_on_from_its_disks(tmp_path: Path, boundary: str) -> None:
    # given everyone dies at the same boundary, and the DHT forgets everything
    async with Swarm(tmp_path, "ann", "bob", "cyd") as swarm:
        for node in swarm.nodes.values():
            node.crash_at = boundary
        swarm.start()
        await swarm.finish()
        swarm.new_network()
        # when
        swarm.start()
        ended = await swarm.finish()
        # then
        assert set(ended.values()) == {"the run is complete after 4 rounds"}
        for node in swarm.nodes.values():
            one_life(node)
            assert swarm.check_chain("ann")[2].counts(node.id)
        assert len(swarm.anchors()) == 1


async def test_a_swarm_that_died_between_manifest_and_outer_step_still_has_the_payloads(tmp_path: Path) -> None:
    # given
    async with Swarm(tmp_path, "ann", "bob", "cyd") as swarm:
        for node in swarm.nodes.values():
            node.crash_at = "before outer step 2"
        swarm.start()
        await swarm.finish()
        swarm.new_network()
        # when only their disks remain
        swarm.start()
        ended = await swarm.finish()
        # then
        assert set(ended.values()) == {"the run is complete after 4 rounds"}
        assert all(node.session.pending is None for node in swarm.nodes.values())
        assert len(swarm.anchors()) == 1


async def test_a_finished_round_is_not_repeated_when_the_swarm_restarts(tmp_path: Path) -> None:
    # given
    async with Swarm(tmp_path, "ann", "bob") as swarm:
        swarm.start()
        await swarm.rounds_done(2)
        for node in swarm.nodes.values():
            await node.stop()
        held = {name: node.peer.holds() for name, node in swarm.nodes.items()}
        anchors = swarm.anchors()
        before = swarm.check_chain("ann")
        swarm.new_network()
        # when
        swarm.start()
        await swarm.until(lambda: all(node.peer.holds() > held[name] for name, node in swarm.nodes.items()))
        # then
        assert anchors
        assert swarm.check_chain("ann")[: len(before)] == before
        await swarm.finish()
        assert len(swarm.anchors()) == 1


@pytest.mark.parametrize("validators", [("ann",), ("ann", "bob", "cyd", "dan")], ids=len)
async def test_a_restarted_validator_never_contradicts_itself(tmp_path: Path, validators: tuple[str, ...]) -> None:
    # given a validator that dies as soon as its vote to make a manifest final is on disk, before anyone hears of it
    async with Swarm(tmp_path, "ann", "bob", "cyd", "dan", validators=validators) as swarm:
        ann = swarm["ann"]

        def vote_and_die(peer: Peer) -> None:
            keep = ann.peer.agreement._save

            def kept(ballot: bytes) -> None:
                keep(ballot)
                if Ballot.from_bytes(ballot).round == 2 and b"finalize" in ballot:
                    ann.crash_at = "voted"
                    ann.reach("voted")

            ann.peer.agreement._save = kept

        ann.on_start = vote_and_die
        swarm.start()
        assert await swarm.finish("ann") == {"ann": "crashed at voted"}
        said = Ballot.from_bytes((ann.directory / BALLOT_FILE).read_bytes())
        voted = {vote.manifest for vote in said.votes() if vote.kind is VoteKind.FINALIZE and vote.peer == ann.id}
        # when
        ann.on_start = lambda peer: None
        ann.start()
        await swarm.finish()
        # then
        for name in swarm.nodes:
            assert {swarm.check_chain(name)[2].digest()} == voted
        assert len(swarm.anchors()) == 1


@pytest.mark.parametrize("kind", ["contribution 2", "manifest 2"])
async def test_a_record_that_the_network_refused_is_posted_again(tmp_path: Path, kind: str) -> None:
    # given the validator's posts fail three times
    async with Swarm(tmp_path, "ann", "bob", "cyd") as swarm:
        swarm["ann"].unheard = [kind] * 3
        # when
        swarm.start()
        await swarm.finish()
        # then nobody had to go on without it
        for node in swarm.nodes.values():
            one_life(node)
            assert swarm.check_chain(node.name)[2].counts(node.id)
        assert len(swarm.anchors()) == 1


async def test_a_silent_contributor_delays_one_round_and_keeps_its_work(tmp_path: Path) -> None:
    # given cyd dies after its commitment, before anyone could fetch its payload
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=8) as swarm:
        cyd = swarm["cyd"]
        cyd.crash_at = "publish 1"
        swarm.start()
        await swarm.finish("cyd")
        plan = cyd.peer.plan(swarm.check_chain("cyd")[0])
        # when
        await swarm.rounds_done(3, "ann", "bob")
        # then the first round ended at its deadline, and the others did not wait
        seconds = [swarm["ann"].report(round_).seconds["total"] for round_ in (1, 2, 3)]
        assert seconds[0] >= 5.0 and max(seconds[1:]) < 2.0
        assert cyd.id not in swarm.check_chain("ann")[1].roster
        # when it comes back
        cyd.start()
        await swarm.until(lambda: bool(cyd.reports))
        # then all of its work is in its residual, to one unit in the last place
        twin = make_session(swarm.shared, tmp_path / "twin")
        twin.outer_step(swarm.check_chain("cyd")[0], {})
        twin.inner_steps(plan)
        for name, kept in cyd.session.residual.items():
            done = twin.anchor[name] - twin.fitted.params[name].detach()
            assert torch.allclose(kept, done, rtol=2**-23, atol=float(done.abs().max()) * 2**-23)
        # and it counts again
        await swarm.finish()
        assert cyd.report(8).counted
        assert len(swarm.anchors()) == 1
