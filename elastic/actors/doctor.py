"""`elastic doctor`: what of this machine would keep a peer from taking part, and what to do about it.

Every check looks at one thing, asks nobody for permission, changes nothing, and ends in a `Finding`. What others have
to be asked for is in `outside`.
"""

import importlib.metadata
import ipaddress
import os
import re
import shutil
import socket
import struct
import time
from collections.abc import Iterator

import psutil

from elastic.actors.finding import Finding, Level
from elastic.check import entry_socket
from elastic.config import RunConfig
from elastic.errors import ElasticError, StateError
from elastic.state.claim import is_claimed
from elastic.view import size
from elastic.wire.signing import Identity

CONNECT_SECONDS = 5.0
SKEW_SECONDS = 3.0
"""Records of a peer whose clock is further off than this are refused by Hivemind."""
NTP_ZERO = 2_208_988_800
"""Seconds from 1900, where NTP begins, to 1970."""
RESIDUALS = 3
"""fp32 copies of the model on disk, beside the anchors: the newest, the one on its way there, and one being written."""
MEMORY_COPIES = 8
"""fp32 copies of the model in a trainer's memory: params, gradients, moments, anchor, residual, update, and more."""
PROCESS_BYTES = 700 * 10**6
"""What a process of a peer takes for itself, with torch or Hivemind imported."""


def examine(config: RunConfig, ntp: str) -> Iterator[Finding]:
    """All checks, the quick ones first.

    Args:
        config: a run file that holds.
        ntp: "host" or "host:port" of a time server.
    """
    yield packages()
    yield key(config)
    from elastic.actors.job import fp32_bytes  # imports torch: by now it was said if it is missing

    model = fp32_bytes(config)
    yield disk(config, model)
    try:
        running = is_claimed(config.local.state_dir)
    except StateError as error:
        running = False
        yield Finding("peer", Level.PROBLEM, str(error))
    if running:
        yield Finding("peer", Level.OK, "it is running: memory, port and Ray, which it has itself, are not looked at")
    else:
        yield memory(config, model)
        yield port(config)
    yield address(config)
    yield from (doors := list(entries(config)))
    yield clock(ntp)
    from elastic.actors.outside import outside  # imports Hivemind

    bootstrap = config.local.network.bootstrap
    yield from outside(config, [entry for entry, door in zip(bootstrap, doors, strict=False) if door.level is Level.OK])
    yield gpus(config)
    if not running:
        yield cluster(config)


def packages() -> Finding:
    """Libraries whose faults we work around are those versions."""
    wrong = []
    for line in importlib.metadata.requires("elastic") or ():
        pinned = re.match(r"(ray|torch|hivemind)(?:\[.*?\])?==([\w.]+)", line)
        if pinned is None:
            continue
        try:
            version = importlib.metadata.version(pinned[1]).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version != pinned[2]:
            wrong.append(f"{pinned[1]} is {version}, expected {pinned[2]}")
    if wrong:
        return Finding("packages", Level.PROBLEM, f"{'; '.join(wrong)}: pip install 'elastic[peer]'")
    return Finding("packages", Level.OK, "Ray, torch and Hivemind are the versions this release was tested with")


def key(config: RunConfig) -> Finding:
    """The peer's key can be read, or made."""
    path = config.key_path
    if not path.exists():
        return Finding("key", Level.OK, f"none yet; made at the first start ({path})")
    try:
        return Finding("key", Level.OK, f"this peer is {Identity.load(path).peer}")
    except ElasticError as error:
        return Finding("key", Level.PROBLEM, str(error))


def disk(config: RunConfig, model: int) -> Finding:
    """Room for the state, and for the payloads that we keep for others; `model` is its bytes in fp32."""
    from elastic.exchange.limits import DISK_BYTES

    folder = config.local.state_dir.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return Finding("disk", Level.PROBLEM, f"{there} is a file: choose another local.state_dir")
    state, kept = _state_bytes(config, model)
    free = shutil.disk_usage(there).free
    room = f"{size(free)} free in {there}"
    if not os.access(there, os.W_OK):
        return Finding("disk", Level.PROBLEM, f"{there} cannot be written: choose another local.state_dir")
    if free < state + 10**9:
        says = f"the state of this run takes {size(state)}: make room, or lower local.checkpoints.keep_last"
        return Finding("disk", Level.PROBLEM, f"{room}; {says}")
    if free < state + kept + DISK_BYTES:
        more = f"state {size(state)}, payloads {size(DISK_BYTES)}"
        more += f", anchors for good {size(kept)} (local.checkpoints.keep_every)" if kept else ""
        return Finding("disk", Level.WARNING, f"{room}; a long run fills {more}")
    return Finding("disk", Level.OK, room)


def _state_bytes(config: RunConfig, model: int) -> tuple[int, int]:
    """What the trainer has on the disk at most, and what it will have kept for good in the end."""
    checkpoints, anchor = config.local.checkpoints, model * (2 if config.shared.outer.nesterov else 1)
    for_good = config.shared.rounds // checkpoints.keep_every if checkpoints.keep_every else 0
    return (checkpoints.keep_last + 1) * anchor + RESIDUALS * model, for_good * anchor


def memory(config: RunConfig, model: int) -> Finding:
    """Room for the trainer. On GPUs most of it lies there."""
    workers = config.local.ray.workers
    need = MEMORY_COPIES * model * (1 if config.local.ray.gpu else workers) + (workers + 2) * PROCESS_BYTES
    available = psutil.virtual_memory().available
    level, says = Level.OK, f"{size(available)} available, about {size(need)} needed"
    if available < need:
        level, says = Level.WARNING, f"{says}: close other programs, or join a run with a smaller model"
    return Finding("memory", level, says)


def port(config: RunConfig) -> Finding:
    """The port can be listened on."""
    network = config.local.network
    if network.port == 0:
        return Finding("port", Level.OK, "any free one; set local.network.port if you forward one")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((network.host, network.port))
        except OSError as error:
            advice = "stop what has it (another peer?), or choose another local.network.port"
            return Finding("port", Level.PROBLEM, f"{network.host}:{network.port}: {error.strerror}: {advice}")
    return Finding("port", Level.OK, f"{network.host}:{network.port} is free")


def address(config: RunConfig) -> Finding:
    """Whether others can dial us, as far as this machine can tell; `outside` asks others."""
    network = config.local.network
    if network.announce:
        return Finding("address", Level.OK, f"announces {', '.join(network.announce)}")
    ours = network.host if network.host != "0.0.0.0" else _outward()
    if ipaddress.ip_address(ours).is_loopback:
        return Finding("address", Level.WARNING, f"listens on {ours}: only peers on this machine can take part")
    if ipaddress.ip_address(ours).is_private:
        advice = "forward a TCP port to it, and set local.network.port and local.network.announce"
        return Finding("address", Level.WARNING, f"{ours} is private; others can reach us only through NAT: {advice}")
    return Finding("address", Level.OK, f"{ours} is public; its firewall must let local.network.port in")


def entries(config: RunConfig) -> Iterator[Finding]:
    """Every entry point answers."""
    bootstrap = config.local.network.bootstrap
    if not bootstrap:
        yield Finding(
            "entry", Level.WARNING, "local.network.bootstrap is empty: this peer would be alone until others join"
        )
    for entry in bootstrap:
        host, number = entry_socket(entry)
        start = time.monotonic()
        try:
            socket.create_connection((host, number), CONNECT_SECONDS).close()
        except OSError as error:
            advice = "is `elastic bootstrap` running there, and its port open? Ask the organiser for a current address"
            yield Finding("entry", Level.PROBLEM, f"{host}:{number}: {error.strerror or error}: {advice}")
        else:
            yield Finding("entry", Level.OK, f"{host}:{number} answers, {1e3 * (time.monotonic() - start):.0f} ms")


def clock(server: str) -> Finding:
    """This machine's time beside a time server's (SNTP, RFC 4330)."""
    host, _, number = server.partition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(CONNECT_SECONDS)
            sent = time.time()
            asking.sendto(b"\x1b" + bytes(47), (host, int(number or 123)))
            answer, _ = asking.recvfrom(512)
            received = time.time()
        seconds, fraction = struct.unpack("!II", answer[40:48])
        if not seconds:
            raise ValueError("it does not know the time itself")  # RFC 4330: kiss of death, or not synchronised
    except (OSError, ValueError, struct.error) as error:
        return Finding("clock", Level.WARNING, f"{server} did not tell the time ({error}): try --ntp with another")
    off = (sent + received) / 2 - (seconds - NTP_ZERO + fraction / 2**32)
    if abs(off) > SKEW_SECONDS:
        advice = "turn on time synchronisation (timedatectl set-ntp true)"
        return Finding("clock", Level.PROBLEM, f"{abs(off):.1f} s {'ahead' if off > 0 else 'behind'}: {advice}")
    return Finding("clock", Level.OK, f"within {max(abs(off), 0.001):.3f} s of {server}")


def gpus(config: RunConfig) -> Finding:
    """As many GPUs as the run file asks for."""
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = config.local.ray.workers if config.local.ray.gpu else 0
    if here < wanted:
        advice = "install a driver and a CUDA build of torch, or set local.ray.gpu = false"
        return Finding("GPU", Level.PROBLEM, f"local.ray wants {wanted}, torch sees {here}: {advice}")
    if here and not wanted:
        return Finding("GPU", Level.WARNING, f"torch sees {here}, and local.ray.gpu is false: they stay idle")
    return Finding("GPU", Level.OK, f"{here} there, {wanted} wanted")


def cluster(config: RunConfig) -> Finding:
    """The Ray cluster lets us in and has what the trainer needs."""
    import ray

    from elastic.actors.launch import connect, quiet, require_resources

    try:
        connect(config.local.ray)
        require_resources(config.local.ray)
        resources = ray.cluster_resources()
    except ElasticError as error:
        return Finding("Ray", Level.PROBLEM, str(error))
    finally:
        with quiet():
            ray.shutdown()
    here = f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
    return Finding("Ray", Level.OK, f"a cluster with {here}, enough of them free")


def _outward() -> str:
    """The address from which this machine speaks to the internet; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect(("203.0.113.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(trial.getsockname()[0])
