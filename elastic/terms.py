"""`elastic amend`: what a run's terms are, and what this validator's operator would have them be.

Nothing is sent from here: the order lies in the state directory, and the peer that runs from it wishes for it in every
round (`elastic.amend`) until a quorum of validators does and the terms change.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from elastic.agreement.charter import Charter
from elastic.agreement.simplex import quorum
from elastic.amend import read_order
from elastic.check import check_peer
from elastic.choose import by_file, by_name
from elastic.config import PluginChoice, RunConfig, load_config
from elastic.errors import ConfigError
from elastic.messages import GENESIS, MAX_INCENTIVE, MAX_VALIDATORS, Amendment, PeerId, RoundIndex, Terms
from elastic.reports import ORDER_FILE, Order
from elastic.state.chain import CHAIN_FILE, amendments_in
from elastic.state.store import write_durably
from elastic.wire.signing import Identity

say = typer.echo


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands, as far as this machine knows."""

    terms: Terms
    amended: RoundIndex
    """The round whose manifest brought them; 0: they are the run file's."""


def standing(config: RunConfig, folder: Path | None = None) -> Standing:
    """The newest terms in the peer's chain, which may be written to meanwhile.

    Args:
        folder: the state directory; None: the run file's.

    Raises:
        StateError: the chain cannot be read.
        MalformedError: it is of another run.
    """
    shared = config.shared
    known = amendments_in((folder or config.local.state_dir) / CHAIN_FILE)
    charter = Charter(shared.run, shared.terms(), known)
    return Standing(charter.newest(), known[-1].round if known else GENESIS)


def amend(
    run_file: Annotated[Path, typer.Argument(help="the run file of this machine's peer, a validator")],
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
    then: the order waits for that. Without options: show how things stand.
    """
    config = load_config(run_file)
    path, now = config.local.state_dir / ORDER_FILE, standing(config)
    if withdraw:
        path.unlink(missing_ok=True)
        say("nothing is ordered here any more")
        return
    wanted = _wanted(now.terms, _choice(incentive, incentive_file), add or [], remove or [])
    if wanted is None:
        _show(config, now)
        return
    mine = Identity.load_or_create(config.key_path).peer
    if mine not in now.terms.validators:
        raise ConfigError(f"this machine ({mine}) is no validator of the run: only those who decide can change it")
    order = Order(run=config.shared.run, amended=now.amended, amendment=wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, order.canonical())
    validators = len(now.terms.validators)
    for line in _lines(wanted.applied(now.terms)):
        say(f"ordered  {line}")
    for peer in sorted(set(wanted.validators or ()) - set(now.terms.validators)):
        say(f"waits for {peer} to contribute, without which it will not hold")
    say(f"it holds as soon as {quorum(validators)} of the {validators} validators ordered the same; the peer that runs")
    say("from this run file takes the order up by itself, now or when it is started")


def _choice(name: str | None, file: Path | None) -> PluginChoice | None:
    """Another incentive, checked as a run file's is."""
    if name is not None and file is not None:
        raise ConfigError("--incentive and --incentive-file exclude each other")
    if name is None and file is None:
        return None
    choice = by_file(file) if file is not None else by_name(str(name), "--incentive-file FILE")
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


def _show(config: RunConfig, now: Standing) -> None:
    """How things stand."""
    origin = "of the run file" if now.amended == GENESIS else f"since round {now.amended + 1}"
    for line in _lines(now.terms):
        say(f"{origin:<16} {line}")
    order = read_order(config.local.state_dir)
    if order is None or (order.run, order.amended) != (config.shared.run, now.amended):
        say("ordered here     nothing")
        return
    for line in _lines(order.amendment.applied(now.terms)):
        say(f"ordered here     {line}")


def _lines(terms: Terms) -> list[str]:
    deciding = len(terms.validators)
    return [
        f"incentive  {terms.incentive}",
        *(f"validator  {peer}" for peer in terms.validators),
        f"quorum     {quorum(deciding)} of {deciding}",
    ]
