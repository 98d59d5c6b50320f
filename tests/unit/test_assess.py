"""When a validator assesses, whom first, and when it stops."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from elastic.assess import assessing
from elastic.config import ScoringConfig
from elastic.errors import TrainerLostError
from elastic.messages import Assessment, PeerId, RoundIndex, Seconds
from elastic.schedule.clock import ManualClock
from elastic.schedule.phases import Phases
from elastic.verify.ratings import Ratings, Standing

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEF"]
PLAN: Any = SimpleNamespace(round=RoundIndex(9), decides=True)
WATCHES: Any = SimpleNamespace(round=RoundIndex(9), decides=False)


class SlowTrainer:
    """Takes a second of virtual time for each assessment."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock, self.asked = clock, list[PeerId]()
        self.fails = False

    async def assess(self, plan: Any, header: Any, payload: bytes, seed: int, beside: bytes | None) -> Assessment:
        self.asked.append(header.peer)
        await self.clock.sleep(Seconds(1.0))
        if self.fails:
            raise TrainerLostError("gone")
        return Assessment(peer=header.peer, round=plan.round, gain_assigned=0.2, gain_heldout=0.1)


def peer(averages: bool = False, **scoring: Any) -> Any:
    clock = ManualClock()
    return SimpleNamespace(
        id=PEERS[0], clock=clock, trainer=SlowTrainer(clock), ratings=Ratings(), draw_seed=lambda: 7,
        reducer=SimpleNamespace(averages=averages),
        shared=SimpleNamespace(scoring=ScoringConfig(**scoring)),
    )  # fmt: skip


async def one_round(
    one: Any, seconds: float, *offers: tuple[float, PeerId], plan: Any = PLAN
) -> dict[PeerId, Assessment]:
    """A round that takes so long, in which these contributions arrive."""
    phases = Phases(one.clock, lambda phase: None)
    async with assessing(one, plan, b"ours", phases) as assessor:
        for at, sender in offers:
            if at > phases.elapsed():
                await one.clock.sleep(Seconds(at - phases.elapsed()))
            assessor.offer(SimpleNamespace(peer=sender), b"payload")  # type: ignore[arg-type]
        if seconds > phases.elapsed():
            await one.clock.sleep(Seconds(seconds - phases.elapsed()))
    return assessor.found


async def test_who_waits_assesses_and_nobody_waits_for_it() -> None:
    one = peer(budget=0.0)
    found = await one_round(one, 20.0, *((at, who) for at, who in zip((1.0, 1.0, 4.0), PEERS, strict=False)))
    assert set(found) == set(PEERS[:3])
    assert one.clock.now() == pytest.approx(20.0, abs=0.01)


async def test_without_time_it_takes_its_budget_and_no_more() -> None:
    # given that everyone arrives at the very end of a round of 20 seconds, of which a twentieth is one
    one = peer(budget=0.05)
    found = await one_round(one, 20.0, *((20.0, who) for who in PEERS))
    assert len(found) == 1
    assert one.clock.now() == pytest.approx(21.0, abs=0.01)


async def test_whoever_was_not_assessed_for_longest_comes_first() -> None:
    one = peer(budget=0.1)
    one.ratings._standings = {who: Standing(last=8 - number) for number, who in enumerate(PEERS)}
    found = await one_round(one, 20.0, *((20.0, who) for who in PEERS))
    assert list(found) == [PEERS[5], PEERS[4]]


@pytest.mark.parametrize(("nobody", "plan"), [({}, WATCHES), ({"sequences": 0}, PLAN), ({"averages": True}, PLAN)])
async def test_who_does_not_decide_or_need_not_assesses_nobody(nobody: dict[str, Any], plan: Any) -> None:
    one = peer(**nobody)
    assert await one_round(one, 20.0, (1.0, PEERS[1]), plan=plan) == {}
    assert one.trainer.asked == []


async def test_a_trainer_that_is_lost_ends_the_assessing_and_not_the_round() -> None:
    one = peer()
    one.trainer.fails = True
    assert await one_round(one, 20.0, (1.0, PEERS[1]), (1.0, PEERS[2]), (1.0, PEERS[3])) == {}
    assert len(one.trainer.asked) == 1


@pytest.mark.parametrize("fails", [ValueError, asyncio.CancelledError])
async def test_a_round_that_breaks_takes_the_assessing_with_it(fails: Callable[[], BaseException]) -> None:
    one = peer()
    with pytest.raises(fails):  # type: ignore[call-overload]
        async with assessing(one, PLAN, None, Phases(one.clock, lambda phase: None)):
            raise fails()
    assert len(asyncio.all_tasks()) <= 2
