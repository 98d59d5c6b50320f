"""Who is let into a run, and what sybils cost: lists, invitations, work; and reputations that are carried over."""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from elastic.config import load_config
from elastic.errors import ConfigError, StateError
from elastic.invite import GIVEN_FILE, INVITATION_FILE, invite, read_invitation
from elastic.messages import ContributionHeader, Digest, Evidence, Invitation, PeerId, RejectReason, RoundIndex, Verdict
from elastic.reports import EVIDENCE_FILE, RoundEvidence
from elastic.wire.signing import Identity, verify
from incentives.entry import MAX_INVITED, PROBATION_PART
from incentives.reputation import Reputation
from tests.unit.conftest import Run

KEYS = [Identity.generate() for _ in range(6)]
ANN, BOB, CYD, DAN, EVE, FAY = PEERS = [key.peer for key in KEYS]
ROUND = RoundIndex(5)


def reputation(**settings: Any) -> Reputation:
    return Reputation(Reputation.Config.model_validate(settings))


def invitation(inviter: Identity, number: int, invited: PeerId, run: str = "demo") -> Invitation:
    return inviter.sign(Invitation(run=run, inviter=inviter.peer, number=number, invited=invited))


def header(peer: PeerId) -> ContributionHeader:
    return ContributionHeader(
        run="demo", round=ROUND, peer=peer, anchor=Digest("a" * 64), proof=Digest("c" * 64), payload=Digest("b" * 64),
        size_bytes=1, steps=1, tokens=100, loss=1.0,
    )  # fmt: skip


def live(incentive: Reputation, rounds: range, helped: bool | None = None, **verdicts: RejectReason | None) -> None:
    """The peers named by their variables do well, or not, in each of these rounds; `helped`: as validators found."""
    for index in rounds:
        seen = [
            Evidence(verdict=Verdict(peer=globals()[name], round=RoundIndex(index), rejected=rejected), helped=helped)
            for name, rejected in verdicts.items()
        ]
        incentive.score(RoundIndex(index), seen)


def test_of_a_listed_run_nobody_else_contributes_however_many_come() -> None:
    incentive = reputation(entry="listed", members=[ANN, BOB])
    sybils = [Identity.generate().peer for _ in range(20)]
    assert incentive.select(ROUND, [*PEERS, *sybils], 48) == sorted([ANN, BOB])


def test_members_and_those_they_invite_come_in_and_nobody_else() -> None:
    incentive = reputation(entry="invited", members=[ANN])
    assert incentive.select(ROUND, PEERS, 48) == [ANN]
    incentive.hear([invitation(KEYS[0], 0, BOB), invitation(KEYS[4], 0, FAY)])
    assert incentive.select(ROUND, PEERS, 48) == sorted([ANN, BOB])


def test_who_is_established_may_invite_and_who_is_not_may_not_yet() -> None:
    incentive = reputation(entry="invited", members=[ANN], earn=0.2)
    incentive.hear([invitation(KEYS[0], 0, BOB)])
    live(incentive, range(1, 3), ANN=None, BOB=None)
    incentive.hear([invitation(KEYS[1], 0, CYD)])
    assert CYD not in incentive.select(RoundIndex(3), PEERS, 48)
    live(incentive, range(3, 6), ANN=None, BOB=None)
    assert CYD in incentive.select(RoundIndex(6), PEERS, 48)


def test_an_inviter_has_so_many_and_one_given_twice_is_void_for_both() -> None:
    incentive = reputation(entry="invited", members=[ANN], invitations=2)
    incentive.hear([invitation(KEYS[0], 2, BOB)])
    assert BOB not in incentive.select(ROUND, PEERS, 48)
    incentive.hear([invitation(KEYS[0], 0, CYD), invitation(KEYS[0], 1, DAN)])
    assert {CYD, DAN} <= set(incentive.select(ROUND, PEERS, 48))
    incentive.hear([invitation(KEYS[0], 1, EVE)])
    chosen = incentive.select(ROUND, PEERS, 48)
    assert CYD in chosen and DAN not in chosen and EVE not in chosen


def test_whoever_answered_for_one_that_is_shut_out_pays_for_it() -> None:
    incentive = reputation(entry="invited", members=[ANN], vouched=0.5)
    incentive.hear([invitation(KEYS[0], 0, BOB)])
    live(incentive, range(1, 20), ANN=None, BOB=None)
    before = incentive.score(RoundIndex(19), []).scores[ANN]
    live(incentive, range(20, 22), BOB=RejectReason.MALFORMED)
    after = incentive.score(RoundIndex(21), []).scores
    assert after[BOB] == -1
    assert after[ANN] < 0.55 * before
    assert BOB not in incentive.select(RoundIndex(22), PEERS, 48)


def test_strangers_cannot_fill_the_memory_with_invitations() -> None:
    incentive = reputation(entry="invited", members=[ANN], invitations=64)
    incentive.hear([invitation(Identity.generate(), 0, BOB) for _ in range(50)])
    assert incentive.state()["invited"] == []
    made = [Invitation(run="demo", inviter=ANN, number=each % 64, invited=PEERS[1]) for each in range(MAX_INVITED + 9)]
    incentive.hear(made)
    assert len(incentive.state()["invited"]) <= 64


def test_invitations_survive_a_restart() -> None:
    incentive = reputation(entry="invited", members=[ANN])
    incentive.hear([invitation(KEYS[0], 0, BOB), invitation(KEYS[0], 1, CYD), invitation(KEYS[0], 1, DAN)])
    again = reputation(entry="invited", members=[ANN])
    again.restore(incentive.state())
    assert again.select(ROUND, PEERS, 48) == incentive.select(ROUND, PEERS, 48) == sorted([ANN, BOB])
    with pytest.raises(StateError):
        again.restore({"peers": {}, "heard": [], "invited": [["x"]]})


def test_work_that_nobody_knows_yet_counts_for_almost_nothing_and_more_with_every_round() -> None:
    # given one who helped long enough, and one who just came
    incentive = reputation(entry="work", probation=3)
    live(incentive, range(1, 30), True, ANN=None)
    live(incentive, range(26, 30), None, BOB=None)
    rises = [part(incentive)]
    # when that one helps
    for round_ in (30, 31, 32):
        live(incentive, range(round_, round_ + 1), True, BOB=None)
        rises.append(part(incentive))
    # then it counts a little more each time, and as other newcomers do once it has helped as often
    assert rises[0] <= PROBATION_PART
    assert rises == sorted(rises)
    factors = [later / earlier for earlier, later in pairwise(rises)]
    assert max(factors) < 4, f"no round makes most of the difference: {factors}"
    # (a newcomer's share is a fifth of the best one's, and a little for its own reputation)
    assert 0.2 < rises[-1] < 0.5


def part(incentive: Reputation) -> float:
    """Bob's share against Ann's."""
    shares = incentive.shares([header(ANN), header(BOB)])
    return shares[BOB] / shares[ANN]


def test_where_work_is_the_price_nothing_else_earns() -> None:
    incentive = reputation(entry="work")
    live(incentive, range(1, 30), None, ANN=None)
    live(incentive, range(1, 30), True, BOB=None)
    trust = incentive.trust(RoundIndex(30), [ANN, BOB])
    assert trust[ANN] == 0 and trust[BOB] > 0.5


def test_at_the_beginning_of_a_run_everyone_is_new_and_all_count_alike() -> None:
    shares = reputation(entry="work").shares([header(peer) for peer in PEERS])
    assert all(share == pytest.approx(1 / 6) for share in shares.values())


def test_a_run_begins_with_what_another_thought() -> None:
    incentive = reputation(carried={ANN: 0.8, BOB: -1.0})
    assert incentive.trust(RoundIndex(1), [ANN, BOB, CYD]) == pytest.approx({ANN: 0.8, BOB: -1.0, CYD: 0.0}, abs=0.01)
    assert BOB not in incentive.select(RoundIndex(1), PEERS, 48)
    shares = incentive.shares([header(ANN), header(CYD)])
    assert shares[ANN] > 3 * shares[CYD]
    # and it is no memory for ever
    assert BOB in incentive.select(RoundIndex(60), PEERS, 48)


@pytest.mark.parametrize(
    "settings",
    [
        {"entry": "listed"}, {"entry": "invited", "members": []}, {"entry": "friends"}, {"members": ["nobody"]},
        {"carried": {ANN: float("nan")}}, {"carried": {ANN: 2.0}}, {"carried": {"x": 0.5}}, {"probation": 0},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"members|entry|carried|probation"):
        reputation(**settings)


# --- the commands ---------------------------------------------------------------------------------------------------


def with_incentive(lines: str) -> None:
    text = Path("run.toml").read_text()
    start, end = text.index("[shared.incentive]"), text.index("[shared.scoring]")
    Path("run.toml").write_text(text[:start] + f"[shared.incentive]\n{lines}\n\n" + text[end:])


def test_an_invitation_is_written_once_for_each_newcomer(validator: Run) -> None:
    with_incentive(f'name = "reputation"\nentry = "invited"\nmembers = ["{ANN}"]\ninvitations = 2')
    code, out, _ = validator("incentives", "invite", "run.toml", BOB, "-o", "bob.json")
    assert code == 0 and INVITATION_FILE in out
    made = Invitation.from_bytes(Path("bob.json").read_bytes())
    verify(made)
    mine = Identity.load(load_config(Path("run.toml")).key_path).peer
    assert (made.inviter, made.number, made.invited, made.run) == (mine, 0, BOB, "demo")
    # asked again it is the same, and the next one has another number
    assert invite(load_config(Path("run.toml")), BOB) == made
    assert invite(load_config(Path("run.toml")), CYD).number == 1
    code, _, err = validator("incentives", "invite", "run.toml", DAN)
    assert code == 1 and "all 2 invitations" in err


def own(rejected: RejectReason | None, rounds: int, run: str = "demo") -> None:
    """This machine's peer wrote down how it did itself."""
    config = load_config(Path("run.toml"))
    mine = Identity.load(config.key_path).peer
    config.local.state_dir.mkdir(parents=True, exist_ok=True)
    with (config.local.state_dir / EVIDENCE_FILE).open("wb") as file:
        for index in map(RoundIndex, range(1, rounds + 1)):
            seen = Evidence(verdict=Verdict(peer=mine, round=index, rejected=rejected))
            file.write(RoundEvidence(run=run, round=index, peer=mine, evidence=(seen,)).canonical() + b"\n")


def test_who_cannot_invite_yet_is_told_so_and_invites_nevertheless(validator: Run) -> None:
    # given a peer that is no member
    with_incentive(f'name = "reputation"\nentry = "invited"\nmembers = ["{ANN}"]')

    def warned() -> str:
        code, _, err = validator("incentives", "invite", "run.toml", BOB, "-o", "bob.json")
        assert code == 0 and Path("bob.json").is_file()
        return err

    # then it hears what it has, and what it needs
    assert "no member" in warned() and "no evidence of its own yet" in warned()
    own(None, 3)
    assert "a reputation of 0.14 (by its own evidence up to round 3); who invites needs 0.5" in warned()
    own(RejectReason.MALFORMED, 2)
    assert "is shut out" in warned()
    own(None, 30, run="another")
    assert "no evidence of its own yet" in warned()
    (load_config(Path("run.toml")).local.state_dir / EVIDENCE_FILE).write_bytes(b"{}\n\n")
    assert "cannot be read" in warned()
    # and nothing once it is established
    own(None, 30)
    assert warned() == ""


def test_a_member_may_invite_unless_it_is_shut_out(validator: Run) -> None:
    mine = Identity.load(load_config(Path("run.toml")).key_path).peer
    with_incentive(f'name = "reputation"\nentry = "invited"\nmembers = ["{mine}"]')
    assert validator("incentives", "invite", "run.toml", BOB)[2] == ""
    own(RejectReason.MALFORMED, 2)
    assert "is shut out" in validator("incentives", "invite", "run.toml", BOB)[2]


def test_invitations_that_cannot_be_given(validator: Run) -> None:
    code, _, err = validator("incentives", "invite", "run.toml", BOB)
    assert code == 1 and "takes no invitations" in err
    with_incentive(f'name = "reputation"\nentry = "invited"\nmembers = ["{ANN}"]')
    code, _, err = validator("incentives", "invite", "run.toml", "bob")
    assert code == 1 and "is not a peer id" in err
    key = load_config(Path("run.toml")).key_path
    key.rename("elsewhere")
    code, _, err = validator("incentives", "invite", "run.toml", BOB)
    assert code == 1 and "the key cannot be read" in err and not key.exists()  # nobody else answers for a new one
    Path("elsewhere").rename(key)
    state_dir = load_config(Path("run.toml")).local.state_dir
    (state_dir / GIVEN_FILE).write_bytes(b"torn")
    with pytest.raises(ConfigError, match="given twice"):
        invite(load_config(Path("run.toml")), BOB)


def test_a_subnet_whose_reputation_takes_invitations_gives_them_too(validator: Run) -> None:
    with_incentive(
        f'name = "subnet"\nnetuid = 3\n[shared.incentive.reputation]\nentry = "invited"\nmembers = ["{ANN}"]'
    )
    assert validator("incentives", "invite", "run.toml", BOB)[0] == 0


@pytest.mark.parametrize(
    ("lines", "sequences", "says"),
    [
        (f'entry = "listed"\nmembers = ["Qm{"A" * 44}"]', 8, "shared.incentive.members"),
        (f'entry = "invited"\nmembers = ["{ANN}"]', 0, "needs validators that assess"),
        ('entry = "work"', 0, "needs validators that assess"),
    ],
)
def test_a_run_into_which_nobody_could_come_is_refused(validator: Run, lines: str, sequences: int, says: str) -> None:
    with_incentive(f'name = "reputation"\n{lines}')
    Path("run.toml").write_text(Path("run.toml").read_text().replace("sequences = 8", f"sequences = {sequences}"))
    code, _, err = validator("check", "run.toml")
    assert code == 1 and says in err


def test_a_newcomer_reads_its_invitation_or_has_none(tmp_path: Path) -> None:
    assert read_invitation(tmp_path) is None
    (tmp_path / INVITATION_FILE).write_bytes(b"{}")
    assert read_invitation(tmp_path) is None
    given = invitation(KEYS[0], 0, BOB)
    (tmp_path / INVITATION_FILE).write_bytes(given.canonical() + b"\n")
    assert read_invitation(tmp_path) == given


def test_reputations_are_exported_into_the_next_run_file(validator: Run) -> None:
    # given a run in which one did well, and one badly
    with_incentive('name = "reputation"')
    state_dir = load_config(Path("run.toml")).local.state_dir
    with (state_dir / EVIDENCE_FILE).open("wb") as file:
        for index in range(1, 21):
            bad = RejectReason.MALFORMED if index > 17 else None
            seen = tuple(
                Evidence(verdict=Verdict(peer=peer, round=RoundIndex(index), rejected=rejected))
                for peer, rejected in ((ANN, None), (BOB, bad))
            )
            line = RoundEvidence(run="demo", round=RoundIndex(index), peer=CYD, evidence=seen)
            file.write(line.canonical() + b"\n")
    # when
    code, out, _ = validator("incentives", "export", state_dir, "--run-file", "run.toml")
    # then it is a table of the next run file
    assert code == 0
    with_incentive('name = "reputation"\n' + out)
    carried = tomllib.loads(out)["shared"]["incentive"]["carried"]
    assert carried[BOB] == -1 and 0.5 < carried[ANN] < 1
    assert validator("check", "run.toml")[0] == 0
    assert validator("incentives", "export", state_dir, "--run-file", "run.toml", "-o", "next.toml")[0] == 0
    with_incentive('name = "uniform"')
    code, _, err = validator("incentives", "export", state_dir, "--run-file", "run.toml")
    assert code == 1 and "no reputations" in err and "--with reputation" in err
    # and of a run that had none they are what another incentive would have thought
    assert validator("incentives", "export", state_dir, "--run-file", "run.toml", "--with", "reputation")[1] == out


def test_who_would_begin_with_nothing_is_not_exported_nor_more_than_a_run_file_takes(validator: Run) -> None:
    # given a crowd that did well, some less often, and others who did nothing for long
    with_incentive('name = "reputation"\nearn = 0.5')
    crowd = [Identity.generate().peer for _ in range(1030)]
    idle, best = crowd[:4], set(crowd[6:])
    state_dir = load_config(Path("run.toml")).local.state_dir
    rounds = [[peer for peer in crowd if peer not in idle][:700], crowd[6:900], crowd[500:]]
    with (state_dir / EVIDENCE_FILE).open("wb") as file:
        for index, there in enumerate(rounds, start=1):
            away = idle if index == 1 else []
            seen = [
                Evidence(
                    verdict=Verdict(
                        peer=peer, round=RoundIndex(index), rejected=RejectReason.MISSING if peer in away else None
                    )
                )
                for peer in [*there, *away]
            ]
            line = RoundEvidence(run="demo", round=RoundIndex(index), peer=CYD, evidence=tuple(seen))
            file.write(line.canonical() + b"\n")
    # when
    _, out, _ = validator("incentives", "export", state_dir, "--run-file", "run.toml")
    # then
    carried = tomllib.loads(out)["shared"]["incentive"]["carried"]
    assert set(carried) == best and 0 not in carried.values()
    assert "# left out: 4 with nothing; 2 behind the best 1024" in out
    with_incentive('name = "reputation"\n' + out)
    assert validator("check", "run.toml")[0] == 0
