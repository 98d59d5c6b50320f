"""`python -m incentives.devnet`: a devnet with a subnet, and a hotkey for each name, until standard input closes.

Its first line is the address. For each line that comes in, one goes out: all weights that are set, as JSON.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from bittensor_core import Keypair, serialized_keypair_to_keyfile_data

from incentives.devnet.chain import Chain
from incentives.devnet.node import Node

BLOCK_SECONDS = 0.5
TEMPO, RATE_LIMIT = 20, 10
STAKE = 10**12


def main() -> None:
    """Serve until the other end has gone."""
    parser = argparse.ArgumentParser(prog="python -m incentives.devnet", description=__doc__)
    parser.add_argument("names", nargs="+", help="wallets to make, each with the hotkey `default`, registered")
    parser.add_argument("--wallets", type=Path, required=True, help="where to make them")
    parser.add_argument("--netuid", type=int, default=3, help="number of the subnet")
    options = parser.parse_args()
    chain = Chain(slot_ms=round(1000 * BLOCK_SECONDS))
    chain.add_subnet(options.netuid, tempo=TEMPO, rate_limit=RATE_LIMIT)
    coldkey = Keypair.create_from_mnemonic(Keypair.generate_mnemonic())
    for name in options.names:
        hotkey = new_hotkey(options.wallets, name)
        chain.register(options.netuid, hotkey, coldkey.ss58_address, stake=STAKE, permit=True)
    with Node(chain, block_seconds=BLOCK_SECONDS) as node:
        say(node.url)
        for _ in sys.stdin:
            say(json.dumps(node.ask(lambda chain: weights(chain, options.netuid, options.names))))


def new_hotkey(wallets: Path, name: str) -> str:
    """Make a wallet's hotkey, readable by this user only; gives its address."""
    pair = Keypair.create_from_mnemonic(Keypair.generate_mnemonic())
    path = wallets / name / "hotkeys" / "default"
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(serialized_keypair_to_keyfile_data(pair))
    address: str = pair.ss58_address
    return address


def weights(chain: Chain, netuid: int, names: list[str]) -> dict[str, object]:
    """Name → name → part of the weights that the first one set, at the head."""
    found = {}
    for uid, name in enumerate(names):
        mine = dict(chain.state.get("Weights", netuid, uid))
        total = sum(mine.values())
        found[name] = {names[each]: mine[each] / total for each in sorted(mine)} if total else {}
    return {"block": chain.head.number, "weights": found}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
