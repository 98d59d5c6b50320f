"""What we want from the chain, and what came of it: lines of the journal. No secret is ever in them."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from elastic.messages import Message, NonNegative

Hex = Annotated[str, Field(pattern=r"^(0x)?[0-9a-f]*$", max_length=100_000)]
Text = Annotated[str, Field(max_length=500)]
Pairs = Annotated[tuple[tuple[NonNegative, NonNegative], ...], Field(max_length=4096)]
Hotkeys = Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=4096)]


class Outcome(StrEnum):
    """What became of one extrinsic."""

    LANDED = "landed"
    """It is in a finalized block, and what is stored is what was sent."""
    FAILED = "failed"
    """It is in a finalized block, and the chain refused what it asks."""
    LOST = "lost"
    """Its time is over and it is in no block: it never will be."""
    UNPROVEN = "unproven"
    """Its time is over, its nonce is spent, and what by cannot be read any more."""


class Intention(Message):
    """One signed extrinsic that may be on its way to a block. Written before it is sent."""

    kind: Literal["weights", "commit", "binding"]
    """Plain weights, timelocked ones, or who our peer is."""
    hotkey: Annotated[str, Field(max_length=64)]
    netuid: NonNegative
    genesis: Hex
    """Hash of the chain's first block: which chain."""
    nonce: NonNegative
    birth: NonNegative
    """The block that its era counts from."""
    period: NonNegative
    """Blocks of its era; it can be in none from `birth + period` on."""
    hash: Hex
    """Of the extrinsic."""
    expected: Hex | Pairs
    """What must be stored if it landed: (uid, value) pairs, or the bytes of the commit or binding."""
    weights: dict[str, float] = Field(default_factory=dict, max_length=4096)
    """uid → weight, as wanted before the SDK fits it to the subnet's limits."""
    dropped: Hotkeys = ()
    """Scored hotkeys that have no uid."""
    reveal_round: NonNegative | None = None
    """The drand round at which the chain opens a commit."""
    round: NonNegative = 0
    """Of the scoreboard."""
    warnings: Annotated[tuple[Text, ...], Field(max_length=16)] = ()

    @property
    def death(self) -> int:
        """The first block in which it cannot be."""
        return self.birth + self.period


class Receipt(Message):
    """What became of an intention."""

    intention: Intention
    outcome: Outcome
    block: NonNegative | None = None
    """In which it landed or failed."""
    settled: NonNegative
    """The finalized block at which this was read."""
    detail: Text = ""
    """The chain's reason, or the endpoint's answer when it was sent."""
    time: float
    """Unix seconds, of this machine."""

    @property
    def brought_weights(self) -> bool:
        """Whether weights are on the chain by it, plain or timelocked."""
        return self.outcome is Outcome.LANDED and self.intention.kind != "binding"
