"""Which chunks to ask of whom: the rarest first, from the fastest, and the first holder is spared.

Pure: no sockets, no threads, and the time is an argument. `elastic.exchange.blobs.fetch` does what this says.

The first holder, as a rule who made the blob, is asked for chunks that nobody else is known to have and that it has not
handed out yet; it picks them, as only it knows what the others got. So N peers that fetch together take about one copy
from it, and the rest from each other. When it has nothing new, they wait for each other for `PATIENCE_SECONDS`, then
accept what it has handed out once, and so on: progress goes before thrift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from elastic.messages import PeerId
from elastic.wire.tree import CHUNK_BYTES

Bits = NDArray[np.bool_]
"""One per chunk."""

ANY_COPIES = 255
"""However often the holder has handed a chunk out."""
MAX_LISTED = 1024
"""Chunks named in one request."""
MAX_BATCH = 64
"""Chunks asked for at once; as many as the holder sends in `BATCH_SECONDS`, up to this."""
BATCH_SECONDS = 1.0
THRIFTY_CHUNKS = 4
"""A smaller blob is taken straight from the first holder: finding out who else has it would take longer."""
PIPELINE = 2
"""Requests to one holder at a time, once its rate is known: the second one's bytes come while the first one's answer is
taken leave of, and a new stream has to be opened and to gather speed."""
STAGGER_SECONDS = 0.25
"""The others are asked only after this, or when the first holder has failed."""
PATIENCE_SECONDS = 2.0
"""For chunks that somebody else must have got, and for a holder that is slow with the last ones."""
STALL_SECONDS = 20.0
"""Without a new chunk for so long, a fetch is given up."""
_SAMPLE = 4096
_RETRY_SECONDS = 0.2
_POLL_SECONDS, _MAX_POLL_SECONDS = 0.5, 4.0
_TRIES = 2
_RATE_DECAY = 0.5


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to one holder."""

    holder: PeerId
    chunks: tuple[int, ...] = ()
    """Which it may send, the most wanted first; none: it only says what it has."""
    most: int = 0
    """How many of them."""
    copies: int = ANY_COPIES
    """Only those that it has handed out at most so many times."""
    table: bool = False
    """Ask for the blob's table instead."""


@dataclass(eq=False)
class _Source:
    """What is known of one holder."""

    peer: PeerId
    free_at: float
    """Not asked before."""
    news_at: float = 0.0
    """Not asked before what it has got meanwhile."""
    holds: Bits | None = None
    """None: it did not say, or has nothing."""
    asks: list[Ask] = field(default_factory=list)
    """What it is asked just now."""
    copies: int = ANY_COPIES
    rate: float = 0.0
    """Bytes per second, lately; 0: not known."""
    pause: float = _POLL_SECONDS
    failures: int = 0
    problem: str = ""
    dropped: bool = False

    def idle(self, now: float) -> bool:
        return not self.dropped and self.has_room and now >= self.free_at

    @property
    def has_room(self) -> bool:
        """For another request. Who fetches too has an uplink that many want, and whom we spare picks by itself."""
        donor = self.copies == ANY_COPIES and self.holds is not None and bool(self.holds.all())
        return len(self.asks) < (PIPELINE if self.rate and donor else 1)

    def seconds(self, ask: Ask) -> float:
        """How long it takes as a rule; 0: not known."""
        return min(ask.most, len(ask.chunks)) * CHUNK_BYTES / self.rate if self.rate else 0.0

    @property
    def hopeful(self) -> bool:
        """Whether something may still come from it."""
        return not self.dropped and (
            bool(self.asks) or self.holds is not None or not self.problem or 0 < self.failures < _TRIES
        )


class Selection:
    """One fetch, as far as it has come.

    At first only the table is asked for, and nothing is set up: how large a blob is said to be costs no memory.

    Args:
        holders: who may have the blob; the first is spared.
        now: any clock, in seconds, the same in all calls.
    """

    def __init__(self, holders: Sequence[PeerId], rng: np.random.Generator, now: float) -> None:
        self.has_table = False
        self._rng = rng
        self._moved_at = now
        self._sources = {peer: _Source(peer, now + bool(at) * STAGGER_SECONDS) for at, peer in enumerate(holders)}
        self._first = next(iter(self._sources.values()), None)
        self.got_table(np.zeros(0, np.bool_), now)
        self.has_table = False

    def got_table(self, held: Bits, now: float) -> None:
        """The table is here and right; these chunks we have already."""
        self.has_table, self._moved_at = True, now
        self._missing = ~held
        self._rarity = np.zeros(len(held), np.int32)
        self._flights = np.zeros(len(held), np.int32)
        self._late_at = np.zeros(len(held))
        if self._first is not None:
            spared = len(held) >= THRIFTY_CHUNKS and len(self._sources) > 1
            self._first.copies = 0 if spared else ANY_COPIES

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return self.has_table and not self._missing.any()

    @property
    def story(self) -> dict[PeerId, str]:
        """What every holder did wrong, if it did."""
        return {source.peer: source.problem for source in self._sources.values() if source.problem}

    def hopeless(self, now: float) -> bool:
        """Whether nobody is left who could give what is missing, or nothing has come for too long."""
        return now > self._moved_at + STALL_SECONDS or not any(source.hopeful for source in self._sources.values())

    def next(self, now: float) -> Ask | None:
        """What to ask whom; None: nothing before `wait` has passed or an answer has come."""
        idle = [source for source in self._sources.values() if source.idle(now)]
        if not self.has_table:
            ask = self._for_table(idle, now)
        else:
            favourites = sorted(idle, key=lambda source: -source.rate * self._rng.uniform(0.5, 1.0))
            favourites.sort(key=lambda source: source is not self._first)
            found = (self._for_chunks(source, now) for source in favourites)
            ask = next((ask for ask in found if ask is not None), None) or self._for_news(idle, now)
        if ask is not None:
            source = self._sources[ask.holder]
            source.asks.append(ask)
            self._fly(ask, +1)
            self._late_at[list(ask.chunks)] = now + PATIENCE_SECONDS + 2 * source.seconds(ask)
        return ask

    def wait(self, now: float) -> float:
        """Seconds until `next` may have another answer by itself."""
        sources = [source for source in self._sources.values() if not source.dropped and source.has_room]
        instants = (instant for source in sources for instant in (source.free_at, source.news_at))
        return min((instant for instant in instants if instant > now), default=now + PATIENCE_SECONDS) - now

    def told(self, holder: PeerId, holds: Bits) -> None:
        """The holder said which chunks it has."""
        source = self._sources[holder]
        old = source.holds
        if old is not None and (holds & ~old).any():
            source.pause = _POLL_SECONDS
        self._rarity += holds.astype(np.int32)
        if old is not None:
            self._rarity -= old
        source.holds = holds

    def got(self, chunk: int, now: float) -> None:
        """A chunk is here and right."""
        self._missing[chunk] = False
        self._moved_at = now

    def answered(self, ask: Ask, chunks: int, seconds: float, now: float) -> None:
        """The holder has sent all that it wanted to: so many chunks in so many seconds."""
        source = self._landed(ask)
        source.failures, source.problem = 0, ""
        if chunks:
            rate = chunks * CHUNK_BYTES / max(seconds, 1e-3)
            source.rate = max(rate, _RATE_DECAY * source.rate + (1 - _RATE_DECAY) * rate)
        elif ask.chunks and source is self._first:
            self._be_patient(source, now)
        elif ask.chunks:
            self._forget(source)  # it said that it had them
            self._postpone(source, now)
        if not ask.table:
            source.news_at = now + source.pause
            source.pause = min(2 * source.pause, _MAX_POLL_SECONDS)

    def lacks(self, ask: Ask, problem: str, now: float) -> None:
        """The holder has nothing of the blob yet."""
        source = self._landed(ask)
        source.problem = problem
        self._forget(source)
        self._postpone(source, now)
        self._first_failed(source, now)

    def busy(self, ask: Ask, problem: str, now: float) -> None:
        """The holder has no time for us now."""
        source = self._landed(ask)
        source.failures, source.problem = max(1, source.failures), problem
        source.free_at = now + self._rng.uniform(0.5, 1.0) * source.pause
        source.pause = min(2 * source.pause, _MAX_POLL_SECONDS)
        self._first_failed(source, now)

    def failed(self, ask: Ask, problem: str, now: float) -> None:
        """The holder did not answer, or the stream broke. It gets another chance."""
        source = self._landed(ask)
        source.failures, source.problem = source.failures + 1, problem
        source.free_at = now + min(_RETRY_SECONDS * 2**source.failures, STALL_SECONDS)
        source.rate /= 2
        if source.failures >= _TRIES:
            self._forget(source)
        self._first_failed(source, now)

    def lied(self, ask: Ask, problem: str, now: float) -> None:
        """What the holder sent is wrong: it is not asked again."""
        source = self._landed(ask)
        source.dropped, source.problem = True, problem
        self._forget(source)
        self._first_failed(source, now)

    def _for_table(self, idle: Sequence[_Source], now: float) -> Ask | None:
        """One after the other, and the next one too where an answer takes long."""
        asked = [source for source in self._sources.values() if source.asks]
        if any(now < source.free_at + PATIENCE_SECONDS for source in asked) or not idle:
            return None
        idle[0].free_at = now
        return Ask(idle[0].peer, table=True)

    def _for_chunks(self, source: _Source, now: float) -> Ask | None:
        if source.holds is None:
            return None
        offered = self._missing & source.holds
        batch = int(np.clip(source.rate * BATCH_SECONDS / CHUNK_BYTES, 1, MAX_BATCH))
        if source.copies == 0:
            chunks = self._rarest(offered & (self._rarity <= 1), MAX_LISTED)
        elif source.copies < ANY_COPIES:
            chunks = self._rarest(offered & (self._flights == 0), 4 * batch)
        else:
            late = (self._flights == 1) & (self._late_at < now)
            late[[chunk for ask in source.asks for chunk in ask.chunks]] = False
            chunks = self._rarest(offered & (self._flights == 0), batch) or self._rarest(offered & late, 1)
        if not chunks and source.copies < ANY_COPIES:
            self._be_patient(source, now)
        return Ask(source.peer, chunks, batch, source.copies) if chunks else None

    def _be_patient(self, first: _Source, now: float) -> None:
        """It has nothing new for us: the others get some time to bring what they got from it."""
        alone = not any(other.hopeful for other in self._sources.values() if other is not first)
        first.copies = ANY_COPIES if alone else min(first.copies + 1, ANY_COPIES)
        first.free_at = now if alone else now + PATIENCE_SECONDS

    def _for_news(self, idle: Sequence[_Source], now: float) -> Ask | None:
        """A holder that has not got everything may have got more."""
        idle = [each for each in idle if not each.asks]
        growing = [each for each in idle if now >= each.news_at and (each.holds is None or not each.holds.all())]
        return Ask(min(growing, key=lambda source: source.news_at).peer) if growing else None

    def _rarest(self, wanted: Bits, most: int) -> tuple[int, ...]:
        indices = np.flatnonzero(wanted)
        if len(indices) > _SAMPLE:
            indices = self._rng.choice(indices, _SAMPLE, replace=False)
        order = np.lexsort((self._rng.random(len(indices)), self._rarity[indices]))
        return tuple(indices[order[:most]].tolist())

    def _fly(self, ask: Ask, change: int) -> None:
        if ask.copies:  # else the holder picks some of many, which nobody else has
            self._flights[list(ask.chunks)] += change

    def _landed(self, ask: Ask) -> _Source:
        source = self._sources[ask.holder]
        source.asks.remove(ask)
        self._fly(ask, -1)
        return source

    def _postpone(self, source: _Source, now: float) -> None:
        source.free_at = now + source.pause
        source.pause = min(2 * source.pause, _MAX_POLL_SECONDS)

    def _forget(self, source: _Source) -> None:
        if source.holds is not None:
            self._rarity -= source.holds
            source.holds = None

    def _first_failed(self, source: _Source, now: float) -> None:
        """Nobody else is waited with any longer."""
        if source is self._first:
            for other in self._sources.values():
                if other is not source and not other.problem:
                    other.free_at = min(other.free_at, now)


def pick(ask_chunks: Sequence[int], most: int, copies: int, holds: Bits, handed: NDArray[np.uint8]) -> list[int]:
    """What a holder sends of what was asked for: what it has handed out least, within the bounds of the request.

    Args:
        handed: how often each chunk was handed out; counts those it returns.
    """
    able = [chunk for chunk in ask_chunks if holds[chunk] and handed[chunk] <= copies]
    picked = sorted(able, key=lambda chunk: int(handed[chunk]))[:most]
    handed[picked] = np.minimum(handed[picked], ANY_COPIES - 1) + 1
    return picked
