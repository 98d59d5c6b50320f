"""`elastic score` and `elastic incentives compare`, from evidence as it lies on a disk."""

import shutil
from pathlib import Path

import pytest

from elastic.audit.compare import Books
from elastic.audit.evidence import account_of
from elastic.config import load_config
from elastic.messages import (
    Assessment,
    Evidence,
    Invitation,
    Manifest,
    PeerId,
    RejectReason,
    RoundIndex,
    Scoreboard,
    Verdict,
)
from elastic.reports import EVIDENCE_FILE, RoundEvidence
from elastic.state.chain import CHAIN_FILE, Chain
from elastic.wire.signing import Identity
from tests.unit.conftest import Run
from tests.unit.test_charter import KEYS, run_of, to

ANN, BOB, CYD = PEERS = sorted(Identity.generate().peer for _ in range(3))
ROUNDS = 20
SUBNET = 'name = "subnet"\nnetuid = 3\n'


def seen(index: int, *invitations: Invitation, **rejected: RejectReason | None) -> RoundEvidence:
    """A round as cyd saw it; the peers are named by their variables."""
    evidence = tuple(
        Evidence(verdict=Verdict(peer=globals()[name], round=RoundIndex(index), rejected=why), tokens=100)
        for name, why in rejected.items()
    )
    return RoundEvidence(
        run="demo", round=RoundIndex(index), peer=PeerId(CYD), evidence=evidence, invitations=invitations
    )


def told(*rounds: RoundEvidence) -> Path:
    """They lie in the state directory of the run file's peer."""
    folder = load_config(Path("run.toml")).local.state_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVIDENCE_FILE).write_bytes(b"".join(each.canonical() + b"\n" for each in rounds))
    return folder


@pytest.fixture
def ran(validator: Run) -> Path:
    """A run in which ann always did well, and bob until the last three rounds."""
    bad = RejectReason.MALFORMED
    return told(*(seen(each, ANN=None, BOB=bad if each > ROUNDS - 3 else None) for each in range(1, ROUNDS + 1)))


def compare(elastic: Run, where: Path, *options: object) -> tuple[int, str, str]:
    return elastic("incentives", "compare", where, "--run-file", "run.toml", *options)


def test_incentives_are_compared_by_name_and_by_file(elastic: Run, ran: Path) -> None:
    Path("my_subnet.toml").write_text(SUBNET)
    code, out, err = compare(elastic, ran, "--with", "reputation", "--with", "my_subnet.toml")
    assert (code, err) == (0, "")
    # then the run's own comes first, whatever was asked for
    assert out.splitlines()[1].split() == ["peer", "uniform", "reputation", "my_subnet.toml"]
    assert ANN[-6:] in out and BOB[-6:] in out


def test_settings_of_a_file_are_taken(elastic: Run, ran: Path) -> None:
    Path("slow.toml").write_text('name = "reputation"\nearn = 0.0\n')
    ann = next(line for line in compare(elastic, ran, "--with", "slow.toml")[1].splitlines() if ANN[-6:] in line)
    assert ann.split()[-2] == "0.000"


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("subnet", ['name = "subnet"', "netuid = NUMBER", "--with FILE.toml"]),
        ("subnit", ['did you mean "subnet"?']),
        ("gone.toml", ["gone.toml: cannot be read"]),
        ("nameless.toml", ["nameless.toml: name is missing"]),
        ("wrong.toml", ["wrong.toml: ", "netuid"]),
    ],
)
def test_what_cannot_be_compared_says_what_to_write(elastic: Run, ran: Path, chosen: str, says: list[str]) -> None:
    Path("nameless.toml").write_text("netuid = 3\n")
    Path("wrong.toml").write_text('name = "subnet"\nnetuid = -1\n')
    code, out, err = compare(elastic, ran, "--with", chosen)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert all(each in err for each in says)


def rows(out: str) -> dict[str, list[str]]:
    """Who → what stands in its row, of one table."""
    return {line.split()[0]: line.split()[1:] for line in out.splitlines()[3:-5] if line}


def test_weights_are_what_each_incentive_would_pay_and_burning_is_seen(elastic: Run, ran: Path) -> None:
    Path("burning.toml").write_text(SUBNET + "burn = 0.25\nburn_uid = 0\n")
    code, out, _ = compare(elastic, ran, "--with", "reputation", "--with", "burning.toml")
    assert code == 0
    told = rows(out)
    # then bob, whose last work was refused, earns nothing; by reputation he is shut out
    ann, bob, nobody = told[ANN[-6:]], told[BOB[-6:]], told["(nobody)"]
    assert [ann[each] for each in (1, 5, 9)] == ["100.0%", "100.0%", "75.0%"]
    assert [bob[each] for each in (1, 5, 9)] == ["0.0%", "0.0%", "0.0%"] and bob[6] == "-1.000"
    assert nobody == ["0.0%", "0.0%", "25.0%"]


def test_an_emission_is_paid_round_for_round(elastic: Run, ran: Path) -> None:
    # given 10 tokens for each of 20 rounds, and two who do equally well until one does not any more
    told = rows(compare(elastic, ran, "--with", "reputation", "--emission", "10")[1])
    # then the sum is what there was, and who did well in the beginning has earned in it
    ann, bob, nobody = told[ANN[-6:]], told[BOB[-6:]], told["(nobody)"]
    assert (float(ann[2]), float(bob[2])) == (10 * (17 / 2 + 3), 10 * 17 / 2)  # uniform
    assert float(ann[6]) + float(bob[6]) + float(nobody[3]) == pytest.approx(200, abs=0.02)
    assert 0 < float(bob[6]) < 100 < float(ann[6])


def test_who_sets_the_weights_of_a_subnet_has_none_of_its_own(elastic: Run, validator: Run) -> None:
    where = told(*(seen(each, ANN=None, CYD=None) for each in range(1, 4)))
    Path("sub.toml").write_text(SUBNET)
    found = rows(compare(elastic, where, "--with", "sub.toml")[1])
    assert (found[ANN[-6:]][5], found[CYD[-6:]][5]) == ("100.0%", "0.0%")


def test_who_left_has_no_score_from_a_round_long_ago(elastic: Run, validator: Run) -> None:
    where = told(seen(1, ANN=None, BOB=None), *(seen(each, ANN=None) for each in range(2, 6)))
    assert rows(compare(elastic, where, "--with", "uniform")[1])[BOB[-6:]][1:3] == ["0.0%", "0.000"]


def test_three_incentives_and_large_numbers_fit_into_100_columns(elastic: Run, ran: Path) -> None:
    for name in ("one", "two", "a-rather-long-name-of-a-file-for-a-subnet"):
        Path(f"{name}.toml").write_text(SUBNET)
    files = [each for name in Path().glob("*.toml") if name.name != "run.toml" for each in ("--with", name)]
    out = compare(elastic, ran, *files, "--emission", "1e12")[1]
    assert all(len(line) <= 100 for line in out.splitlines())
    # and of four the last stands below
    assert out.count("peer ") == 2


@pytest.mark.parametrize("emission", ["nan", "inf", "-1"])
def test_an_emission_is_a_number(elastic: Run, ran: Path, emission: str) -> None:
    code, _, err = compare(elastic, ran, "--emission", emission)
    assert code != 0 and "--emission" in err


def guest_of_ann(number: int = 0) -> Invitation:
    return Invitation(run="demo", inviter=ANN, number=number, invited=BOB)


def by_invitation() -> None:
    """So gets into the run of `run.toml` who is not ann."""
    text = Path("run.toml").read_text()
    start, end = text.index("[shared.incentive]"), text.index("[shared.scoring]")
    incentive = f'[shared.incentive]\nname = "reputation"\nentry = "invited"\nmembers = ["{ANN}"]\n\n'
    Path("run.toml").write_text(text[:start] + incentive + text[end:])


def test_a_guest_is_asked_from_the_round_on_after_its_invitation_was_heard(elastic: Run, validator: Run) -> None:
    by_invitation()
    first = seen(1, ANN=None, BOB=None)
    where = told(first, seen(2, guest_of_ann(), ANN=None, BOB=None), *(seen(n, ANN=None, BOB=None) for n in (3, 4)))
    out = compare(elastic, where)[1]
    assert rows(out)[BOB[-6:]][3] == "2"


def test_a_score_tells_what_an_inviter_paid_for_its_guest(elastic: Run, validator: Run) -> None:
    # given a guest that is shut out in the end
    by_invitation()
    bad = RejectReason.MALFORMED

    def score_of_ann(*invitations: Invitation) -> float:
        good = [seen(each, *invitations, ANN=None, BOB=None) for each in range(1, 11)]
        where = told(*good, seen(11, ANN=None, BOB=bad), seen(12, ANN=None, BOB=bad))
        _, out, _ = elastic("score", ANN, where, "--run-file", "run.toml")
        return float(next(line for line in out.splitlines() if line.split()[0] == "12").split()[1])

    # then a quarter of its inviter's reputation is gone
    assert score_of_ann(guest_of_ann()) == pytest.approx(0.75 * score_of_ann(), abs=0.002)


def test_evidence_from_before_invitations_were_written_down_is_read(elastic: Run, validator: Run) -> None:
    by_invitation()
    where = told(*(seen(each, ANN=None, BOB=None) for each in range(1, 5)))
    path = where / EVIDENCE_FILE
    path.write_bytes(path.read_bytes().replace(b'"invitations":[],', b""))
    assert b"invitations" not in path.read_bytes()
    code, out, _ = compare(elastic, where)
    assert code == 0 and rows(out)[BOB[-6:]][3] == "4"


# --- which incentive the run had --------------------------------------------------------------------------------------


def export(elastic: Run, *options: object) -> tuple[int, str, str]:
    code, out, err = elastic("incentives", "export", *options)
    assert err.count("\n") == (code != 0)
    return code, out, err


def test_a_run_file_of_another_run_is_none_of_this_evidence(elastic: Run, ran: Path) -> None:
    Path("next.toml").write_text(Path("run.toml").read_text().replace('run = "demo"', 'run = "next"'))
    code, _, err = export(elastic, ran, "--run-file", "next.toml")
    assert code == 1 and 'of the run "demo"' in err and 'say --run-file with that of "demo"' in err


def test_a_run_file_with_another_incentive_than_the_run_had_says_what_to_do(elastic: Run, ran: Path) -> None:
    # given the run's own file beside what was written down, with uniform shares
    shutil.copy("run.toml", ran / "run.toml")
    # when asked with one that has another
    by_invitation()
    code, _, err = export(elastic, ran, "--run-file", "run.toml")
    # then
    assert code == 1 and '"reputation", is not "uniform"' in err and "leave --run-file out" in err and "--with" in err
    text = Path("run.toml").read_text()
    shutil.copy("run.toml", ran / "run.toml")
    Path("run.toml").write_text(text.replace('entry = "invited"', 'entry = "listed"'))
    code, _, err = export(elastic, ran, "--run-file", "run.toml")
    assert code == 1 and '"reputation", has other settings' in err
    # and without it all is well
    assert export(elastic, ran)[0] == 0


def decided_by(key: Identity, ran: Path, chain: list[Manifest]) -> None:
    """The run has one validator, and its peer kept this chain beside the evidence."""
    mine = Identity.load(load_config(Path("run.toml")).key_path).peer
    (ran / "run.toml").write_text(Path("run.toml").read_text().replace(mine, key.peer))
    kept = Chain(ran / CHAIN_FILE)
    for manifest in chain:
        kept.append(manifest)


def test_what_the_run_agreed_on_is_found_beside_the_evidence(elastic: Run, ran: Path) -> None:
    # given a run file whose own state directory is another one, and knows nothing of it
    decided_by(KEYS[0], ran, run_of(None, to(incentive='{"earn":0.2,"name":"reputation"}')))
    _, out, _ = elastic("incentives", "compare", ran)
    assert out.splitlines()[1].split() == ["peer", "reputation", "uniform"]


def test_manifests_of_another_run_than_the_run_files_say_what_to_do(elastic: Run, ran: Path) -> None:
    # given one whose first change of terms was lost
    chain = run_of(to(incentive='{"name":"reputation"}'), to(incentive='{"name":"uniform"}'))
    decided_by(KEYS[0], ran, [])
    (ran / CHAIN_FILE).write_bytes(chain[2].canonical() + b"\n")
    code, _, err = export(elastic, ran)
    assert code == 1 and "unknown here" in err and "say --run-file" in err


# --- what moved a score -----------------------------------------------------------------------------------------------


def test_a_newcomer_reads_when_its_proof_of_work_will_be_known(elastic: Run, validator: Run) -> None:
    # given 24 assessments of each, in which ann helped most on the tokens that it was assigned, and bob on others'
    def assessed(index: int) -> RoundEvidence:
        plain = seen(index, ANN=None, BOB=None)
        gains = {ANN: (0.02, 0.01), BOB: (0.01, 0.02)}
        found = tuple(
            each.model_copy(
                update={"assessment": Assessment(peer=peer, round=plain.round, gain_assigned=own, gain_heldout=others)}
            )
            for each in plain.evidence
            for peer in [each.verdict.peer]
            for own, others in [gains[peer]]
        )
        return plain.model_copy(update={"evidence": found})

    where = told(*map(assessed, range(1, 25)))

    def told_of(peer: PeerId) -> tuple[list[str], str]:
        code, out, _ = elastic("score", peer, where, "--run-file", "run.toml", "--rounds", "24")
        lines = out.splitlines()
        assert code == 0 and all(len(line) <= 120 for line in lines[26:])
        return lines[2:26], out

    # then both read how many are still to come, and from then on what they show
    ann, bob = told_of(ANN)[0], told_of(BOB)[0]
    for lines in (ann, bob):
        assert "too early for its proof of work: 7 of 20 assessments" in lines[6]
        assert "too early" in lines[18] and not any("too early" in line for line in lines[19:])
    assert all("does not train on what it is assigned" in line for line in bob[19:])
    assert not any("does not train" in line for line in ann)
    # and what that is
    assert "work     proof of work: whether it trains on the tokens that it is assigned" in told_of(ANN)[1]


def test_dust_that_rounding_leaves_is_nobodys() -> None:
    # given three that were paid a third each, 24 times
    books = Books()
    for round_ in range(1, 25):
        board = Scoreboard(round=RoundIndex(round_), scores=dict.fromkeys(PEERS[:3], 1.0))
        books.pay(board, dict.fromkeys(PEERS[:3], 1 / 3))
    # then
    assert (books.unpaid().weight, books.unpaid().earned) == (0.0, 0.0)


def test_a_round_that_was_begun_again_is_told_as_it_was_learned_first(elastic: Run, validator: Run) -> None:
    # given a round that ended without a manifest, and again with one
    folder = told(seen(1, ANN=RejectReason.MALFORMED), seen(1, ANN=None), seen(2, ANN=None))
    # then the account has what the peer thought of it then
    account = account_of(folder)
    assert account is not None
    assert [each.evidence[0].verdict.rejected for each in account.rounds] == [RejectReason.MALFORMED, None]
