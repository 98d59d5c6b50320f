"""`elastic amend`: what an operator orders, and what comes of an order that does not fit."""

import sys
from pathlib import Path

import pytest

from elastic.amend import read_order
from elastic.audit.evidence import Witness
from elastic.audit.own import own_incentive
from elastic.config import PluginChoice, RunConfig, load_config
from elastic.messages import Amendment, Manifest, RoundIndex
from elastic.reports import ORDER_FILE, Order, RoundEvidence
from elastic.state.chain import CHAIN_FILE, Chain
from elastic.wire.signing import Identity
from tests.unit.conftest import Run
from tests.unit.test_charter import KEYS, run_of, to

OTHER = Identity.generate().peer


def config() -> RunConfig:
    return load_config(Path("run.toml"))


def order() -> Order | None:
    return read_order(config().local.state_dir)


def had(chain: list[Manifest]) -> None:
    """This peer has these manifests."""
    kept = Chain(config().local.state_dir / CHAIN_FILE)
    for manifest in chain:
        kept.append(manifest)


def test_without_options_it_shows_how_things_stand(validator: Run) -> None:
    code, out, _ = validator("amend", "run.toml")
    assert code == 0
    assert 'of the run file  incentive  {"name":"uniform"}' in out
    assert "quorum     1 of 1" in out and "ordered here     nothing" in out


def test_an_order_lies_in_the_state_directory_until_it_is_withdrawn(validator: Run) -> None:
    code, out, _ = validator("amend", "run.toml", "--incentive", "reputation", "--add", OTHER)
    assert code == 0 and "1 of the 1 validators" in out
    (mine,) = config().shared.agreement.validators
    wanted = Amendment(validators=tuple(sorted([mine, OTHER])), incentive=PluginChoice(name="reputation").canonical())
    assert order() == Order(run="demo", amended=0, amendment=wanted)  # type: ignore[arg-type]
    assert f"ordered here     validator  {OTHER}" in validator("amend", "run.toml")[1]
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
        (["--incentive-file", "long.toml"], "letters long"),
        ([option for _ in range(16) for option in ("--add", Identity.generate().peer)], "1 to 16 validators"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    validator: Run, tmp_path: Path, options: list[str], says: str
) -> None:
    (tmp_path / "bad.toml").write_text("earn = 0.1\n")
    (tmp_path / "wrong.toml").write_text('name = "reputation"\nearn = 7\n')
    (tmp_path / "long.toml").write_text(f'name = "your_incentive:YourIncentive"\nmembers = {[OTHER] * 30}\n')
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
