"""Which DHT records are kept and read when there are more than anyone can carry.

Peer identities are free, so a crowd of them is no argument. Records of those whom a peer heeds, its run's validators
and roster, always find room. All others share a small one, under each key and in all, first come, first kept: a
crowd keeps newcomers out at worst, and never those who are there. What somebody wrote while it was heeded stays when it
is not any more, until others need the room: rosters change, and a crowd may have passed through them.
"""

from __future__ import annotations

import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import base58
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils.timed_storage import ValueWithExpiration

from elastic.exchange.limits import RECORD_COST, RecordLimits
from elastic.messages import PeerId

_SWEEP_SECONDS = 5.0
"""Between two looks for what has expired; what has is never shown, but still takes room."""
_STRANGERS = b""
"""Whose account a stranger's record is on."""


class Heeded:
    """Whose records count, as raw peer ids: that is what they are stored under."""

    def __init__(self, own: PeerId, limits: RecordLimits | None = None) -> None:
        """Only we ourselves, for now."""
        self.limits = limits or RecordLimits()
        self._own = base58.b58decode(own)
        self._peers: OrderedDict[bytes, None] = OrderedDict()
        self.latest: frozenset[bytes] = frozenset()
        """Those named when we were last told, without us: nearly the same at all peers of a run."""
        self._met: frozenset[bytes] = frozenset()

    def heed(self, peers: Iterable[PeerId]) -> None:
        """From now on these too; who was not named for longest is forgotten when they become too many."""
        named = list(map(base58.b58decode, peers))
        self.latest = frozenset(named) - {self._own}
        for raw in named:
            self._peers[raw] = None
            self._peers.move_to_end(raw)
            if len(self._peers) > self.limits.heeded:
                self._peers.popitem(last=False)

    def meet(self, peers: Iterable[PeerId]) -> None:
        """These strangers were there when we last looked: they are read before newcomers."""
        self._met = frozenset(map(base58.b58decode, peers))

    def __contains__(self, raw: bytes) -> bool:
        return raw == self._own or raw in self._peers

    def choose(self, sizes: Mapping[bytes, int]) -> list[bytes]:
        """Of many authors those whose records we read: all whom we heed, at first, then so many others.

        Args:
            sizes: author → bytes of its record.
        """
        strangers = [author for author in sizes if author not in self]
        random.shuffle(strangers)  # else ids could be made that always come first
        strangers.sort(key=lambda author: author not in self._met)
        chosen, room = [author for author in sizes if author in self], self.limits.stranger_bytes_in_key
        for author in strangers[: self.limits.strangers_in_key]:
            room -= sizes[author] + RECORD_COST
            if room < 0:
                break
            chosen.append(author)
        return chosen


@dataclass(frozen=True, slots=True)
class _Record:
    value: bytes
    expiration: float
    account: bytes

    @property
    def cost(self) -> int:
        return len(self.value) + RECORD_COST


@dataclass(frozen=True, slots=True)
class _Place:
    account: bytes
    instead_of: list[bytes]
    """Authors whose records under the same key give way."""


class Records:
    """What one DHT node keeps for everyone; takes the place of Hivemind's `DHTLocalStorage`."""

    def __init__(self, heeded: Heeded, now: Callable[[], float] = time.time) -> None:
        """Empty; `now` is unix time."""
        self.heeded, self._now = heeded, now
        self._keys: OrderedDict[DHTID, dict[bytes, _Record]] = OrderedDict()
        """Those that were written last are at the end."""
        self._held: Counter[bytes] = Counter()
        """Account → bytes."""
        self._sweep_at = 0.0

    @property
    def held_bytes(self) -> int:
        """What all records take."""
        return self._held.total()

    def store(self, key: DHTID, value: Any, expiration_time: float, subkey: bytes | None = None) -> bool:
        """Keep an author's record, if there is room; False: it was not kept. Plain values are never ours."""
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: bytes, value: bytes, expiration_time: float) -> bool:
        """As `store`. Whether it is really from that author must have been checked."""
        place = self._place(key, subkey, len(value), expiration_time)
        if place is None:
            return False
        kept = self._keys.setdefault(key, {})
        self._keys.move_to_end(key)
        for author in (subkey, *place.instead_of):
            self._drop(kept, author)
        kept[subkey] = _Record(bytes(value), expiration_time, place.account)
        self._held[place.account] += kept[subkey].cost
        return True

    def has_room(self, key: DHTID, subkey: bytes, size: int, expiration_time: float) -> bool:
        """Whether such a record would be kept: asked before its signature is checked, which costs more."""
        return self._place(key, subkey, size, expiration_time) is not None

    def get(self, key: DHTID) -> ValueWithExpiration[DictionaryDHTValue] | None:
        """All that is kept under a key and has not expired, as a dictionary of Hivemind's."""
        found, now = DictionaryDHTValue(), self._now()
        for subkey, record in self._keys.get(key, {}).items():
            if record.expiration >= now:
                found.store(subkey, record.value, record.expiration)
        return ValueWithExpiration(found, found.latest_expiration_time) if found else None

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration[DictionaryDHTValue]]]:
        """What is handed over to a new neighbour: the newest that fits into `handover_bytes`."""
        room = self.heeded.limits.handover_bytes
        for key in reversed(list(self._keys)):
            size = sum(record.cost for record in self._keys[key].values())
            if size <= room and (found := self.get(key)) is not None:
                room -= size
                yield key, found

    def __contains__(self, key: DHTID) -> bool:
        return self.get(key) is not None

    def __len__(self) -> int:
        return len(self._keys)

    def _place(self, key: DHTID, subkey: bytes, size: int, expiration: float) -> _Place | None:
        """Where a record would be kept; None: it would not."""
        now = self._now()
        if now >= self._sweep_at:
            self._sweep(now)
        others, cost = dict(self._keys.get(key, {})), size + RECORD_COST
        old = others.pop(subkey, None)
        if not expiration >= now or (old is not None and old.expiration >= expiration):  # NaN is refused too
            return None
        account = self._account(subkey, others, old, cost)
        excess = sum(record.cost for record in others.values()) + cost - self.heeded.limits.bytes_in_key
        instead_of = []
        for author in self._yielding(others, account) if account is not None else ():
            if excess <= 0:
                break
            excess -= others[author].cost
            instead_of.append(author)
        return None if account is None or excess > 0 else _Place(account, instead_of)

    def _account(self, subkey: bytes, others: Mapping[bytes, _Record], old: _Record | None, cost: int) -> bytes | None:
        """On whose account a record would be kept if the key had room for it; None: on nobody's."""
        limits = self.heeded.limits
        if subkey in self.heeded and self._grown(subkey, old, cost) <= limits.bytes_of_heeded:
            return subkey
        strangers = [record.cost for record in others.values() if record.account == _STRANGERS]
        crowded = (
            len(strangers) >= limits.strangers_in_key
            or sum(strangers) + cost > limits.stranger_bytes_in_key
            or self._grown(_STRANGERS, old, cost) > limits.stranger_bytes
        )
        return None if crowded else _STRANGERS

    def _yielding(self, others: Mapping[bytes, _Record], account: bytes) -> list[bytes]:
        """Whose records give way to one on that account, first those that were heeded once, and large ones."""
        unheeded = [author for author in others if author not in self.heeded]
        if account == _STRANGERS:
            unheeded = [author for author in unheeded if others[author].account != _STRANGERS]
        return sorted(unheeded, key=lambda author: (others[author].account == _STRANGERS, -others[author].cost))

    def _grown(self, account: bytes, old: _Record | None, cost: int) -> int:
        """The account with a record of that cost in place of the old one."""
        return self._held[account] + cost - (old.cost if old is not None and old.account == account else 0)

    def _drop(self, kept: dict[bytes, _Record], subkey: bytes) -> None:
        record = kept.pop(subkey, None)
        if record is not None:
            self._held[record.account] -= record.cost
            if not self._held[record.account]:
                del self._held[record.account]

    def _sweep(self, now: float) -> None:
        """Forget what has expired, and of those who are not heeded any more what was written longest ago."""
        self._sweep_at = now + _SWEEP_SECONDS
        room = self.heeded.limits.bytes_of_former
        for key, kept in reversed(list(self._keys.items())):
            for subkey, record in list(kept.items()):
                former = record.account != _STRANGERS and subkey not in self.heeded
                room -= record.cost if former else 0
                if record.expiration < now or (former and room < 0):
                    self._drop(kept, subkey)
            if not kept:
                del self._keys[key]
