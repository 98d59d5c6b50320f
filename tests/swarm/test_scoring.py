"""Validators assess and testify in whole swarms of real parts in one process; what they wrote explains the scores."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builder import RUN, Node, Swarm, identity

from elastic.audit.compare import play, table
from elastic.audit.evidence import best_witness, find_peer, names_in
from elastic.audit.score import history, line
from elastic.errors import ConfigError
from elastic.messages import (
    MAX_SCORES,
    Amendment,
    ContributionHeader,
    Digest,
    RoundIndex,
    RoundPlan,
    Scoreboard,
    SignedScoreboard,
)
from elastic.peer import Peer
from elastic.reports import EVIDENCE_FILE, STATUS_FILE, PeerStatus, RoundEvidence
from elastic.testify import SCORES, _ours, heard
from elastic.verify.ratings import SEASONED
from incentives.reputation import Reputation
from incentives.uniform import Uniform

ROUNDS = 8
LONG = {"steps": 4, "batch_size": 4, "sequence_length": 32}


def flipped(node: Node) -> None:
    """From now on it sends the opposite of what it learned."""
    session = node.session
    honest = session.pseudo_gradient

    def opposite() -> dict[str, Any]:
        return {name: value.neg_() for name, value in honest().items()}

    session.pseudo_gradient = opposite  # type: ignore[method-assign]


def evidence_of(node: Node) -> list[RoundEvidence]:
    """Collects what a node learns, from its start on."""
    found: list[RoundEvidence] = []
    node.on_start = lambda peer: setattr(peer, "on_evidence", found.append)
    return found


async def test_a_validator_assesses_everyone_and_who_trains_helps(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=ROUNDS, inner=LONG) as swarm:
        seen, unseen = evidence_of(swarm["ann"]), evidence_of(swarm["bob"])
        swarm.start()
        await swarm.finish()
        # then the validator has gains of all, and most of them helped, most on their own tokens
        each = [one for round_ in seen for one in round_.evidence]
        assert len(each) == 3 * ROUNDS and all(one.assessment is not None for one in each)
        helped = [one.helped for one in each]
        assert helped.count(True) > 0.8 * len(helped)
        assert all(swarm["ann"].peer.ratings[node.id].works is not False for node in swarm.nodes.values())
        # and the others, who do not decide, have spent nothing on it
        assert len(unseen) == len(seen)
        assert all(one.assessment is None for round_ in unseen for one in round_.evidence)
        assert len(swarm.anchors()) == 1


async def test_who_does_damage_is_shut_out_and_nobody_else(tmp_path: Path) -> None:
    # given two validators, and one peer that sends the opposite of what it learns
    names = ("ann", "bob", "cyd", "eve")
    changes: dict[str, Any] = {"inner": LONG, "incentive": {"name": "reputation"}, "rounds": 10}
    async with Swarm(tmp_path, *names, validators=("ann", "bob", "cyd"), **changes) as swarm:
        swarm.start()
        await swarm.rounds_done(1)
        flipped(swarm["eve"])
        await swarm.finish()
        # then it is asked no more
        chain = swarm.check_chain("ann")
        assert swarm["eve"].id in chain[2].roster
        assert all(swarm["eve"].id not in manifest.roster for manifest in chain[6:])
        assert all(swarm[name].id in manifest.roster for name in names[:3] for manifest in chain)
        assert len(swarm.anchors("ann", "bob", "cyd")) == 1


async def test_an_assessment_is_the_gain_of_the_outer_step_it_tries(tmp_path: Path) -> None:
    # given a swarm in which a single contribution is the whole round, tried at full length
    async with Swarm(tmp_path, "ann", rounds=1, inner=LONG, scoring={"step": 1.0, "sequences": 64}) as swarm:
        ann = swarm["ann"]
        seen = evidence_of(ann)
        swarm.start()
        await swarm.rounds_done(0)
        session, kept = ann.session, {}
        honest = session.assess

        def spied(plan: RoundPlan, header: ContributionHeader, *rest: Any) -> Any:
            kept["assigned"] = session.assign(plan)
            return honest(plan, header, *rest)

        session.assess = spied  # type: ignore[method-assign]
        before = {name: value.clone() for name, value in session.anchor.items()}
        await swarm.finish()
        # then its gain on all of its tokens is what the outer step then did to their loss

        def loss(anchor: dict[str, torch.Tensor]) -> float:
            from elastic.train.tokens import cut

            with torch.no_grad():
                for name, param in session.fitted.params.items():
                    param.copy_(anchor[name])
                batches = kept["assigned"].reshape(-1, LONG["batch_size"])
                losses = [session.model.loss(cut(session.corpus, each, 32)).item() for each in batches]
            return sum(losses) / len(losses)

        (assessment,) = [one.assessment for one in seen[-1].evidence]
        assert assessment is not None
        expected = (loss(before) - loss(session.anchor)) / loss(before)
        assert assessment.gain_assigned == pytest.approx(expected, rel=1e-4)


def plan_of(peer: Peer, after: int) -> RoundPlan:
    """The round after that one."""
    head = peer.chain.get(RoundIndex(after))
    assert head is not None
    return peer.plan(head)


async def test_only_what_validators_signed_for_this_run_and_round_is_heard(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", rounds=1) as swarm:
        swarm.start()
        await swarm.finish()
        peer, round_ = swarm["bob"].peer, RoundIndex(1)
        plan = plan_of(peer, 1)
        ann, bob = identity("ann"), identity("bob")
        told = SignedScoreboard(
            run=peer.shared.run, round=round_, peer=ann.peer, previous=plan.previous, scores={bob.peer: 0.5}
        )
        good = ann.sign(told)
        assert heard(plan, {ann.peer: good.canonical()}) == [good]
        for bad in (
            told,
            good.model_copy(update={"scores": {bob.peer: 1.0}}),
            ann.sign(told.model_copy(update={"round": 2})),
            ann.sign(told.model_copy(update={"run": "other"})),
            ann.sign(told.model_copy(update={"previous": "a" * 64})),
            bob.sign(told.model_copy(update={"peer": bob.peer})),
        ):
            assert heard(plan, {ann.peer: bad.canonical()}) == []
        assert heard(plan, {ann.peer: b"garbage"}) == []
        assert heard(plan, {ann.peer: good.canonical().replace(b"0.5", b"NaN")}) == []
        # and who decides nothing is not heard, whatever it signs
        own = bob.sign(told.model_copy(update={"peer": bob.peer}))
        assert heard(plan, {bob.peer: own.canonical()}) == []


async def test_a_validator_says_in_the_next_round_what_it_thinks(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", rounds=3, incentive={"name": "reputation"}) as swarm:
        swarm.start()
        await swarm.finish()
        said = swarm.network.records[(swarm.shared.run, SCORES, RoundIndex(2))]  # told in round 3
        assert set(said) == {swarm["ann"].id}
        (told,) = heard(plan_of(swarm["bob"].peer, 2), said)
        assert swarm["bob"].peer.incentive.state()["heard"] == [told.model_dump(mode="json")]
        assert set(told.scores) == {swarm["ann"].id, swarm["bob"].id}


async def test_who_becomes_a_validator_is_silent_until_it_has_measured_for_a_while(tmp_path: Path) -> None:
    # given a run whose validator found one peer out, and two that become validators after that
    names = ("ann", "bob", "cyd", "eve")
    changes: dict[str, Any] = {"inner": LONG, "incentive": {"name": "reputation"}, "rounds": 18}
    async with Swarm(tmp_path, *names, validators=("ann",), **changes) as swarm:
        swarm.start()
        await swarm.rounds_done(1)
        flipped(swarm["eve"])
        await swarm.rounds_done(SEASONED + 1)
        deciding = tuple(sorted(swarm[name].id for name in names[:3]))
        swarm["ann"].ordered = Amendment(validators=deciding, incentive=None)
        await swarm.finish()
        # then they speak once they have measured, the one who always did in every round
        (change,) = swarm["ann"].peer.agreement.amendments()
        spoke = {name: speeches(swarm, name) for name in names}
        assert spoke["ann"] == list(range(1, 18))
        assert spoke["bob"][0] == spoke["cyd"][0] == change.round + SEASONED
        assert spoke["eve"] == []
        # and nobody who was shut out came back by it
        assert all(swarm["eve"].id not in manifest.roster for manifest in swarm.check_chain("ann")[change.round :])


def speeches(swarm: Swarm, name: str) -> list[int]:
    """The rounds on which it told others what it thinks."""
    return [
        round_ for round_ in range(1, 18)
        if swarm[name].id in swarm.network.records.get((RUN, SCORES, RoundIndex(round_)), {})
    ]  # fmt: skip


async def test_work_without_the_anchor_is_refused(tmp_path: Path) -> None:
    # given one that names the right anchor, with the proof of another peer
    async def stolen(header: ContributionHeader, node: Node) -> bytes:
        fake = header.model_copy(update={"proof": Digest("ab" * 32)})
        return identity(node.name).sign(fake).canonical()

    async with Swarm(tmp_path, "ann", "bob", "eve", rounds=2) as swarm:
        swarm["eve"].lie = stolen
        swarm.start()
        await swarm.finish()
        assert swarm["ann"].report(1).verdicts[swarm["eve"].id] == "no proof"
        assert not swarm.check_chain("ann")[1].counts(swarm["eve"].id)


async def test_a_trainer_that_breaks_while_it_assesses_costs_no_round(tmp_path: Path) -> None:
    from elastic.errors import TrainerLostError

    async with Swarm(tmp_path, "ann", "bob", rounds=3) as swarm:
        swarm.start()
        await swarm.rounds_done(0)

        def broken(*args: Any) -> Any:
            raise TrainerLostError("gone")

        swarm["ann"].session.assess = broken  # type: ignore[method-assign]
        await swarm.finish()
        assert all(swarm["bob"].report(index).counted for index in (1, 2, 3))


async def test_what_was_written_down_explains_the_scores(tmp_path: Path) -> None:
    # given the accounts of a validator and of another peer, as files
    async with Swarm(tmp_path / "swarm", "ann", "bob", rounds=4, inner=LONG) as swarm:
        accounts = {name: evidence_of(swarm[name]) for name in swarm.nodes}
        swarm.start()
        await swarm.finish()
        ids = {name: swarm[name].id for name in swarm.nodes}
        for name, seen in accounts.items():
            folder = tmp_path / "runs" / name
            folder.mkdir(parents=True)
            (folder / EVIDENCE_FILE).write_bytes(b"".join(each.canonical() + b"\n" for each in seen) + b"torn")
            status = PeerStatus(peer=ids[name], name=name, run="demo", stage="left", updated=1.0, pid=1)
            (folder / STATUS_FILE).write_bytes(status.canonical())
    # then the validator's is the one to be asked
    witness, names = best_witness(tmp_path / "runs"), names_in(tmp_path / "runs")
    assert (witness.peer, witness.assessments, len(witness.rounds)) == (ids["ann"], 8, 4)
    assert names == {ids[name]: name for name in ids}
    assert find_peer("bob", witness.peers, names) == find_peer(ids["bob"][-6:], witness.peers, names) == ids["bob"]
    for nobody in ("cyd", "12D3"):
        with pytest.raises(ConfigError, match=r"ann, bob|bob, ann"):
            find_peer(nobody, witness.peers, names)
    # and it tells the same story again
    moves = list(history(witness, ids["bob"], Reputation(Reputation.Config())))
    assert [move.round for move in moves] == [1, 2, 3, 4]
    assert [move.evidence for move in moves] == [
        one for seen in accounts["ann"] for one in seen.evidence if one.verdict.peer == ids["bob"]
    ]
    assert "on others' tokens" in line(moves[-1]) and moves[-1].score > moves[0].score > 0
    books = {name: play(witness, each) for name, each in backends().items()}
    for each in books.values():
        assert sum(account.share for account in each.accounts.values()) == pytest.approx(4)
    assert {"ann", "bob"} <= {line.split()[0] for line in table(books, names) if line}


def backends() -> dict[str, Any]:
    return {"uniform": Uniform(Uniform.Config()), "reputation": Reputation(Reputation.Config())}


def test_a_folder_without_evidence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no evidence\.jsonl there"):
        best_witness(tmp_path)
    (tmp_path / EVIDENCE_FILE).write_bytes(b"")
    with pytest.raises(ConfigError, match="empty"):
        best_witness(tmp_path)
    (tmp_path / EVIDENCE_FILE).write_bytes(b"garbage\n{}\n")
    with pytest.raises(ConfigError, match="line 1"):
        best_witness(tmp_path)


async def test_a_crowd_that_is_shut_out_keeps_nobodys_reputation_untold(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", rounds=1) as swarm:
        swarm.start()
        await swarm.finish()
        # given more that are shut out than a scoreboard has room for
        crowd = {identity(f"crowd {number}").peer: -1.0 for number in range(2 * MAX_SCORES)}
        good = {identity(f"good {number}").peer: 0.5 for number in range(10)}
        # when
        ann = swarm["ann"].peer
        told = _ours(ann, plan_of(ann, 1), Scoreboard(round=RoundIndex(1), scores=crowd | good))
        # then
        assert len(told.scores) == MAX_SCORES and good.items() <= told.scores.items()
