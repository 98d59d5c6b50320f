"""`elastic amend`: what an operator orders, and what comes of an order that does not fit."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from elastic.amend import read_order
from elastic.audit.evidence import Witness
from elastic.audit.own import own_incentive
from elastic.config import RunConfig, load_config
from elastic.messages import Amendment, Manifest, PeerId, RoundIndex
from elastic.reports import ORDER_FILE, WISHES_FILE, Order, RoundEvidence, Wishes
from elastic.sections import PluginChoice
from elastic.state.chain import CHAIN_FILE, Chain
from elastic.wire.signing import Identity
from tests.unit.conftest import Run
from tests.unit.test_charter import KEYS, run_of, to

OTHER = Identity.generate().peer


def config() -> RunConfig:
    return load_config(Path("run.toml"))


def order() -> Order | None:
    return read_order(config().local.state_dir)


def edit(old: str, new: str) -> None:
    """Of the run file."""
    text = Path("run.toml").read_text()
    assert old in text
    Path("run.toml").write_text(text.replace(old, new))


def files() -> set[Path]:
    return set(Path().rglob("*"))


def hear(wishes: dict[PeerId, Amendment], names: dict[PeerId, str], **changes: Any) -> None:
    """The peer here heard this."""
    fields = {"run": "demo", "round": RoundIndex(7), "amended": RoundIndex(0), "wishes": wishes, "names": names}
    config().local.state_dir.mkdir(parents=True, exist_ok=True)
    (config().local.state_dir / WISHES_FILE).write_bytes(Wishes(**{**fields, **changes}).canonical())


def sorted_by_id(texts: dict[PeerId, str]) -> list[str]:
    return [texts[each] for each in sorted(texts)]


def had(chain: list[Manifest]) -> None:
    """This peer has these manifests."""
    kept = Chain(config().local.state_dir / CHAIN_FILE)
    for manifest in chain:
        kept.append(manifest)


def test_without_options_it_shows_how_things_stand(validator: Run) -> None:
    code, out, _ = validator("amend", "run.toml")
    assert code == 0
    (mine,) = config().shared.agreement.validators
    assert out.splitlines() == [
        "of the run file  incentive  uniform",
        f"                 validator  {mine} (this machine)",
        "                 quorum     1 of 1",
        "ordered          nothing",
    ]


def test_looking_makes_no_key_and_ordering_without_one_is_refused(validator: Run) -> None:
    config().key_path.unlink()
    before = files()
    code, out, _ = validator("amend", "run.toml")
    assert code == 0 and "(this machine)" not in out
    code, _, err = validator("amend", "run.toml", "--incentive", "reputation")
    assert code == 1 and "no validator of the run" in err and "has no key yet" in err
    assert files() == before


def test_who_ordered_the_same_is_told_as_far_as_the_peer_heard_it(validator: Run) -> None:
    # given a run of three, of which the peer here heard two others
    me = Identity.load(config().key_path).peer
    edit(f'validators = ["{me}"]', f"validators = {json.dumps([me, KEYS[0].peer, KEYS[1].peer])}")
    assert "last heard       nothing: a validator's peer hears the others" in validator("amend", "run.toml")[1]
    uniform, reputation = (PluginChoice(name=name).canonical() for name in ("uniform", "reputation"))
    hear({KEYS[0].peer: to(incentive=reputation)}, {KEYS[0].peer: "q-00", KEYS[1].peer: "bad\x1b[2Jname"})
    # when the operator looks
    out = validator("amend", "run.toml")[1]
    # then
    assert f"{KEYS[0].peer} q-00" in out and f"{KEYS[1].peer} bad [2Jname" in out
    assert "ordered          incentive  uniform -> reputation\n" in out
    assert "                 by         1 of 3: q-00; 2 needed\n" in out
    assert out.endswith("last heard       round 7\n")
    # and when the same is ordered here it is enough, something else is not
    out = validator("amend", "run.toml", "--incentive", "reputation")[1]
    assert (
        f"by         2 of 3: {', '.join(sorted_by_id({me: f'…{me[-6:]} (this machine)', KEYS[0].peer: 'q-00'}))}" in out
    )
    assert "more of the validators" not in out
    out = validator("amend", "run.toml", "--remove", KEYS[1].peer)[1]
    assert f"by         1 of 3: …{me[-6:]} (this machine); 2 needed" in out and "1 more of the validators" in out
    assert f"validator  - {KEYS[1].peer} bad [2Jname" in out
    out = validator("amend", "run.toml")[1]
    assert out.count("; 2 needed") == 2
    # and what is withdrawn here is told no more, though the others may not know yet
    hear({me: to(incentive=reputation), KEYS[0].peer: to(incentive="{nonsense")}, {})
    validator("amend", "run.toml", "--withdraw")
    out = validator("amend", "run.toml")[1]
    assert "reputation" not in out and "uniform -> {nonsense" in out
    assert uniform not in out


def test_two_of_one_name_are_told_apart(validator: Run) -> None:
    me = Identity.load(config().key_path).peer
    edit(f'validators = ["{me}"]', f"validators = {json.dumps([me, KEYS[0].peer, KEYS[1].peer])}")
    same = to(incentive=PluginChoice(name="reputation").canonical())
    hear({KEYS[0].peer: same, KEYS[1].peer: same}, {KEYS[0].peer: "ann", KEYS[1].peer: "ann"})
    out = validator("amend", "run.toml")[1]
    assert f"by         2 of 3: ann …{KEYS[0].peer[-6:]}, ann …{KEYS[1].peer[-6:]}; 2 needed" in out


@pytest.mark.parametrize("told", [{"run": "another"}, {"amended": 3}, b"{torn"])
def test_what_was_heard_of_another_run_or_under_other_terms_is_not_told(validator: Run, told: dict | bytes) -> None:
    edit("validators = [", f'validators = ["{KEYS[0].peer}", ')
    wishes = {KEYS[0].peer: to(incentive=PluginChoice(name="reputation").canonical())}
    hear(wishes, {KEYS[0].peer: "ann"}, **(told if isinstance(told, dict) else {}))
    if isinstance(told, bytes):
        (config().local.state_dir / WISHES_FILE).write_bytes(told)
    code, out, _ = validator("amend", "run.toml")
    assert code == 0 and "ordered          nothing" in out and "ann" not in out and "last heard       nothing" in out


def test_one_command_orders_for_all_validators_of_a_folder(validator: Run, tmp_path: Path) -> None:
    # given a folder as of a quickstart, with two validators and one that only contributes
    text = Path("run.toml").read_text()
    keys = {name: Identity.load_or_create(tmp_path / "q" / name / "peer.key").peer for name in ("a", "b", "c")}
    for name in keys:
        lines = re.sub('state_dir = "[^"]*"', 'state_dir = "."', text).replace('name = "" ', f'name = "{name}" ')
        lines = re.sub(r"validators = \[.*?\]", f"validators = {json.dumps([keys['a'], keys['b']])}", lines)
        (tmp_path / "q" / name / "run.toml").write_text(lines)
    # when
    code, out, _ = validator("amend", "q", "--incentive", "reputation")
    # then each validator has it
    assert code == 0 and f"by         2 of 2: {', '.join(sorted_by_id({keys[n]: n for n in 'ab'}))}; 2 needed" in out
    orders = [read_order(tmp_path / "q" / name) for name in "abc"]
    assert orders[0] == orders[1] is not None and orders[2] is None
    # and it can be looked at there, or in the folder of one, and withdrawn for all
    assert f"{keys['a']} a\n" in validator("amend", "q")[1]
    assert f"{keys['a']} a (this machine)\n" in validator("amend", "q/a")[1]
    assert "by         1 of 2: b (this machine)" in validator("amend", "q/b/run.toml")[1]
    assert validator("amend", "q", "--withdraw")[0] == 0
    assert "ordered          nothing" in validator("amend", "q")[1]


def test_a_folder_of_one_run_is_needed(validator: Run, tmp_path: Path) -> None:
    for name, rounds in (("a", 5), ("b", 6)):
        (tmp_path / "q" / name).mkdir(parents=True)
        (tmp_path / "q" / name / "run.toml").write_text(
            Path("run.toml").read_text().replace("rounds = 1000", f"rounds = {rounds}")
        )
    assert "are of several runs" in validator("amend", "q")[2]
    (tmp_path / "empty").mkdir()
    assert "no run.toml there: give the run file itself" in validator("amend", "empty")[2]


def test_an_order_lies_in_the_state_directory_until_it_is_withdrawn(validator: Run) -> None:
    code, out, _ = validator("amend", "run.toml", "--incentive", "reputation", "--add", OTHER)
    assert code == 0 and "by         1 of 1: " in out and f"waits for {OTHER} to contribute" in out
    (mine,) = config().shared.agreement.validators
    wanted = Amendment(validators=tuple(sorted([mine, OTHER])), incentive=PluginChoice(name="reputation").canonical())
    assert order() == Order(run="demo", amended=0, amendment=wanted)  # type: ignore[arg-type]
    out = validator("amend", "run.toml")[1]
    assert f"ordered          incentive  uniform -> reputation\n                 validator  + {OTHER}\n" in out
    assert validator("amend", "run.toml", "--withdraw")[0] == 0
    assert order() is None
    assert validator("amend", "run.toml", "--withdraw")[0] == 0


def test_settings_come_from_a_file(validator: Run, tmp_path: Path) -> None:
    (tmp_path / "new.toml").write_text('name = "reputation"\nearn = 0.1\n')
    assert validator("amend", "run.toml", "--incentive-file", "new.toml")[0] == 0
    ordered = order()
    assert ordered is not None
    assert ordered.amendment == Amendment(validators=None, incentive='{"earn":0.1,"name":"reputation"}')


def test_an_order_is_for_the_terms_that_hold_now(validator: Run) -> None:
    # given a run that has changed since its run file was written: this machine was joined by another
    me = Identity.load(config().key_path)
    text = Path("run.toml").read_text().replace(me.peer, KEYS[0].peer)
    Path("run.toml").write_text(text)
    me_too = tuple(sorted([me.peer, KEYS[1].peer]))
    had(run_of(None, Amendment(validators=me_too, incentive=None)))
    # when
    assert "since round 3" in validator("amend", "run.toml")[1]
    assert validator("amend", "run.toml", "--remove", KEYS[1].peer)[0] == 0
    # then
    ordered = order()
    assert ordered is not None and ordered.amended == 2
    assert ordered.amendment.validators == (me.peer,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--incentive", "reputatoin"], 'did you mean "reputation"?'),
        (["--incentive", "uniform"], "that is how things stand already"),
        (["--add", "12D3KooWnobody"], "--add: "),
        (["--remove", OTHER], "no validator of this run"),
        (["--incentive", "uniform", "--incentive-file", "x.toml"], "exclude each other"),
        (["--incentive-file", "x.toml"], "x.toml: cannot be read"),
        (["--incentive-file", "bad.toml"], "bad.toml: name is missing"),
        (["--incentive-file", "wrong.toml"], "earn"),
        (["--incentive-file", "members.toml"], 'members.toml: members, entry 1: "12D3KooW'),
        (
            ["--incentive", "subnet"],
            '(netuid: The subnet\'s number on its chain): write a file of the lines name = "subnet" and '
            "netuid = NUMBER, and give it with --incentive-file FILE",
        ),
        (["--incentive-file", "long.toml"], "letters long"),
        (["--incentive", "your_incentive:YourIncentive"], "add it to local.incentives in the run file"),
        ([option for _ in range(16) for option in ("--add", Identity.generate().peer)], "1 to 16 validators"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    validator: Run, tmp_path: Path, options: list[str], says: str
) -> None:
    (tmp_path / "bad.toml").write_text("earn = 0.1\n")
    (tmp_path / "wrong.toml").write_text('name = "reputation"\nearn = 7\n')
    (tmp_path / "long.toml").write_text(f'name = "your_incentive:YourIncentive"\nmembers = {[OTHER] * 30}\n')
    (tmp_path / "members.toml").write_text(f'name = "reputation"\nentry = "listed"\nmembers = ["{OTHER[:-1]}"]\n')
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    try:
        code, out, err = validator("amend", "run.toml", *options)
    finally:
        sys.path.pop()
    assert (code, out) == (1, "") and says in err and err.count("\n") == 1
    assert order() is None


def test_who_does_not_decide_cannot_order(validator: Run) -> None:
    mine = Identity.load(config().key_path).peer
    Path("run.toml").write_text(Path("run.toml").read_text().replace(mine, KEYS[0].peer))
    code, _, err = validator("amend", "run.toml", "--incentive", "reputation")
    assert code == 1 and "no validator of the run" in err


def test_what_is_told_of_a_run_is_told_with_the_incentive_that_it_has_now(validator: Run) -> None:
    me = Identity.load(config().key_path)
    Path("run.toml").write_text(Path("run.toml").read_text().replace(me.peer, KEYS[0].peer))
    had(run_of(None, to(incentive='{"earn":0.2,"name":"reputation"}')))
    one = Witness(KEYS[1].peer, [RoundEvidence(run="demo", round=RoundIndex(1), peer=KEYS[1].peer, evidence=())])
    assert own_incentive(Path("runs"), one, Path("run.toml")) == PluginChoice.model_validate(
        {"name": "reputation", "earn": 0.2}
    )


def test_an_order_that_cannot_be_read_is_no_order(validator: Run) -> None:
    state_dir = config().local.state_dir
    state_dir.mkdir(parents=True, exist_ok=True)
    (state_dir / ORDER_FILE).write_bytes(b"{torn")
    assert order() is None


def test_the_chain_is_read_while_its_peer_writes_to_it(validator: Run) -> None:
    chain = config().local.state_dir / CHAIN_FILE
    had(run_of(to(KEYS[1])))
    with chain.open("ab") as file:
        file.write(b'{"half a line')
    before = chain.read_bytes()
    validator("amend", "run.toml")
    assert chain.read_bytes() == before
