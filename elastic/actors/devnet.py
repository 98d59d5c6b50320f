"""A chain for a quickstart: a devnet in a process of its own, with a registered hotkey for each peer."""

import json
from collections.abc import Sequence
from pathlib import Path

import orjson

from elastic.actors.child import Child
from elastic.errors import StateError
from elastic.registry import DEVNET

SUBNET = "subnet"
"""Name of the incentive that needs a chain."""
NETUID = 3
LOG = "devnet.log"
MEANING = "(opinion x rating of each other peer, in parts of 1; a rating that is not certain yet is 0: docs/subnet.md)"


class Devnet(Child):
    """`python -m incentives.devnet`: lives as long as this object."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Start it.

        Raises:
            StateError: it did not come up; its log says why.
        """
        self._wallets = folder / "wallets"
        super().__init__(folder / LOG, DEVNET, "--wallets", str(self._wallets), "--netuid", str(NETUID), *names)
        self.url = self.stdout.readline().strip()
        if not self.url:
            self.close()
            raise StateError(f"the devnet did not start: see {self.log} (pip install 'elastic[bittensor]'?)")

    def shared(self) -> str:
        """Settings of the run's incentive."""
        return f"netuid = {NETUID}\n"

    def local(self, name: str) -> str:
        """A peer's way to the chain."""
        return f"""
[local.incentive]
endpoint = "{self.url}"
wallet_path = {json.dumps(str(self._wallets))}
wallet = "{name}"
poll_seconds = 0.5
"""

    def report(self) -> list[str]:
        """What landed on it, for people: each validator's weights, as parts of 1."""
        self.stdin.write("weights\n")
        self.stdin.flush()
        told = orjson.loads(self.stdout.readline())
        lines = [f"weights    on the local devnet (no real chain), at its block {told['block']}:"]
        for who, weights in told["weights"].items():
            parts = ", ".join(f"{name} {part:.3f}" for name, part in weights.items())
            lines.append(f"           set by {who}: {parts or 'none'}")
        lines.append(f"           {MEANING}")
        return lines
