"""What strangers wrote, and what peers are called: printable, short, and nobody else's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from elastic.messages import PeerId

LONGEST = 24


def printable(text: str, most: int | None = None) -> str:
    """So many letters of a text, without what moves the cursor: a space stands in its place."""
    return "".join(each if each.isprintable() else " " for each in text[:most])


def ending(peer: PeerId) -> str:
    """How its id ends: all ids begin alike."""
    return f"…{peer[-6:]}"


def labels(peers: Iterable[PeerId], names: Mapping[PeerId, str]) -> dict[PeerId, str]:
    """Peer → what it is called here: its name; how its id ends, if it has none; both, if it is not the only one."""
    short = {peer: short_name(names.get(peer, "")) for peer in peers}
    uses = Counter(short.values())
    return {
        peer: ending(peer) if not name else name if uses[name] == 1 else f"{name} {ending(peer)}"
        for peer, name in short.items()
    }


def short_name(name: str) -> str:
    """What a stranger calls itself, in few letters that move no cursor."""
    text = " ".join(printable(name).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
