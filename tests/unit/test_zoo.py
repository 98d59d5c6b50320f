"""Every kind of the zoo does what it says, and nothing else; the same seed does the same."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elastic import messages
from elastic.bench.attack.conduct import Absent, Body, Conduct, Slow, SlowLine
from elastic.bench.attack.sly import disturbed
from elastic.bench.attack.swarm import DEFENCES, Setting, Swarm
from elastic.bench.attack.zoo import QUICK, ZOO
from elastic.errors import MalformedError
from elastic.exchange.gather import CONTRIBUTION
from elastic.messages import ContributionHeader, Digest, PeerId, RoundIndex, RoundPlan, Seconds
from elastic.sim.loop import run
from elastic.testify import SCORES, WITNESS
from elastic.verify.checks import NEAR
from elastic.wire.tree import blob_digest

SETTING = Setting(peers=6, bad=0.34, rounds=8)
"""Two bad peers, of whom a kind with a vote has one that votes."""


def swarm(folder: Path, kind: type[Conduct], seed: int = 0) -> Swarm:
    return Swarm(SETTING, DEFENCES["none"], kind, seed, folder)


def plan(here: Swarm, round_: int = 1) -> RoundPlan:
    roster = tuple(sorted(member.id for member in here.members))
    me = here.of(bad=True)[0].id
    return RoundPlan(
        run=here.shared.run, round=RoundIndex(round_), previous=Digest("0" * 64), anchor=Digest("a" * 64), peer=me,
        roster=roster, slot=roster.index(me), inner_steps=here.shared.inner.steps, seed=0, train_seconds=20.0,
        gather_seconds=30.0,
    )  # fmt: skip


def body(here: Swarm) -> Body:
    return here.of(bad=True)[0].exchange.body


def header(peer: PeerId, payload: bytes, round_: int = 1) -> ContributionHeader:
    return ContributionHeader(
        run="attack", round=RoundIndex(round_), peer=peer, anchor=Digest("a" * 64), proof=Digest("c" * 64),
        payload=blob_digest(payload), size_bytes=len(payload), steps=8, tokens=100, loss=2.0,
    )  # fmt: skip


def done(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What it comes to, in simulated time."""
    return run(work)


async def one_round(kind: Conduct, me: Body, the: RoundPlan) -> bytes:
    payload = await kind.contribute(me, the, await kind.train(me, the))
    me.session.pending = None
    return payload


def flat(me: Body, payload: bytes) -> torch.Tensor:
    return torch.cat([value.flatten() for value in me.dense(payload).values()])


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Body, RoundPlan, bytes]:
    """A bad peer's body, with a payload that it made honestly."""
    here = swarm(tmp_path_factory.mktemp("zoo"), Conduct)
    me, the = body(here), plan(here)
    return me, the, done(lambda: one_round(Conduct(), me, the))


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("sign flip", -1.0, -0.98),
        ("scale x100", 0.98, 1.0),
        ("noise", -0.15, 0.15),
        ("slow poison 10 %", 0.7, 0.9),
        ("slow poison", 0.4, 0.6),
        ("slow poison 40 %", 0.1, 0.3),
    ],
)
def test_spoilt_work_points_where_it_should(honest: Any, kind: str, least: float, most: float) -> None:
    me, the, payload = honest
    spoilt = flat(me, ZOO[kind]().forge(me, the, payload))
    assert least <= cosine(spoilt, flat(me, payload)) <= most + 1e-6
    # and is as loud as it says
    louder = 100 if kind == "scale x100" else 1
    assert float(spoilt.norm() / flat(me, payload).norm()) == pytest.approx(louder, rel=0.1)


def test_one_round_in_four_is_poison(honest: Any) -> None:
    me, the, payload = honest
    forged = [ZOO["poison 1 in 4"]().forge(me, the.model_copy(update={"round": r}), payload) for r in range(1, 9)]
    assert [each == payload for each in forged] == [True, True, True, False] * 2


def test_disturbed_work_is_new_bytes_and_the_same_work(honest: Any) -> None:
    me, _, payload = honest
    other = disturbed(me, payload)
    assert blob_digest(other) != blob_digest(payload)
    one, two = flat(me, payload), flat(me, other)
    assert cosine(one, two) > 0.9
    kept = torch.count_nonzero((one != 0) & (two != 0)) / torch.count_nonzero(one)
    assert kept > NEAR + 0.05


@pytest.mark.parametrize("kind", ["nan", "shape bomb", "repeated index"])
def test_malformed_bytes_are_malformed(honest: Any, kind: str) -> None:
    me, the, payload = honest
    forged = ZOO[kind]().forge(me, the, payload)
    assert len(forged) <= me.reducer.max_bytes(me.session.like)
    with pytest.raises(MalformedError):
        me.reducer.decode(forged, me.session.like)


def test_sizes_are_lied_about(honest: Any) -> None:
    me, _, payload = honest
    said = header(me.id, payload)
    assert ZOO["size bomb"]().commitment(me, said).size_bytes > me.reducer.max_bytes(me.session.like)
    assert ZOO["size lie"]().commitment(me, said).size_bytes < len(payload)
    assert ZOO["no proof"]().commitment(me, said).proof != said.proof


def test_what_is_withheld_is_seen_by_half(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["withhold"])
    me, said = body(here), header(here.of(bad=True)[0].id, b"x")

    async def look() -> list[bool]:
        await me.exchange.post(CONTRIBUTION, RoundIndex(1), said.canonical())
        return [me.id in await other.exchange.records(CONTRIBUTION, RoundIndex(1)) for other in here.members]

    assert 2 <= sum(done(look)) <= 4


def test_what_is_never_served_is_nowhere(tmp_path: Path) -> None:
    me = body(swarm(tmp_path, ZOO["never serve"]))
    assert done(lambda: me.exchange.provide(b"payload")) == blob_digest(b"payload")
    assert me.exchange.held(blob_digest(b"payload")) is None


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("sandbag 10 %", 1), ("sandbag 25 %", 2), ("sandbag 50 %", 4), ("sandbag 75 %", 6), ("sandbag 90 %", 7)],
)
def test_who_sandbags_does_less_than_it_claims(tmp_path: Path, kind: str, steps: int) -> None:
    here = swarm(tmp_path, ZOO[kind])
    me, seen = body(here), []
    me.session.on_step = lambda step, loss: bool(seen.append(step))
    report = done(lambda: ZOO[kind]().train(me, plan(here)))
    assert (len(seen), report.steps, report.tokens) == (steps, 8, me.max_tokens)


def test_who_idles_claims_everything_and_says_nothing(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["idle"])
    me, kind = body(here), ZOO["idle"]()
    assert done(lambda: kind.train(me, plan(here))).tokens == me.max_tokens
    assert not flat(me, done(lambda: one_round(kind, me, plan(here)))).any()


def test_who_replays_works_in_one_round_of_four(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["stale replay"])
    me, kind = body(here), ZOO["stale replay"]()
    made = [done(lambda r=r: one_round(kind, me, plan(here, r))) for r in range(1, 6)]
    assert made[0] == made[1] == made[2] == made[3] != made[4]


def test_who_trains_on_other_data_trains_on_the_same_every_round(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["wrong data"])
    me, kind, taken = body(here), ZOO["wrong data"](), []
    right = me.session.assign
    me.session.assign = lambda the: taken.append(right(the)) or taken[-1]
    for round_ in (1, 2):
        done(lambda r=round_: one_round(kind, me, plan(here, r)))
    assert np.array_equal(taken[0], taken[1])
    assert not np.array_equal(taken[1], right(plan(here, 2)))


def test_who_trains_from_an_old_anchor_still_holds_the_right_one(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["old anchor"])
    me, kind = body(here), ZOO["old anchor"]()
    done(lambda: one_round(kind, me, plan(here)))
    # given an anchor that moved since
    me.session.anchor = {name: value + 1 for name, value in me.session.anchor.items()}
    right = me.session.anchor
    # when
    done(lambda: kind.train(me, plan(here, 2)))
    # then its params are near the old one
    assert me.session.anchor is right
    assert max((me.session.fitted.params[name] - right[name]).abs().min() for name in me.session.fitted.params) > 0.5


def test_validators_in_league_praise_friends_and_slander_the_rest(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["colluders"])
    me, kind = body(here), ZOO["colluders"]()
    honest = here.of(bad=False)[0].id
    assert me.validates and len(here.shared.agreement.validators) == 4
    said = messages.SignedScoreboard(run="attack", round=RoundIndex(1), peer=me.id, scores={honest: 0.9})
    assert kind.testimony(me, said).scores == {**dict.fromkeys(me.gang, 1.0), honest: -1.0}


def test_two_faces_tell_every_second_peer_what_the_others_do_not_hear(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["two faces"])
    liar, round_ = next(each for each in here.of(bad=True) if each.exchange.body.validates), RoundIndex(1)
    honest = here.of(bad=False)[0].id
    said = messages.SignedScoreboard(run="attack", round=round_, peer=liar.id, scores={honest: 0.9})
    done(lambda: liar.exchange.post(SCORES, round_, said.canonical()))
    # then
    heard = [
        messages.SignedScoreboard.from_bytes(seen[liar.id]).scores[honest]
        for member in here.members
        if (seen := here.network.seen_by(member.id, "attack", SCORES, round_)) and member.id != liar.id
    ]
    assert sorted(set(heard)) == [-1.0, 0.9]
    assert heard.count(-1.0) in (2, 3)


def test_who_lies_shows_nobody_what_it_really_thinks(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["colluders"])
    liar, round_ = next(each for each in here.of(bad=True) if each.exchange.body.validates), RoundIndex(2)
    honest = here.of(bad=False)[0]
    # given one that names, as every validator does, what it heard itself and another say
    heard = dict.fromkeys((liar.id, honest.id), Digest("a" * 64))
    said = messages.SignedScoreboard(run="attack", round=round_, peer=liar.id, scores={honest.id: 0.9}, heard=heard)
    assert set(ZOO["colluders"]().testimony(liar.exchange.body, said).heard) == {honest.id}
    # when it is asked for its own word, and for another's
    done(lambda: liar.exchange.post(WITNESS[2], round_, said.canonical()))
    other = said.model_copy(update={"peer": honest.id})
    done(lambda: liar.exchange.post(WITNESS[3], round_, other.canonical()))
    # then
    assert liar.id not in here.network.seen_by(honest.id, "attack", WITNESS[2], round_)
    assert liar.id in here.network.seen_by(honest.id, "attack", WITNESS[3], round_)


def test_a_traitor_turns_late(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["traitor"])
    me, kind = body(here), ZOO["traitor"]()
    payload = me.packed({name: torch.ones(meta.shape) for name, meta in me.session.like.items()})
    last = here.shared.rounds
    assert kind.forge(me, plan(here, 1), payload) == payload
    assert kind.forge(me, plan(here, last), payload) != payload


@pytest.mark.parametrize("kind", ["copy", "late copy", "copy + noise"])
def test_a_thief_takes_what_others_committed_to(tmp_path: Path, kind: str) -> None:
    # given three victims, of whom one commits late
    here = swarm(tmp_path, ZOO[kind])
    me, victims = body(here), [member.exchange for member in here.of(bad=False)]
    payloads = [me.packed({n: torch.full(v.shape, 1.0 + i) for n, v in me.session.like.items()}) for i in range(4)]

    async def steal() -> tuple[bytes, float]:
        async def commit(number: int) -> None:
            await here.clock.sleep(Seconds(2.0 if number else 8.0))
            victim = victims[number]
            await victim.post(CONTRIBUTION, RoundIndex(1), header(victim.peer, payloads[number]).canonical())
            await victim.provide(payloads[number])

        others = [asyncio.create_task(commit(number)) for number in range(4)]
        stolen = await one_round(ZOO[kind](), me, plan(here))
        when = here.clock.now()
        await asyncio.gather(*others)
        return stolen, when

    stolen, when = done(steal)
    assert (stolen in payloads) is (kind != "copy + noise")
    assert (when > 8.0) is (kind == "late copy")


def test_sybils_share_one_trainer(tmp_path: Path) -> None:
    here = swarm(tmp_path, ZOO["sybils"])
    bodies, steps = [member.exchange.body for member in here.of(bad=True)], []
    for each in bodies:
        each.session.on_step = lambda step, loss: bool(steps.append(step))
    kind = ZOO["sybils"]()
    made = [done(lambda each=each: one_round(kind, each, plan(here))) for each in bodies]
    assert len(steps) == 8
    assert made[0] != made[1]
    assert cosine(flat(bodies[0], made[0]), flat(bodies[1], made[1])) > 0.85


@pytest.mark.parametrize("unlucky", [Slow, Absent, SlowLine])
def test_the_unlucky_say_what_they_did(tmp_path: Path, unlucky: type[Conduct]) -> None:
    here = swarm(tmp_path, unlucky)
    me, seen = body(here), []
    me.session.on_step = lambda step, loss: bool(seen.append(step))
    report = done(lambda: unlucky().train(me, plan(here)))
    assert report.steps == len(seen) and report.tokens == len(seen) * 8 * 32
    assert (len(seen) < 8) is (unlucky is Slow)


@pytest.mark.parametrize("kind", [kind for kind in ZOO if "copy" not in kind])
def test_the_same_seed_does_the_same(tmp_path: Path, kind: str) -> None:
    def made(folder: str, seed: int) -> bytes:
        here = swarm(tmp_path / folder, ZOO[kind], seed)
        me = here.of(bad=True)[-1].exchange.body
        return done(lambda: one_round(ZOO[kind](), me, plan(here, 4)))

    assert made("one", 0) == made("two", 0)


def test_every_kind_is_described() -> None:
    assert all(kind.__doc__ for kind in ZOO.values())
    assert set(QUICK) <= set(ZOO)
