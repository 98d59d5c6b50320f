"""p2pd, libp2p's daemon: how it is started, what it listens on, and that it never outlives its owner."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P, P2PDaemonError

from elastic.config_local import NetworkConfig
from elastic.errors import ConfigError, NetworkError, PortTakenError

STARTUP_SECONDS = 60.0
"""For p2pd to start; its own default of 15 is too short on a busy machine."""
CLOSE_SECONDS = 5.0


class Daemon(P2P):  # type: ignore[misc]
    """p2pd that the kernel kills with the thread that started it, where `setpriv` can arrange that."""

    prefix: tuple[str, ...] = ()

    @classmethod
    def _make_process_args(cls, *args: Any, **kwargs: Any) -> list[str]:
        return [*cls.prefix, *P2P._make_process_args(*args, **kwargs)]


def check_can_listen(network: NetworkConfig) -> None:
    """Fail early and clearly: p2pd would share a port with another p2pd, and each get half of the calls.

    Raises:
        ConfigError: the host is no address.
        NetworkError: nobody can listen there.
    """
    host, port = network.host, network.port
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        raise ConfigError(f'network.host must be an IPv4 address such as "0.0.0.0", not {host!r}') from error
    if not network.listen:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, error: object) -> NetworkError:
    if "in use" in str(error):
        return PortTakenError(
            f"port {port} is in use on {host}; stop who listens there (ss -ltnp 'sport = :{port}'), "
            f"or choose another (local.network.port, --port; 0 takes any free one)"
        )
    return NetworkError(f"cannot listen on {host}:{port}: {error}")


async def start_daemon(identity_path: Path, network: NetworkConfig) -> P2P:
    """Start p2pd with this key.

    Raises:
        ConfigError: an address is malformed.
        PortTakenError: the port to listen on is in use.
        NetworkError: it does not start.
    """
    Daemon.prefix = await asyncio.to_thread(_death_signal_prefix)
    local_only = ipaddress.IPv4Address(network.host).is_loopback
    try:
        return await Daemon.create(
            host_maddrs=[f"/ip4/{network.host}/tcp/{network.port}"] if network.listen else [],
            no_listen=not network.listen,
            announce_maddrs=list(network.announce) or None,
            identity_path=str(identity_path),
            # It parses RSA keys only; who shares an identity finds out by the failing handshake.
            check_if_identity_free=False,
            startup_timeout=STARTUP_SECONDS,
            # Off unless asked for: relays cut bulk transfers off, and hole punching needs them.
            use_relay=bool(network.relays),
            use_auto_relay=bool(network.relays),
            trusted_relays=list(network.relays) or None,
            auto_nat=network.hole_punching,
            nat_port_map=network.map_port and network.listen and not local_only,
        )
    except P2PDaemonError as error:
        if "in use" in str(error):
            raise _cannot_listen(network.host, network.port, error) from error
        raise NetworkError(f"p2pd does not start: {error}") from error
    except ValueError as error:
        raise ConfigError(f"network.announce or network.relays: {error}") from error
    except OSError as error:
        raise NetworkError(f"p2pd does not start: {error}") from error


async def stop_daemon(p2p: P2P) -> None:
    """End it, politely at first."""
    try:
        await asyncio.wait_for(p2p.shutdown(), CLOSE_SECONDS)
    except TimeoutError:
        p2p._child.kill()
        await p2p._child.wait()


def _death_signal_prefix() -> tuple[str, ...]:
    """The command that makes the kernel end p2pd with its owner, however that dies.

    A belt only: p2pd exits when its owner's connection closes. The signal follows the thread that forked,
    which is the one that runs the event loop, and without that loop this p2pd is of no use.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    prefix = (setpriv, "--pdeathsig", "KILL", "--")
    try:
        works = subprocess.run([*prefix, "true"], capture_output=True, timeout=CLOSE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return prefix if works.returncode == 0 else ()
