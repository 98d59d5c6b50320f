"""`elastic amend`: how a run's terms stand, and what its validators' operators order instead.

Nothing is sent from here: an order lies in the state directory, and the peer that runs from it wishes for it in every
round (`elastic.amend`) until a quorum of validators does and the terms change.
"""

from pathlib import Path
from typing import Annotated

import typer

from elastic.agreement.simplex import quorum
from elastic.check import check_newcomers, check_peer
from elastic.choose import by_file, by_name
from elastic.config import Shared
from elastic.errors import ConfigError
from elastic.messages import GENESIS, MAX_INCENTIVE, MAX_VALIDATORS, Amendment, PeerId, Terms
from elastic.registry import require_accepted, resolve
from elastic.reports import ORDER_FILE, Order
from elastic.sections import PluginChoice
from elastic.state.files import write_durably
from elastic.terms import House, changes, incentive_text, run_files

say = typer.echo


def amend(
    where: Annotated[
        Path,
        typer.Argument(
            help="the run file of this machine's peer; or a folder of peers, as of a quickstart: all of them"
        ),
    ],
    incentive: Annotated[str | None, typer.Option(help="the name of another incentive, with its defaults")] = None,
    incentive_file: Annotated[
        Path | None, typer.Option(help='a TOML file of another incentive: name = "…", and its settings')
    ] = None,
    add: Annotated[list[str] | None, typer.Option(help="peer id of one more validator; again for more")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="peer id of a validator to go; again for more")] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="forget what was ordered here")] = False,
) -> None:
    """Change the incentive or the validators of a run that goes on.

    Every validator's operator runs this command with the same options. As soon as a quorum has, the change is agreed
    with the next round and holds from the one after it; no round is lost. Who is added must contribute to the run by
    then: the order waits for that. Without options: show how things stand, and who ordered what.
    """
    house = House(run_files(where))
    if withdraw:
        for config in house.configs:
            (config.local.state_dir / ORDER_FILE).unlink(missing_ok=True)
        say("nothing is ordered here any more")
        return
    choice = _choice(incentive, incentive_file, house.configs[0].shared)
    wanted = _wanted(house.now.terms, choice, add or [], remove or [])
    if wanted is None:
        _show(house)
    else:
        _order(house, wanted)


def _order(house: House, wanted: Amendment) -> None:
    """Leave the order with each validator of this house."""
    now = house.now
    if not house.deciding:
        mine = ", ".join(house.peers) or f"it has no key yet, {house.configs[0].key_path}"
        raise ConfigError(f"this machine ({mine}) is no validator of the run: only those who decide can change it")
    if wanted.incentive is not None:
        for config in house.deciding.values():
            require_accepted(config, PluginChoice.from_canonical(wanted.incentive))
    for config in house.deciding.values():
        order = Order(run=config.shared.run, amended=now.amended, amendment=wanted)
        config.local.state_dir.mkdir(parents=True, exist_ok=True)
        write_durably(config.local.state_dir / ORDER_FILE, order.canonical())
    supporters = house.wanted()[wanted]
    _say_order(house, wanted, supporters)
    for peer in sorted(set(wanted.validators or ()) - set(now.terms.validators)):
        say(f"waits for {house.full(peer)} to contribute, without which it will not hold")
    missing = quorum(len(now.terms.validators)) - len(supporters)
    if missing > 0:
        say(f"it holds as soon as {missing} more of the validators ordered the same")
    say("peers that run take the order up by themselves, others when they are started")


def _choice(name: str | None, file: Path | None, shared: Shared) -> PluginChoice | None:
    """Another incentive, checked as a run file's is."""
    if name is not None and file is not None:
        raise ConfigError("--incentive and --incentive-file exclude each other")
    if name is None and file is None:
        return None
    choice = by_file(file) if file is not None else by_name(str(name), "--incentive-file FILE")
    _, settings = resolve("incentive", choice)
    check_newcomers(settings, shared, f"{file}: ")
    if len(choice.canonical()) > MAX_INCENTIVE:
        raise ConfigError(
            f"the settings of {choice.name} are {len(choice.canonical())} letters long; a run that goes on can agree "
            f"on {MAX_INCENTIVE}: use defaults, or shorter lists"
        )
    return choice


def _wanted(terms: Terms, choice: PluginChoice | None, add: list[str], remove: list[str]) -> Amendment | None:
    if choice is None and not add and not remove:
        return None
    for peer in add:
        check_peer(PeerId(peer), "--add")
    strangers = [peer for peer in remove if peer not in terms.validators]
    if strangers:
        raise ConfigError(f"--remove {strangers[0]}: no validator of this run; they are {', '.join(terms.validators)}")
    validators = tuple(sorted({*terms.validators, *map(PeerId, add)} - set(remove)))
    if not 1 <= len(validators) <= MAX_VALIDATORS:
        raise ConfigError(f"a run has 1 to {MAX_VALIDATORS} validators; that would leave {len(validators)}")
    incentive = None if choice is None else choice.canonical()
    new = Amendment(
        validators=None if validators == terms.validators else validators,
        incentive=None if incentive == terms.incentive else incentive,
    )
    if new.validators is None and new.incentive is None:
        raise ConfigError("that is how things stand already")
    return new


def _show(house: House) -> None:
    """How things stand."""
    terms, amended = house.now.terms, house.now.amended
    _say("of the run file" if amended == GENESIS else f"since round {amended + 1}", [
        f"incentive  {incentive_text(terms.incentive)}",
        *(f"validator  {house.full(peer)}" for peer in terms.validators),
        f"quorum     {quorum(len(terms.validators))} of {len(terms.validators)}",
    ])  # fmt: skip
    wanted, round_ = house.wanted(), house.heard_in()
    for amendment, supporters in wanted.items():
        _say_order(house, amendment, supporters)
    if not wanted:
        _say("ordered", ["nothing"])
    if set(terms.validators) - house.peers.keys():
        _say(
            "last heard", [f"round {round_}" if round_ is not None else "nothing: a validator's peer hears the others"]
        )


def _say_order(house: House, wanted: Amendment, supporters: list[PeerId]) -> None:
    """A change, and who would have it."""
    validators, names = house.now.terms.validators, ", ".join(map(house.called, supporters))
    needed = f"by         {len(supporters)} of {len(validators)}: {names}; {quorum(len(validators))} needed"
    _say("ordered", [*changes(house.now.terms, wanted.applied(house.now.terms), house.full), needed])


def _say(what: str, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        say(f"{what if number == 0 else '':<16} {line}")
