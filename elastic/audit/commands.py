"""`elastic score`, `elastic replay` and `elastic incentives …`."""

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from elastic.config import load_config
from elastic.errors import ConfigError
from elastic.messages import PeerId

say = typer.echo
incentives = typer.Typer(help="Look at what incentives make of a run.", rich_markup_mode=None)

Where = Annotated[Path, typer.Argument(help="a peer's state directory, or a folder of them, as of a quickstart")]
RunFile = Annotated[Path | None, typer.Option("--run-file", help="the run file; run.toml in that folder if not given")]


def score(
    peer: Annotated[str, typer.Argument(help="its name, or the beginning or end of its peer id")],
    where: Where,
    run_file: RunFile = None,
    rounds: Annotated[int, typer.Option(min=1, help="show the last so many")] = 20,
) -> None:
    """Explain a peer's score: what moved it, round by round.

    From what the best informed peer of that folder wrote down: a validator, if there is one.
    """
    from elastic.audit.evidence import best_witness, find_peer, names_in
    from elastic.audit.own import own_incentive
    from elastic.audit.score import HEADER, LEGEND, history, line
    from elastic.registry import build

    witness, names = best_witness(where), names_in(where)
    found, choice = find_peer(peer, witness.peers, names), own_incentive(where, witness, run_file)
    moves = list(history(witness, found, build("incentive", choice)))
    say(f"{names.get(found, '')} {found}, as {names.get(witness.peer, witness.peer)} saw it, incentive {choice.name}")
    say(HEADER)
    for move in moves[-rounds:]:
        say(line(move))
    say(LEGEND)


def replay(
    where: Annotated[Path, typer.Argument(help="a peer's state directory, or a folder of them, as of a quickstart")],
    run_file: Annotated[
        Path | None, typer.Option("--run-file", help="the run file; run.toml in that folder if not given")
    ] = None,
    until: Annotated[
        int | None, typer.Option("--round", min=1, help="rebuild the anchor this round starts from; else the last")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="write that anchor here, as peers keep it")] = None,
) -> None:
    """Rebuild a run from its records, and check every one.

    From the genesis on: signatures, order, payloads and anchors, bit for bit. Ends with the first record that does not
    fit. What is damaged in one place and whole in another is named, and the exit code is 1 then too. With --round what
    only later rounds need is held against the digest in its name. Nothing is believed but the run file, from which
    seed, model, reducer and outer step are taken. Nothing there is changed.
    """
    from elastic.check import check_plugins
    from elastic.replay import peer_folders
    from elastic.replay import replay as steps

    folders, bad = peer_folders(where), 0
    config = load_config(run_file or _one_of([folder / "run.toml" for folder in folders], where))
    check_plugins(config)

    def damaged(line: str) -> None:
        nonlocal bad
        bad += 1
        say(line)

    for lacking in sorted({path.parent for path in where.glob("*/peer.key")} - set(folders)):
        say(f"{lacking}: a peer's folder without manifests; left out")
    last = None
    for step in steps(config.shared, folders, say, damaged, until):
        last, counted = step, len(step.manifest.counted)
        what = "genesis" if step.manifest.round == 0 else f"{counted} counted" if counted else "void"
        say(f"round {step.manifest.round:4d}: {what}, then anchor {step.anchor[:12]}")
    assert last is not None, "an archive has a genesis"
    if until is not None and last.manifest.round + 1 != until:
        raise ConfigError(f"--round {until}: the run has got to round {last.manifest.round + 1}")
    but = f", but for {bad} record{'s' * (bad > 1)} named above" if bad else ""
    say(f"everything fits{but}. The anchor of round {last.manifest.round + 1}: {last.anchor}")
    say(f"named by {last.witness}" if last.witness else "no record here names that anchor, so none could contradict it")
    if write is not None:
        write.write_bytes(last.state())
        say(f"wrote {write}")
    raise SystemExit(1 if bad else 0)


@incentives.command("compare")
def compare(
    where: Where,
    backends: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME|FILE.toml",
            help='an incentive, as uniform, with its defaults; or a TOML file: name = "…", and its settings. Again for '
            "more",
        ),
    ] = None,
    emission: Annotated[
        float | None, typer.Option(min=0, help="tokens or credits per round: show what each peer had earned of them")
    ] = None,
    run_file: RunFile = None,
) -> None:
    """Replay a run's evidence through several incentives.

    Each peer's part of all shares, its part of what there is to earn (its weight) and its score after the last round,
    and the rounds in which it contributed and would not have been asked to. The run's own incentive comes first, with
    its settings. Another one is given by its name, with its defaults, or by a TOML file with its settings, as
    `elastic amend --incentive-file` takes it.
    """
    from elastic.audit.compare import play, table
    from elastic.audit.evidence import best_witness, names_in
    from elastic.audit.own import own_incentive
    from elastic.choose import by_either
    from elastic.registry import build

    if emission is not None and not isfinite(emission):
        raise ConfigError("--emission: should be a finite number")
    witness, names = best_witness(where), names_in(where)
    own = own_incentive(where, witness, run_file)
    choices = {own.name: own}
    for text in backends or ["uniform", "reputation"]:
        if text not in choices:
            choices[text] = by_either(text, "--with")
    books = {name: play(witness, build("incentive", choice)) for name, choice in choices.items()}
    teller = names.get(witness.peer, witness.peer)
    say(f"{len(witness.rounds)} rounds, {witness.assessments} assessments, as {teller} saw them")
    for text in table(books, names, emission):
        say(text)


@incentives.command("export")
def export(
    where: Where,
    run_file: RunFile = None,
    backend: Annotated[
        str | None,
        typer.Option("--with", metavar="NAME|FILE.toml", help="what another incentive would have thought, see compare"),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write it there; else print it")] = None,
) -> None:
    """Write a run's reputations down, for the run file of the next one.

    What is written goes behind `[shared.incentive]` of a run file with the same incentive, and is equal on every peer
    of that run, as all of [shared] is. It is what the best informed peer of that folder thought, best first, and nobody
    of whom it thought nothing; at most as many as a run file takes, 1,024.
    """
    from elastic.audit.evidence import best_witness
    from elastic.audit.export import reputations
    from elastic.audit.own import own_incentive
    from elastic.choose import by_either

    witness = best_witness(where)
    choice = own_incentive(where, witness, run_file) if backend is None else by_either(backend, "--with")
    text = reputations(where, witness, choice)
    if output is None:
        say(text)
        return
    try:
        output.write_text(text + "\n")
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}") from error
    say(f"wrote {output}; put it behind the last line of [shared.incentive] in the next run file")


@incentives.command("invite")
def invite(
    run_file: Annotated[Path, typer.Argument(help="the run file of this machine's peer")],
    peer: Annotated[str, typer.Argument(help="the newcomer's peer id: `elastic id` prints it there")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write it there")] = None,
) -> None:
    """Answer for a newcomer in a run that takes invited peers only.

    What is written goes to the newcomer, who puts it into its state directory as invitation.json. If the newcomer is
    shut out later, this peer loses a part of its reputation. Validators take invitations of members and of established
    peers only: of others as soon as they are.
    """
    from elastic import invite as room

    config = load_config(run_file)
    invitation = room.invite(config, PeerId(peer))
    path = output or Path(f"invitation-{peer[-6:]}.json")
    try:
        path.write_bytes(invitation.canonical() + b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    say(f"wrote {path}: invitation {invitation.number + 1} of this peer")
    say(f"the newcomer puts it into its state directory as {room.INVITATION_FILE}, and joins")
    doubts = room.doubts(config)
    if doubts is not None:
        say(f"warning: as things stand validators do not take it: {doubts}", err=True)
        say("they take it as soon as they think better of this peer; until then the newcomer waits outside", err=True)


def _one_of(paths: list[Path], where: Path) -> Path:
    found = [path for path in paths if path.is_file()]
    if not found:
        raise ConfigError(f"{where}: no run.toml there: say which it is with --run-file")
    return found[0]
