"""Invitations: made by one peer, carried by the one it answers for."""

from pathlib import Path

from elastic.audit.evidence import account_of
from elastic.check import admission, check_peer
from elastic.config import RunConfig
from elastic.errors import ConfigError, MalformedError
from elastic.messages import GENESIS, Invitation, PeerId
from elastic.registry import resolve
from elastic.reports import read_kept
from elastic.sections import PluginChoice
from elastic.state.files import write_durably
from elastic.terms import standing
from elastic.wire.signing import Identity

INVITATION_FILE = "invitation.json"
"""A newcomer's, in its state directory."""
GIVEN_FILE = "invited.jsonl"
"""Those that a peer gave out, in its own."""


def read_invitation(folder: Path) -> Invitation | None:
    """What lies in a state directory, if it is one."""
    return read_kept(folder / INVITATION_FILE, Invitation)


def invite(config: RunConfig, peer: PeerId) -> Invitation:
    """Answer for a peer; asked again for the same one, it gives the same.

    Raises:
        ConfigError: the run knows no invitations, all of ours are given, that is no peer id, or we have no key yet.
    """
    check_peer(peer, "invite")
    _, settings = resolve("incentive", PluginChoice.from_canonical(standing(config).terms.incentive))
    settings = admission(settings)
    if getattr(settings, "entry", None) != "invited":
        raise ConfigError('this run takes no invitations: its [shared.incentive] has not entry = "invited"')
    path, mine = config.local.state_dir / GIVEN_FILE, Identity.load(config.key_path)
    if peer == mine.peer:
        raise ConfigError("that is this machine's own peer id: an invitation is for another")
    given = _given(path)
    for each in given:
        if each.invited == peer and each.inviter == mine.peer:
            return each
    most = int(getattr(settings, "invitations", 0))
    if len(given) >= most:
        raise ConfigError(f"all {most} invitations of this peer are given out: {', '.join(e.invited for e in given)}")
    new = mine.sign(Invitation(run=config.shared.run, inviter=mine.peer, number=len(given), invited=peer))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, b"".join(each.canonical() + b"\n" for each in [*given, new]))
    return new


def doubts(config: RunConfig) -> str | None:
    """Why nobody takes this peer's invitations as things stand, by what it wrote down itself; None: they are taken."""
    cls, settings = resolve("incentive", PluginChoice.from_canonical(standing(config).terms.incentive))
    mine, rules, incentive = Identity.load(config.key_path).peer, admission(settings), cls(settings)
    member = mine in getattr(rules, "members", ())
    needed = float(getattr(rules, "established", 0.0))
    try:
        account = account_of(config.local.state_dir)
    except ConfigError as error:
        return None if member else f"this peer is no member of the run, and how it stands cannot be read: {error}"
    if account is None or account.run != config.shared.run:
        known, told = incentive.score(GENESIS, ()).scores.get(mine), "there is no evidence of its own yet"
    else:
        known, told = account.tell(incentive).get(mine), f"by its own evidence up to round {account.rounds[-1].round}"
    if known is not None and known < 0:
        return f"this peer is shut out, {told}"
    if member or (known or 0.0) >= needed:
        return None
    return f"this peer is no member and has a reputation of {known or 0.0:.2f} ({told}); who invites needs {needed:g}"


def _given(path: Path) -> list[Invitation]:
    try:
        return [Invitation.from_bytes(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, MalformedError) as error:
        raise ConfigError(f"{path}: {error}; without it an invitation might be given twice, and be void") from error
