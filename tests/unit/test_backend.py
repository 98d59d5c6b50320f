"""The incentive of a peer, and what follows when the run agrees on another."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from elastic.actors import backend as room
from elastic.actors.backend import Backend
from elastic.actors.journal import Journal
from elastic.config import RunConfig, parse_config
from elastic.errors import ConfigError, StateError
from elastic.messages import Evidence, Invitation, PeerId, RoundIndex, Verdict
from elastic.peer import memory_of
from elastic.registry import local_settings
from elastic.reports import RoundEvidence
from elastic.sections import PluginChoice
from elastic.wire.signing import Identity
from incentives.reputation import Reputation
from incentives.subnet.backend import Subnet
from incentives.uniform import Uniform

ME, OTHER = (Identity.generate().peer for _ in range(2))
UNIFORM, REPUTATION = PluginChoice(name="uniform"), PluginChoice(name="reputation")
SUBNET = PluginChoice.model_validate({"name": "subnet", "netuid": 3})
ENDPOINT = {"endpoint": "ws://127.0.0.1:9"}


def config(folder: Path, chosen: PluginChoice = UNIFORM, **local: Any) -> RunConfig:
    tree = {
        "shared": {"run": "demo", "agreement": {"validators": [ME]}, "incentive": chosen.model_dump()},
        "local": {"state_dir": "state", **local},
    }
    return parse_config(tree, base=folder)


class FakeSettler:
    """Stands for the actor, which is Ray's; starts unless it is told to fail."""

    made: list["FakeSettler"] = []  # noqa: RUF012 (cleared by the fixture)
    fails: StateError | None = None

    def __init__(self, config: RunConfig, choice: PluginChoice, incentive: Any) -> None:
        self.choice, self.closed = choice, False
        self.made.append(self)

    async def start(self) -> None:
        if self.fails:
            raise self.fails

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def settlers(monkeypatch: pytest.MonkeyPatch) -> list[FakeSettler]:
    monkeypatch.setattr(room, "RemoteSettler", FakeSettler)
    monkeypatch.setattr(FakeSettler, "fails", None)
    FakeSettler.made.clear()
    return FakeSettler.made


async def changed(backend: Backend) -> None:
    """Until what is outside has changed over."""
    await asyncio.gather(*backend._changes)


def saw(journal: Journal, rounds: int) -> None:
    """So many rounds in which the other peer did well."""
    for index in range(1, rounds + 1):
        good = Evidence(verdict=Verdict(peer=OTHER, round=RoundIndex(index)))
        journal.learn(RoundEvidence(run="demo", round=RoundIndex(index), peer=PeerId(ME), evidence=(good,)))


async def test_another_incentive_begins_with_what_this_peer_saw_and_comes_back_to_what_it_knew(tmp_path: Path) -> None:
    # given a run with uniform shares in which somebody did well
    settings = config(tmp_path)
    journal = Journal(settings, ME)
    backend = Backend(settings, journal)
    assert isinstance((await backend.take_up(UNIFORM)).within, Uniform)
    saw(journal, 20)
    # when it agrees on reputation
    taken = await backend.take_up(REPUTATION)
    # then that is known, and nobody else is
    assert isinstance(taken.within, Reputation)
    assert taken.trust(RoundIndex(21), [OTHER, ME])[OTHER] > 0.5
    # and a later life has it from the memory that was saved under a name of its own
    kept = taken.state()
    assert kept is not None
    kept["memory"]["peers"][OTHER]["reputation"] = 0.75
    name = memory_of(settings.shared, REPUTATION.canonical())
    assert name not in ("incentive", "ratings")
    (tmp_path / "state" / f"{name}.json").write_text(json.dumps(kept))
    again = await Backend(settings, journal).take_up(REPUTATION)
    assert again.trust(RoundIndex(21), [OTHER])[OTHER] == 0.75


async def test_an_incentive_that_comes_back_hears_of_the_rounds_it_missed(tmp_path: Path) -> None:
    # given one whose memory is of round 10, and a peer that went on under another
    settings = config(tmp_path, REPUTATION)
    journal = Journal(settings, ME)
    saw(journal, 10)
    kept = await Backend(settings, journal).take_up(REPUTATION)
    path = tmp_path / "state" / f"{memory_of(settings.shared, REPUTATION.canonical())}.json"
    path.write_text(json.dumps(kept.state()))
    saw(journal, 20)
    # when it is taken up again
    again = await Backend(settings, journal).take_up(REPUTATION)
    # then it knows all twenty, each once
    whole = await Backend(config(tmp_path), Journal(config(tmp_path), ME)).take_up(REPUTATION)
    assert again.round == 20
    assert again.trust(RoundIndex(21), [OTHER]) == whole.trust(RoundIndex(21), [OTHER])
    assert again.trust(RoundIndex(21), [OTHER])[OTHER] > kept.trust(RoundIndex(21), [OTHER])[OTHER]


async def test_others_code_is_imported_only_if_the_run_file_accepts_it(tmp_path: Path) -> None:
    theirs = PluginChoice(name="examples.your_incentive:YourIncentive")
    with pytest.raises(ConfigError, match=r"add it to local\.incentives"):
        await Backend(config(tmp_path), Journal(config(tmp_path), ME)).take_up(theirs)
    settings = config(tmp_path, incentives=[theirs.name])
    assert type((await Backend(settings, Journal(settings, ME)).take_up(theirs)).within).__name__ == "YourIncentive"


async def test_an_incentive_that_is_agreed_on_later_knows_who_was_invited_before(tmp_path: Path) -> None:
    # given a run in which an invitation was heard
    settings = config(tmp_path)
    journal = Journal(settings, ME)
    given = Invitation(run="demo", inviter=PeerId(ME), number=0, invited=PeerId(OTHER))
    none = RoundEvidence(run="demo", round=RoundIndex(1), peer=PeerId(ME), evidence=(), invitations=(given,))
    journal.learn(none)
    # when it agrees on members and their guests
    guests = PluginChoice.model_validate({"name": "reputation", "entry": "invited", "members": [ME]})
    taken = await Backend(settings, journal).take_up(guests)
    # then the guest is one
    assert set(taken.select(RoundIndex(2), [ME, OTHER], 8)) == {ME, OTHER}


async def test_what_is_outside_begins_and_ends_with_its_incentive(tmp_path: Path, settlers: list[FakeSettler]) -> None:
    # given a run that is a subnet
    backend = Backend(config(tmp_path, SUBNET, incentive=ENDPOINT), Journal(config(tmp_path), ME))
    assert isinstance((await backend.take_up(SUBNET)).within, Subnet)
    assert [each.choice for each in settlers] == [SUBNET]
    # when it is one no more
    assert isinstance((await backend.take_up(REPUTATION)).within, Reputation)
    # then nothing goes to the chain
    await changed(backend)
    assert [each.closed for each in settlers] == [True]


async def test_a_run_that_becomes_a_subnet_finds_the_settings_that_name_it(
    tmp_path: Path, settlers: list[FakeSettler]
) -> None:
    settings = config(tmp_path, UNIFORM, incentive={"name": "subnet", **ENDPOINT})
    backend = Backend(settings, Journal(settings, ME))
    await backend.take_up(UNIFORM)
    assert settlers == []
    await backend.take_up(SUBNET)
    await changed(backend)
    assert [each.choice for each in settlers] == [SUBNET]


async def test_a_way_outside_that_fails_ends_a_peer_that_begins_and_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeSettler, "fails", StateError("the key's file is open to others"))
    settings = config(tmp_path, SUBNET, incentive=ENDPOINT)
    with pytest.raises(StateError):
        await Backend(settings, Journal(settings, ME)).take_up(SUBNET)
    settings = config(tmp_path, UNIFORM, incentive={"name": "subnet", **ENDPOINT})
    backend = Backend(settings, Journal(settings, ME))
    await backend.take_up(UNIFORM)
    assert isinstance((await backend.take_up(SUBNET)).within, Subnet)
    await changed(backend)
    assert "open to others" in caplog.text


async def test_no_round_waits_for_what_is_outside(tmp_path: Path, settlers: list[FakeSettler]) -> None:
    # given a settler that does not stop, as its chain hangs
    backend = Backend(config(tmp_path, SUBNET, incentive=ENDPOINT), Journal(config(tmp_path), ME))
    await backend.take_up(SUBNET)
    hangs = asyncio.Event()

    async def close() -> None:
        await hangs.wait()
        settlers[0].closed = True

    settlers[0].close = close  # type: ignore[method-assign]
    # when the run agrees on another incentive, it is there at once
    assert isinstance((await backend.take_up(REPUTATION)).within, Reputation)
    assert not settlers[0].closed
    # and the old one is gone in its own time
    hangs.set()
    await changed(backend)
    assert settlers[0].closed


def test_settings_of_this_machine_are_for_the_run_files_incentive_or_for_the_one_they_name(tmp_path: Path) -> None:
    mine = config(tmp_path, SUBNET, incentive=ENDPOINT)
    assert local_settings(mine, SUBNET) is not None
    assert local_settings(mine, REPUTATION) is None
    later = config(tmp_path, REPUTATION, incentive={"name": "subnet", **ENDPOINT})
    assert local_settings(later, REPUTATION) is None
    assert local_settings(later, SUBNET) is not None


@pytest.mark.parametrize(
    ("incentive", "local", "says"),
    [
        (REPUTATION, ENDPOINT, '"reputation" has no settings of this machine'),
        (REPUTATION, {"name": "uniform", "x": 1}, '"uniform" has no settings of this machine'),
        (REPUTATION, {"name": "subnet"}, "local.incentive: endpoint"),
        (REPUTATION, {"name": "subent", **ENDPOINT}, 'did you mean "subnet"?'),
    ],
)
def test_settings_that_fit_nothing_are_refused(
    tmp_path: Path, incentive: PluginChoice, local: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        local_settings(config(tmp_path, incentive, incentive=local), incentive)
