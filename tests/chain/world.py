"""A devnet with a validator of ours and miners."""

import time
from dataclasses import dataclass, field
from typing import Any

import bittensor_core as core

from incentives.devnet.chain import Chain
from incentives.devnet.node import Node
from incentives.subnet.chain import Hotkey, Link

NETUID = 3
TEMPO, RATE_LIMIT = 20, 10
COLDKEY = core.Keypair.create_from_uri("//Coldkey").ss58_address
PAIRS = {name: core.Keypair.create_from_uri(f"//{name}") for name in ("Validator", "One", "Two", "Three", "Stranger")}
HOTKEYS = {name: Hotkey(pair.ss58_address, pair.crypto_type, pair) for name, pair in PAIRS.items()}
VALIDATOR, STRANGER = HOTKEYS["Validator"], HOTKEYS["Stranger"]
ONE, TWO, THREE = (HOTKEYS[name].address for name in ("One", "Two", "Three"))


def subnet(*, commit_reveal: bool = False, **settings: Any) -> Chain:
    """uid 0 is the validator, 1 to 3 are miners; the rate limit lets it publish at once."""
    chain = Chain(clock=time.time, **{key: settings.pop(key) for key in ("without", "spec_version") if key in settings})
    chain.add_subnet(NETUID, tempo=TEMPO, rate_limit=RATE_LIMIT, commit_reveal=commit_reveal, **settings)
    chain.register(NETUID, VALIDATOR.address, COLDKEY, stake=10**12, permit=True)
    for hotkey in (ONE, TWO, THREE):
        chain.register(NETUID, hotkey, COLDKEY, stake=10**9)
    chain.produce()
    return chain


@dataclass
class World:
    """A node, and links to it that are closed at the end."""

    node: Node
    links: list[Link] = field(default_factory=list)

    def link(self, hotkey: Hotkey = VALIDATOR, **settings: Any) -> Link:
        link = Link(self.node.url, NETUID, hotkey, **{"deadline": 20.0, **settings})
        self.links.append(link)
        return link

    def weights(self, uid: int = 0) -> dict[int, int]:
        return self.node.ask(lambda chain: dict(chain.state.get("Weights", NETUID, uid)))

    def sent(self) -> int:
        """How many extrinsics the node was asked to take."""
        return sum(method.startswith("author_submit") for method, _ in self.node.requests)

    def landed(self) -> int:
        return self.node.ask(lambda chain: len(chain.applied))
