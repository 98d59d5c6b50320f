"""What a peer remembers of the network from one life to the next: its own port, and where it met whom.

So that a peer finds the others again when no entry point is left, and is found where they knew it. A small file, of no
other worth: if it is damaged or lost, the entry points of the run file must do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elastic.errors import ConfigError
from elastic.exchange.dht.bootstrap import Entry
from elastic.messages import PeerCard, PeerId

logger = logging.getLogger(__name__)

KNOWN_FILE = "known.json"
"""Its name in a peer's state directory."""
MAX_PEERS = 32
MAX_ADDRESSES = 4
"""Of one peer."""


class _Content(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="ignore")

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    met: Annotated[dict[str, list[str]], Field(max_length=MAX_PEERS)] = {}
    """Peer → its addresses, those known longest first."""


class Known:
    """The memory of one exchange."""

    def __init__(self, path: Path | None) -> None:
        """Read it; None: remember nothing."""
        self._path = path
        self._content = _read(path) if path is not None else _Content()

    @property
    def port(self) -> int:
        """Where we listened last; 0: unknown."""
        return self._content.port

    def entries(self) -> list[Entry]:
        """Where to knock."""
        found = []
        for addresses in self._content.met.values():
            for address in addresses:
                try:
                    found.append(Entry.parse(address))
                except ConfigError:
                    continue
        return found

    def listens(self, address: str) -> None:
        """Remember where we listen ("/ip4/…/tcp/4001/p2p/…")."""
        port = address.partition("/tcp/")[2].partition("/")[0]
        self._change(self._content.model_copy(update={"port": int(port) if port.isdecimal() else 0}))

    def meet(self, cards: Sequence[PeerCard], but: PeerId) -> bool:
        """Remember who is there; whether that is news.

        Who was there before is not pushed out by newcomers, however many: else a crowd of strangers could make us
        forget everyone else.
        """
        here: dict[str, list[str]] = {card.peer: found for card in cards if card.peer != but and (found := _own(card))}
        old = [peer for peer in self._content.met if peer in here]
        new = [peer for peer in sorted(here) if peer not in self._content.met]
        gone = [peer for peer in self._content.met if peer not in here]
        everyone = {**self._content.met, **here}
        met = {peer: everyone[peer] for peer in [*old, *new, *gone][:MAX_PEERS]}
        return self._change(self._content.model_copy(update={"met": met}))

    def _change(self, content: _Content) -> bool:
        if content == self._content:
            return False
        self._content = content
        if self._path is not None:
            try:
                temporary = self._path.with_name(self._path.name + ".new")
                temporary.write_text(content.model_dump_json(), encoding="utf-8")
                temporary.replace(self._path)
            except OSError as error:
                logger.warning("%s: %s", self._path, error)
        return True


def _own(card: PeerCard) -> list[str]:
    """Its first addresses that are its own: a card could name anybody's."""
    return [address for address in card.addresses if address.endswith(f"/p2p/{card.peer}")][:MAX_ADDRESSES]


def _read(path: Path) -> _Content:
    try:
        return _Content.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return _Content()
    except (OSError, ValueError, ValidationError) as error:
        logger.warning("%s: whom we met before is forgotten: %s", path, error)
        return _Content()
