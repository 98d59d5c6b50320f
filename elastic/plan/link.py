"""How long payloads travel: bytes divided by lines, for three ways of sharing them.

A bound of what lines can carry, and what we measured beside it: see `elastic.plan.checked`, which holds these formulas
against our own measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MBIT = 1e6 / 8
EFFICIENCY = 0.96
"""Part of a line that carries payload: headers, and losses of 0.1 %. Fitted, with the next one, to two measured
transfers of 200 MB over 110/500 Mb/s and 40 ms (docs/churn.md)."""
START_RTTS = 37.0
"""Round trips until a transfer runs at full speed: finding holders, their tables, TCP's slow start. 1.5 s at 40 ms."""
ORIGIN_COPIES = 1.14
"""Copies of its payload that a maker sends in a swarm; measured from 1.07 to 1.16 (docs/exchange.md)."""
DUPLICATES = 1.07
"""Chunks received in a swarm ÷ chunks of the payload, when all peers give at once (docs/exchange.md)."""


@dataclass(frozen=True, slots=True)
class Line:
    """Connections of some peers that are alike."""

    count: float
    up: float
    """Bytes/s of payload that leave."""
    down: float
    rtt: float = 0.0
    """Seconds."""

    @classmethod
    def of(cls, count: float, up_mbps: float, down_mbps: float, rtt_ms: float) -> "Line":
        """From what is written on a contract."""
        return cls(count, up_mbps * MBIT * EFFICIENCY, down_mbps * MBIT * EFFICIENCY, rtt_ms / 1000)


@dataclass(frozen=True, slots=True)
class Transfer:
    """All payloads of a round have reached everyone."""

    sent: float
    """Bytes that leave a peer whose payload counts, on average."""
    received: float
    """Bytes that reach a peer."""
    seconds: float
    limit: str
    """What takes the time."""
    egress: float = 0.0
    """Bytes that a bucket gives out, for all peers."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Who gives what to whom."""

    lines: Sequence[Line]
    """Of all peers."""
    makers: float
    """Of these, peers with a payload, drawn from all lines alike; a single one has the first line."""
    payload: float
    """Bytes of one payload."""

    @property
    def peers(self) -> float:
        """All, makers and others: everyone needs every payload, or it does not hold the next anchor."""
        return sum(line.count for line in self.lines)

    @property
    def received(self) -> float:
        """Bytes that a maker needs; who makes nothing needs one payload more."""
        return (self.makers - 1) * self.payload if self.makers >= self.peers else self.makers * self.payload

    @property
    def _making(self) -> Sequence[Line]:
        return self.lines[:1] if self.makers == 1 else self.lines

    def origin(self) -> Transfer:
        """Everyone fetches each payload from its maker: peers − 1 copies leave by its line."""
        sent = (self.peers - 1) * self.payload
        return self._at_once(sent, self.received, {"the makers' uplinks": self._slowest_up(sent)})

    def swarm(self) -> Transfer:
        """Everyone passes on what it has.

        Not before the thinnest maker has sent its payload once, the thinnest downlink has taken all, and all uplinks
        together have carried every copy.

        Source: Mundinger, Weber, Weiss, "Optimal scheduling of peer-to-peer file dissemination", J. Scheduling 11
        (2008): these bounds are reached when pieces are small. We multiply by the copies that were sent in vain. Where
        uplinks differ much, real swarms need longer: half as long again, where one was four times thinner.
        """
        copies = self.makers * (self.peers - 1) * self.payload * DUPLICATES
        uplinks = sum(line.count * line.up for line in self.lines)
        own = min(ORIGIN_COPIES, max(1.0, self.peers - 1)) * self.payload
        bounds = {"the thinnest maker's uplink": self._slowest_up(own), "all uplinks together": copies / uplinks}
        return self._at_once(max(own, copies / self.peers), self.received * DUPLICATES, bounds)

    def bucket(self) -> Transfer:
        """Each maker uploads its payload once, and when it is whole everyone reads it there; buckets are fast."""
        up, down = self._slowest_up(self.payload), self._slowest_down(self.received)
        egress = self.peers * self.received
        limit = "uplink, and then downlink" if up > down / 3 else "downlink"
        return Transfer(self.payload, self.received, up + down + 2 * self._start(), limit, egress)

    def all_reduce(self) -> Transfer:
        """The average of everyone's payload: each sends and gets every part twice, but for its own.

        Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce", JPDC 69 (2009); Hivemind's averager is of that kind.
        """
        each = 2 * (self.makers - 1) / self.makers * self.payload
        return self._at_once(each, each, {"uplink": self._slowest_up(each)})

    def _at_once(self, sent: float, received: float, bounds: dict[str, float]) -> Transfer:
        """Up and down at the same time: the longest takes it all."""
        bounds = {**bounds, "downlink": self._slowest_down(received)}
        limit = max(bounds, key=lambda name: bounds[name])
        return Transfer(sent, received, bounds[limit] + self._start(), limit)

    def _slowest_up(self, sent: float) -> float:
        return sent / min(line.up for line in self._making)

    def _slowest_down(self, received: float) -> float:
        return received / min(line.down for line in self.lines)

    def _start(self) -> float:
        return START_RTTS * max(line.rtt for line in self.lines)


def fetch_seconds(size: float, joiner: Line, donors: Sequence[Line]) -> float:
    """Until one peer has a blob that others hold whole: the anchor, for who joins."""
    return size / min(joiner.down, sum(donor.count * donor.up for donor in donors)) + START_RTTS * joiner.rtt
