"""What only others can tell `elastic doctor`: whether they can dial this peer, and how fast its line is.

A node of our own comes up for half a minute, on the run file's port and under the peer's key, and asks entry points.
While the peer itself is running, a stranger beside it asks for it.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from elastic.actors.finding import Finding, Level
from elastic.actors.job import layout
from elastic.check import entry_socket
from elastic.config import RunConfig
from elastic.config_local import NetworkConfig
from elastic.errors import ConfigError, ElasticError, NetworkError, StateError
from elastic.exchange.dht.bootstrap import Entry
from elastic.exchange.known import KNOWN_FILE, Known
from elastic.exchange.probe.server import Kind, Status
from elastic.exchange.probe.visit import Answer, TooOldError, Visit, ports_of, visiting
from elastic.messages import PeerId
from elastic.registry import build
from elastic.state.claim import claim
from elastic.view import size
from elastic.wire.signing import Identity

MAX_ENTRIES = 3
"""Entry points that are asked."""
ROUTER_SECONDS = 6.0
"""A router that is asked for a port (UPnP) may take so long."""
_TOO_OLD = "is of an older release that cannot be asked: have its owner update it"


@dataclass(frozen=True, slots=True)
class Guise:
    """As whom we ask, and for whom."""

    key: Path
    network: NetworkConfig
    peer: PeerId
    """Who should answer when we are dialled."""
    ports: tuple[int, ...] | None = ()
    """Where, if we know it already; empty: where our own node listens; None: where another does, and nobody knows."""


def outside(config: RunConfig, entries: Sequence[str]) -> Iterator[Finding]:
    """Ask the first few of these entry points; `entries` are the addresses of those that answer."""
    if not entries:
        nobody = "nobody outside can be asked whether others can dial this peer, or how fast its line is"
        yield Finding("reach", Level.WARNING, f"{nobody}: look again when an entry point answers")
        return
    try:
        with _guise(config) as guise:
            yield from asyncio.run(_ask(config, guise, entries[:MAX_ENTRIES]))
    except ElasticError as error:
        yield Finding("reach", Level.WARNING, f"nobody could be asked: {error}")


@contextmanager
def _guise(config: RunConfig) -> Iterator[Guise]:
    """The peer itself, which cannot start meanwhile, unless it is running or has no key yet; nothing new is made in its
    folder.
    """
    local, network = config.local, config.local.network
    ports, running = ports_of(network.announce), False
    with ExitStack() as stack:
        if (local.state_dir / "peer.claim").exists():  # else no peer has ever run there
            try:
                stack.enter_context(claim(local.state_dir))
            except StateError:
                running = True
        try:
            mine = Identity.load(config.key_path).peer
        except ConfigError:
            mine = None
        if mine and not running:
            yield Guise(config.key_path, network, mine, ports)
            return
        stranger, path = Identity.generate(), Path(stack.enter_context(TemporaryDirectory())) / "key"
        stranger.save(path)
        if mine:
            beside = network.model_copy(update={"port": 0, "announce": (), "map_port": False})
            known = network.port or Known(local.state_dir / KNOWN_FILE).port
            yield Guise(path, beside, mine, ports or ((known,) if known else None))
        else:
            yield Guise(path, network, stranger.peer, ports)


async def _ask(config: RunConfig, guise: Guise, entries: Sequence[str]) -> list[Finding]:
    found: list[Finding] = []
    async with visiting(guise.key, guise.network) as visit:
        inside: list[Entry] = []
        for entry in (each for each in map(Entry.parse, entries) if each.peer != guise.peer):
            try:
                await visit.enter(entry)
                inside.append(entry)
            except NetworkError as error:
                found.append(_not_let_in(entry, error))
        if inside:
            line = await _measured(config, visit, inside)  # first: meanwhile a router may give the port it is asked for
            found += [await _reach(config.local.network, guise, visit, entry) for entry in inside]
            found.append(line)
    return found or [Finding("reach", Level.WARNING, "this peer is the entry point itself: nobody else can be asked")]


def _not_let_in(entry: Entry, error: NetworkError) -> Finding:
    if "mismatch" in str(error):
        advice = "take the address that `elastic bootstrap` prints there now"
        return Finding("reach", Level.PROBLEM, f"{_name(entry)} answers, but not as {entry.peer}: {advice}")
    return Finding("reach", Level.PROBLEM, f"{_name(entry)} answers, but lets no peer in: {error}")


def _name(entry: Entry) -> str:
    host, port = entry_socket(str(entry))
    return f"{host}:{port}"


# --- whether others can dial us --------------------------------------------------------------------------------------


async def _reach(network: NetworkConfig, guise: Guise, visit: Visit, entry: Entry) -> Finding:
    """Have an entry point dial us."""
    where = _name(entry)
    if not network.listen:
        says = "nobody dials this peer (local.network.listen = false); it serves over the connections that it dials"
        return Finding("reach", Level.OK, says)
    if guise.ports is None:
        says = "which port the running peer listens on is not known: look again when it has joined its run"
        return Finding("reach", Level.WARNING, f"{where} was not asked to dial us, {says}, or set local.network.port")
    try:
        port, answer = await _dialled(guise.ports, guise, visit, entry)
    except TooOldError:
        return Finding("reach", Level.WARNING, f"{where} {_TOO_OLD}")
    except NetworkError as error:
        return Finding("reach", Level.WARNING, f"{where} should have dialled us: {error}")
    return reach(network, guise.peer, where, port, answer)


async def _dialled(known: Sequence[int], guise: Guise, visit: Visit, entry: Entry) -> tuple[int, Answer]:
    """The port at which we were found, or else the last one that was tried, and what came of it."""
    tried: tuple[int, Answer] | None = None
    for pause in (0.0, ROUTER_SECONDS):
        await asyncio.sleep(pause)
        for port in known or await visit.ports():
            tried = port, await visit.ask(entry, Kind.DIAL, port)
            if tried[1].peer == guise.peer:
                return tried
        if tried is not None and not (guise.network.map_port and _is_global(tried[1].ip)):
            break
    if tried is None:
        raise NetworkError("no port is known at which it could")
    return tried


def reach(network: NetworkConfig, peer: PeerId, where: str, port: int, answer: Answer) -> Finding:
    """What it means that an entry point dialled us, or could not.

    Args:
        peer: who should have answered.
        where: the entry point.
        port: where it tried.
    """
    at = f"{answer.ip}:{port}"
    if answer.status == Status.OK and answer.peer == peer:
        return _reached(network, where, answer.ip, at)
    by_hand = "; if there is a router, forward it to this machine" if _is_global(answer.ip) else ""
    let_in = f"let TCP port {port} in at the firewall{by_hand}"
    if not network.port:
        let_in = f"set local.network.port to one that you let in at the firewall{by_hand}"
    if network.announce:
        let_in = f"{let_in}, and look whether local.network.announce names the right port"
    advice = f"{let_in}; or set local.network.listen = false"
    says = {
        Status.OK: f"at {at} another peer answers ({answer.peer}): that port leads elsewhere, {advice}",
        Status.NOT_LIBP2P: f"at {at} something answers that is no peer: that port leads elsewhere, {advice}",
        Status.REFUSED: f"{where} cannot dial us at {at}, connection refused: {advice}",
        Status.SILENT: f"{where} cannot dial us at {at}, no answer: {advice}",
        Status.BUSY: f"{where} has no time to dial us: try again in a minute",
        Status.INDIRECT: f"{where} sees us through a relay only, and dials nobody through one",
    }.get(answer.status, f"{where} was asked to dial us at port {port}, and does not: {answer.status.name}")
    return Finding("reach", Level.WARNING, says)


def _reached(network: NetworkConfig, where: str, ip: str, at: str) -> Finding:
    says = f"{where} dialled us at {at}"
    if not _is_global(ip):
        level, where_from = _inside(network)
        return Finding("reach", level, f"{says}, {where_from}")
    announced = {address.split("/")[2] for address in network.announce}
    if announced and ip not in {found for name in announced for found in _addresses_of(name)}:
        names = ", ".join(sorted(announced))
        says = f"{says}, and local.network.announce tells others to dial {names}, which is another address: mend it"
        return Finding("reach", Level.WARNING, says)
    return Finding("reach", Level.OK, says)


def _is_global(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_global


def _inside(network: NetworkConfig) -> tuple[Level, str]:
    """What was found out within our own network is all there is to know only if the peer listens nowhere else."""
    listens = ipaddress.ip_address(network.host)
    if listens.is_private and not listens.is_unspecified:
        return Level.OK, "within our own network"
    return Level.WARNING, "within our own network: how it is from the internet, only an entry point there can tell"


def _addresses_of(name: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except OSError:
        return set()


# --- how fast the line is --------------------------------------------------------------------------------------------


async def _measured(config: RunConfig, visit: Visit, entries: Sequence[Entry]) -> Finding:
    """The line to the first entry point that measures it."""
    why = ""
    for entry in entries:
        try:
            down = await visit.measure(entry, Kind.DOWN)
            up = await visit.measure(entry, Kind.UP) if down.status == Status.OK else down
        except TooOldError:
            why = f"{_name(entry)} {_TOO_OLD}"
        except NetworkError as error:
            why = f"{_name(entry)} broke off: {error}"
        else:
            if up.status == Status.OK:
                return bandwidth(config, _name(entry), down, up)
            reasons = {
                Status.BUSY: "measures for others now, or has just done so for us: try again in a minute",
                Status.UNSERVED: "is a peer, and only `elastic bootstrap` measures",
                Status.INDIRECT: "is reached through a relay only",
            }
            why = f"{_name(entry)} {reasons.get(up.status, f'does not: {up.status.name}')}"
    return Finding("bandwidth", Level.WARNING, f"not measured: {why}")


def bandwidth(config: RunConfig, where: str, down: Answer, up: Answer) -> Finding:
    """What the line means for a round of this run."""
    network = config.local.network
    says = f"{_mbps(up)} Mb/s up and {_mbps(down)} down, to {where}"
    if not (up.bits_per_second and down.bits_per_second):
        return Finding("bandwidth", Level.WARNING, f"{says}: too little came to tell")
    level = Level.OK
    if not _is_global(down.ip):
        level, where_from = _inside(network)
        says = f"{says}, {where_from}"
    limit = network.upload_mbps * 1e6
    if limit > up.bits_per_second:
        level, says = Level.WARNING, f"{says}; local.network.upload_mbps = {network.upload_mbps:g} is more: lower it"
    rate = min(up.bits_per_second, limit or float("inf"))
    enough, meaning = _a_round(config, rate, down.bits_per_second)
    return Finding("bandwidth", level if enough else Level.WARNING, f"{says}. {meaning}")


def _mbps(answer: Answer) -> str:
    mbps = answer.bits_per_second / 1e6
    return f"{mbps:,.{0 if mbps >= 10 else 2}f}"


def _a_round(config: RunConfig, up: float, down: float) -> tuple[bool, str]:
    """Whether a round's bytes can travel in time, and in words."""
    reducer, bounds = build("reducer", config.shared.reducer), config.shared.round
    payload = reducer.max_bytes(layout(config))
    most, gathers = size(payload), f"a round gathers for {bounds.gather_seconds:g} s"
    if reducer.averages:  # twice in each direction: the parts, then their means
        slower = 16 * payload / min(up, down)
        enough = slower <= bounds.gather_seconds
        return enough, f"Averaging {most} takes {_seconds(slower)}; {gathers}{'' if enough else ': too slow'}"
    leaves, comes = 8 * payload / up, 8 * payload / down
    others, allowed = int(bounds.gather_seconds / comes), bounds.max_peers - 1
    time = "time for all others" if others >= allowed else f"time for {others} of at most {allowed} others"
    says = f"A payload (at most {most}) leaves in {_seconds(leaves)}, another peer's comes in {_seconds(comes)}"
    if leaves > bounds.gather_seconds:
        return False, f"{says}; {gathers}: our payload would come late. A bucket helps (docs/exchange.md)"
    if others < bounds.min_peers - 1:
        return False, f"{says}; {gathers}, {time}, and the run has {bounds.min_peers - 1} or more: too slow for it"
    return True, f"{says}; {gathers}, {time}"


def _seconds(seconds: float) -> str:
    return "less than 0.1 s" if seconds < 0.1 else f"{seconds:.{1 if seconds < 10 else 0}f} s"
