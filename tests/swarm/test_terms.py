"""A run changes its validators and its incentive while it goes on."""

import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, cast

import pytest

from elastic.agreement.charter import AMENDMENTS
from elastic.agreement.talk import MANIFEST
from elastic.amend import WISH
from elastic.contracts import Incentive
from elastic.errors import ConfigError
from elastic.guard import Guarded
from elastic.messages import Amendment, ContributionHeader, PeerId, RoundIndex
from elastic.peer import as_new
from elastic.reports import Wishes
from elastic.sections import PluginChoice
from elastic.testify import SCORES
from incentives.reputation import Reputation
from incentives.uniform import Uniform
from tests.swarm.builder import RUN, Swarm, identity

REPUTATION = PluginChoice(name="reputation").canonical()
LATER = RoundIndex(1000)


def deciding(*names: str) -> Amendment:
    return Amendment(validators=tuple(sorted(identity(name).peer for name in names)), incentive=None)


async def test_another_incentive_holds_from_the_round_after_it_was_agreed_and_no_round_is_lost(tmp_path: Path) -> None:
    # given a run of four that begins with uniform shares
    async with Swarm(tmp_path, "ann", "bob", "cyd", "dan", validators=("ann", "bob", "cyd"), rounds=6) as swarm:
        swarm.start()
        await swarm.rounds_done(2)
        assert all(isinstance(node.peer.incentive, Uniform) for node in swarm.nodes.values())
        # when a quorum of the operators order another incentive
        for name in ("ann", "bob"):
            swarm[name].ordered = Amendment(validators=None, incentive=REPUTATION)
        await swarm.finish()
        # then everyone has it, who did not order it too, and everybody counted in every round
        assert all(isinstance(node.peer.incentive, Reputation) for node in swarm.nodes.values())
        (change,) = [each for each in swarm.check_chain("dan") if each.amendment is not None]
        assert change.round >= 3
        # and what was thought with the old one is told as no score of the new one
        assert (RUN, SCORES, change.round) not in swarm.network.records
        assert [len(each.counted) for each in swarm.check_chain("dan")] == [0] + [4] * 6
        assert len(swarm.anchors()) == 1


async def test_what_fewer_than_a_quorum_ordered_changes_nothing(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", "cyd", validators=("ann", "bob", "cyd"), rounds=5) as swarm:
        swarm["ann"].ordered = deciding("ann")
        swarm["bob"].ordered = deciding("bob")
        swarm.start()
        await swarm.finish()
        assert all(each.amendment is None for each in swarm.check_chain("cyd"))
        assert all(report.counted for node in swarm.nodes.values() for report in node.reports)


async def test_a_validator_that_runs_tells_its_people_what_the_others_wish_for(tmp_path: Path) -> None:
    # given validators, two of which were ordered different things
    async with Swarm(tmp_path, "ann", "bob", "cyd", "dan", validators=("ann", "bob", "cyd"), rounds=30) as swarm:
        swarm["ann"].ordered, swarm["bob"].ordered = deciding("ann"), Amendment(validators=None, incentive=REPUTATION)
        heard: dict[str, list[Wishes]] = {name: [] for name in ("ann", "bob", "cyd", "dan")}
        for name, told in heard.items():
            swarm[name].on_start = lambda peer, told=told: setattr(peer, "on_wishes", told.append)  # type: ignore[misc]
        swarm.start()
        # when they run
        await swarm.until(lambda: bool(heard["cyd"]) and len(heard["cyd"][-1].wishes) == 2)
        # then one that was ordered nothing knows who wishes for what, and who only contributes does not listen
        wishes = heard["cyd"][-1]
        assert wishes.wishes == {swarm["ann"].id: swarm["ann"].ordered, swarm["bob"].id: swarm["bob"].ordered}
        assert wishes.names == {identity(name).peer: name for name in ("ann", "bob", "cyd")}
        assert (wishes.run, wishes.amended) == (RUN, 0)
        assert heard["dan"] == []
        # and when one joins the other, and it is agreed, it is wished for no more
        swarm["ann"].ordered = swarm["bob"].ordered
        await swarm.until(lambda: heard["cyd"][-1].amended > 0)
        assert heard["cyd"][-1].wishes == {}


async def test_nonsense_wished_for_is_left_out_and_wishes_of_strangers_are_not_heard(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", "cyd", validators=("ann", "bob"), rounds=30) as swarm:
        swarm["bob"].ordered = deciding("bob")
        heard: list[Wishes] = []
        swarm["ann"].on_start = lambda peer: setattr(peer, "on_wishes", heard.append)
        swarm.start()
        await swarm.until(lambda: bool(heard) and len(heard[-1].wishes) == 1)
        # when one validator posts what is no wish, and a stranger what is one
        at = swarm["ann"].peer.holds()
        for round_ in range(at, 31):
            records = swarm.network.records.setdefault((RUN, WISH, RoundIndex(round_)), {})
            records[swarm["cyd"].id] = deciding("cyd").canonical()
            swarm.network.show(swarm["bob"].id, WISH, RoundIndex(round_), b"{", swarm["ann"].id)
        # then
        await swarm.until(lambda: heard[-1].round > at + 1)
        assert heard[-1].wishes == {}


async def test_a_validator_that_is_not_there_is_waited_for_and_not_the_run(tmp_path: Path) -> None:
    # given an order to decide together with one that never came
    async with Swarm(tmp_path, "ann", "bob", validators=("ann",), rounds=8) as swarm:
        swarm["ann"].ordered = deciding("ann", "zoe")
        swarm.start()
        await swarm.rounds_done(3)
        assert swarm["ann"].peer.agreement.amendments() == []
        # when it comes
        swarm.add("zoe").start()
        await swarm.finish()
        # then it decides too
        assert swarm["bob"].peer.agreement.terms(LATER).validators == deciding("ann", "zoe").validators
        assert len(swarm.anchors()) == 1


async def test_every_first_validator_may_leave_for_good_and_who_comes_then_finds_out(tmp_path: Path) -> None:
    # given a run that one validator began, and handed over
    async with Swarm(tmp_path, "ann", "bob", "cyd", validators=("ann",), rounds=9) as swarm:
        swarm["ann"].ordered = deciding("bob", "cyd")
        swarm.start()
        await swarm.until(lambda: swarm["bob"].peer is not None and swarm["bob"].peer.decides(LATER))
        await swarm.rounds_done(4)
        # when it is gone, and a peer comes that knows the run file alone
        await swarm["ann"].stop()
        swarm.add("dan").start()
        await swarm.finish("bob", "cyd", "dan")
        # then the run is complete, and the newcomer took part
        assert len(swarm.anchors("bob", "cyd", "dan")) == 1
        assert any(report.counted for report in swarm["dan"].reports)
        assert swarm["dan"].peer.agreement.terms(LATER).validators == deciding("bob", "cyd").validators


async def test_who_knew_only_validators_that_are_gone_by_now_finds_back(tmp_path: Path) -> None:
    # given a peer that was away while the one validator it knew handed over and left for good
    async with Swarm(tmp_path, "ann", "bob", "cyd", validators=("ann",), rounds=14) as swarm:
        swarm.start()
        await swarm.rounds_done(1)
        await swarm["cyd"].stop()
        swarm["ann"].ordered = deciding("bob")
        await swarm.until(lambda: bool(swarm["bob"].peer.decides(LATER)))
        at = swarm["bob"].peer.holds()
        await swarm.rounds_done(at + 2, "ann", "bob")
        await swarm["ann"].stop()
        await swarm.rounds_done(at + 4, "bob")
        # when records of those rounds have expired, and it comes back
        for key in [each for each in swarm.network.records if each[1] == MANIFEST and each[2] < at + 3]:
            del swarm.network.records[key]
        swarm["cyd"].start()
        await swarm.finish("bob", "cyd")
        # then
        assert len(swarm.anchors("bob", "cyd")) == 1


async def test_a_founder_that_handed_over_and_lost_its_disk_does_not_found_again(tmp_path: Path) -> None:
    # given a run that its founder handed over
    async with Swarm(tmp_path, "ann", "bob", validators=("ann",), rounds=12) as swarm:
        swarm["ann"].ordered = deciding("bob")
        swarm.start()
        await swarm.until(lambda: swarm["bob"].peer is not None and swarm["bob"].peer.decides(LATER))
        await swarm.rounds_done(4)
        # when it comes back with nothing, and nobody tells it at first
        await swarm["ann"].stop()
        shutil.rmtree(swarm["ann"].directory)
        records = swarm.network.records
        told = {key: records.pop(key) for key in list(records) if key[1] in (AMENDMENTS, MANIFEST)}
        swarm["ann"].start()
        await swarm.rounds_done(swarm["bob"].peer.holds() + 2, "bob")
        # then it waits; and it follows once it is told
        assert swarm["ann"].peer.chain.head() is None
        records.update(told)
        await swarm.finish()
        assert len(swarm.anchors()) == 1


async def test_who_was_away_while_it_changed_comes_back_to_it(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", "cyd", validators=("ann", "bob", "cyd"), rounds=10) as swarm:
        swarm.start()
        await swarm.rounds_done(1)
        await swarm["cyd"].stop()
        for name in ("ann", "bob"):
            swarm[name].ordered = deciding("ann", "bob")
        await swarm.until(lambda: len(swarm["ann"].peer.agreement.terms(LATER).validators) == 2)
        at = swarm["ann"].peer.holds()
        await swarm.rounds_done(at + 2, "ann", "bob")
        # when
        swarm["cyd"].start()
        await swarm.finish()
        # then it decides no more, and its disk says why
        assert not swarm["cyd"].peer.decides(LATER)
        assert len(swarm["cyd"].peer.chain.amendments()) == 1
        assert len(swarm.anchors()) == 1


async def test_after_a_restart_the_terms_are_those_that_were_agreed(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", validators=("ann",), rounds=8) as swarm:
        swarm["ann"].ordered = Amendment(validators=deciding("bob").validators, incentive=REPUTATION)
        swarm.start()
        await swarm.until(lambda: swarm["bob"].peer is not None and swarm["bob"].peer.decides(LATER))
        await swarm.rounds_done(3)
        for name in ("ann", "bob"):
            await swarm[name].stop()
        # when both come back, to a network that has forgotten everything
        swarm.new_network()
        swarm.start()
        await swarm.finish()
        # then
        assert isinstance(swarm["ann"].peer.incentive, Reputation)
        assert not swarm["ann"].peer.decides(LATER) and swarm["bob"].peer.decides(LATER)
        assert len(swarm.anchors()) == 1


async def test_seats_are_filled_with_those_who_earned_it_and_who_is_gone_is_replaced(tmp_path: Path) -> None:
    # given a run that its organiser begins alone, with three seats
    names = ("ann", "bob", "cyd", "dan")
    async with Swarm(
        tmp_path, *names, validators=("ann",), rounds=40, agreement={"seats": 3, "absent_rounds": 4},
        incentive={"name": "reputation", "earn": 0.3},
    ) as swarm:  # fmt: skip
        swarm.start()
        await swarm.rounds_done(1)
        # when the others have helped for a while
        await swarm.until(lambda: len(swarm["dan"].peer.agreement.terms(LATER).validators) == 3)
        first = swarm["dan"].peer.agreement.terms(LATER).validators
        assert swarm["ann"].id in first
        # and the organiser leaves for good
        await swarm["ann"].stop()
        left = [name for name in names if name != "ann"]
        await swarm.finish(*left)
        # then the one who had no seat has it, one at a time, and the run went on to its end
        last = swarm["bob"].peer.agreement.terms(LATER).validators
        assert last == tuple(sorted(swarm[name].id for name in left))
        sizes = [len(each.amendment.validators or ()) for each in swarm["bob"].peer.agreement.amendments()]
        assert sizes == [2, 3, 3]
        assert len(swarm.anchors(*left)) == 1


BROKEN = PluginChoice(name="broken").canonical()


class Broken:
    """Nothing works."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ZeroDivisionError(name)


async def lacking(choice: PluginChoice) -> Incentive:
    """What a machine does on which the broken one is not installed."""
    if choice.name == "broken":
        raise ConfigError("broken cannot be imported")
    return await as_new(choice)


async def guarding(choice: PluginChoice) -> Incentive:
    """What a machine does on which it is."""
    within = Broken() if choice.name == "broken" else await as_new(choice)
    return Guarded(choice.name, cast(Incentive, within), Uniform(Uniform.Config()))


@pytest.mark.parametrize("take_up", [lacking, guarding])
async def test_an_incentive_that_does_not_work_costs_no_round_and_is_amended_away(
    tmp_path: Path, take_up: Callable[[PluginChoice], Awaitable[Incentive]], caplog: pytest.LogCaptureFixture
) -> None:
    # given three who agreed on one
    names = ("ann", "bob", "cyd")
    async with Swarm(tmp_path, *names, validators=("ann", "bob", "cyd"), rounds=8) as swarm:
        for name in names:
            swarm[name].on_start = lambda peer: setattr(peer, "take_up", take_up)
            swarm[name].ordered = Amendment(validators=None, incentive=BROKEN)
        swarm.start()
        await swarm.until(lambda: swarm["cyd"].peer is not None and swarm["cyd"].peer.agreement.amendments() != [])
        await swarm.rounds_done(4)
        assert swarm["cyd"].peer.agreement.terms(LATER).incentive == BROKEN
        # when they agree on another
        for name in names:
            swarm[name].ordered = Amendment(validators=None, incentive=REPUTATION)
        await swarm.finish()
        # then nobody ended, and every round counted everyone
        assert [len(each.counted) for each in swarm.check_chain("ann")] == [0] + [3] * 8
        assert swarm["ann"].peer.agreement.terms(LATER).incentive == REPUTATION
        assert "broken" in caplog.text
        assert len(swarm.anchors()) == 1


class WinnerTakesAll(Uniform):
    """Only one contribution counts in a round."""

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        return {min(each.peer for each in accepted): 1.0} if accepted else {}


async def test_an_incentive_by_which_few_count_stops_no_round(tmp_path: Path) -> None:
    async def winner(choice: PluginChoice) -> Incentive:
        return Guarded("winner", WinnerTakesAll(Uniform.Config()), Uniform(Uniform.Config()))

    names = ("ann", "bob", "cyd", "dan")
    async with Swarm(tmp_path, *names, validators=names[:3], rounds=4) as swarm:
        for name in names:
            swarm[name].on_start = lambda peer: setattr(peer, "take_up", winner)
        swarm.start()
        await swarm.finish()
        assert [len(each.counted) for each in swarm.check_chain("ann")] == [0] + [1] * 4


async def test_who_restarts_under_an_incentive_it_cannot_have_goes_on_with_the_run_files(tmp_path: Path) -> None:
    # given a run that agreed on one that is not installed anywhere
    async with Swarm(tmp_path, "ann", "bob", validators=("ann",), rounds=8) as swarm:
        for name in ("ann", "bob"):
            swarm[name].on_start = lambda peer: setattr(peer, "take_up", lacking)
        swarm["ann"].ordered = Amendment(validators=None, incentive=BROKEN)
        swarm.start()
        await swarm.until(lambda: swarm["ann"].peer is not None and swarm["ann"].peer.agreement.amendments() != [])
        # when the one who decides is restarted
        await swarm["ann"].stop()
        swarm["ann"].start()
        await swarm.finish()
        # then
        assert isinstance(swarm["ann"].peer.incentive, Uniform)
        assert "incentive" in swarm["ann"].peer.memories()
        assert len(swarm.anchors()) == 1


async def test_an_order_that_few_gave_stands_in_no_elections_way(tmp_path: Path) -> None:
    # given two who decide, seats for three, and an order that only one of them has
    names = ("ann", "bob", "cyd")
    async with Swarm(
        tmp_path, *names, validators=("ann", "bob"), rounds=16, agreement={"seats": 3, "absent_rounds": 4},
        incentive={"name": "reputation", "earn": 0.3},
    ) as swarm:  # fmt: skip
        swarm["ann"].ordered = Amendment(validators=None, incentive=PluginChoice(name="uniform").canonical())
        swarm.start()
        await swarm.finish()
        # then the seat is filled
        terms = swarm["cyd"].peer.agreement.terms(LATER)
        assert terms.validators == tuple(sorted(swarm[name].id for name in names))
        assert "reputation" in terms.incentive


async def test_a_validator_that_decides_and_does_not_contribute_keeps_its_seat(tmp_path: Path) -> None:
    # given three who decide, of whom one is no member and may not contribute, and one who would have its seat
    names = ("ann", "bob", "cyd", "dan")
    members = [identity(name).peer for name in names if name != "cyd"]
    async with Swarm(
        tmp_path, *names, validators=("ann", "bob", "cyd"), rounds=16, agreement={"seats": 3, "absent_rounds": 8},
        incentive={"name": "reputation", "earn": 0.3, "entry": "listed", "members": members}, round={"min_peers": 3},
    ) as swarm:  # fmt: skip
        swarm.start()
        await swarm.finish()
        # then it still decides
        assert not any(swarm["cyd"].id in manifest.roster for manifest in swarm.check_chain("dan"))
        assert swarm["dan"].peer.agreement.amendments() == []


async def test_who_does_not_decide_and_lacks_the_incentive_goes_on_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # given a contributor on whose machine the next incentive is not installed
    async def lacks(choice: PluginChoice) -> Incentive:
        if choice.name == "reputation":
            raise ConfigError("reputation cannot be imported")
        return await as_new(choice)

    async with Swarm(tmp_path, "ann", "bob", validators=("ann",), rounds=5) as swarm:
        swarm["bob"].on_start = lambda peer: setattr(peer, "take_up", lacks)
        swarm["ann"].ordered = Amendment(validators=None, incentive=REPUTATION)
        # when
        swarm.start()
        await swarm.finish()
        # then
        assert isinstance(swarm["ann"].peer.incentive, Reputation)
        assert isinstance(swarm["bob"].peer.incentive, Uniform)
        assert caplog.text.count("reputation cannot be imported") == 1
        assert "incentive" in swarm["bob"].peer.memories(), "what it remembers is the old one's, under its name"
        assert all(report.counted for report in swarm["bob"].reports)
