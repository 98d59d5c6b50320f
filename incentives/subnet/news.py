"""What the settler tells the peer: small, frozen, and checked by whoever hears it."""

from typing import Annotated, Literal, Self

import orjson
from pydantic import Field

from elastic.errors import MalformedError
from elastic.messages import JSON, Message, NonNegative, PeerIdField
from incentives.subnet.receipts import Intention, Receipt, Text

Hotkey = Annotated[str, Field(max_length=64)]
Stake = Annotated[int, Field(ge=0, lt=2**63)]
MAX_MEMBERS = 4096


class Member(Message):
    """A peer that is bound to a registered hotkey."""

    hotkey: Hotkey
    uid: NonNegative
    stake: Stake
    """In the subnet's smallest unit."""
    validator_permit: bool


class Notice(Message):
    """Something that a person should look at."""

    level: Literal["warning", "error"]
    text: Text


class News(Message):
    """The subnet as the settler saw it last."""

    hotkey: Hotkey = ""
    """Ours."""
    block: NonNegative | None = None
    """The finalized block it was read at; None: the chain was never read."""
    head: NonNegative | None = None
    """The chain's newest block then."""
    roster: dict[PeerIdField, Member] = Field(default_factory=dict, max_length=MAX_MEMBERS)
    refused: dict[Hotkey, Text] = Field(default_factory=dict, max_length=MAX_MEMBERS)
    """Hotkey → why what it committed binds it to no peer."""
    open: Intention | None = None
    """What is on its way to the chain."""
    receipt: Receipt | None = None
    """What became of the last thing that was."""
    landed: float | None = None
    """Unix seconds at which weights of ours were last seen to have landed, as far as the journal remembers."""
    alarms: Annotated[tuple[Notice, ...], Field(max_length=16)] = ()

    def to_json(self) -> JSON:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, news: JSON) -> Self:
        """
        Raises:
            MalformedError: not news of ours.
        """
        try:
            return cls.from_bytes(orjson.dumps(news))
        except orjson.JSONEncodeError as error:
            raise MalformedError(f"News: not JSON: {error}") from error
