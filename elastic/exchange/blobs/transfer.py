"""The span of one blob on its way: how long, how much, and from whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from elastic import trace
from elastic.exchange.blobs.ledger import Ledger
from elastic.messages import Digest
from elastic.trace import Marks

MOST_HOLDERS = 8
"""Named in one span: those that gave most."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a fetch tells of itself while it goes on."""

    ledger: Ledger = field(default_factory=Ledger)
    """Bytes and seconds by holder."""
    marks: Marks = field(default_factory=Marks)
    """Takes a span per chunk, if anyone wants them."""
    span: bytes = b""
    """What holders are told we do this for; nothing: they are not."""


@contextmanager
def transfer(digest: Digest, size_bytes: int) -> Iterator[Account]:
    """During the block a blob is fetched, and the account is kept of it."""
    if not trace.active():
        yield Account()
        return
    with trace.span(trace.TRANSFER, digest=digest[:12], bytes=size_bytes), trace.fine("fine.transfer") as marks:
        account = Account(marks=marks, span=trace.wire_context())
        try:
            yield account
        finally:
            came = account.ledger.take()
            for each in came[:MOST_HOLDERS]:
                trace.event("from", peer=each.peer, bytes=each.num_bytes, seconds=round(each.seconds, 4))
            trace.annotate(holders=len(came), received=sum(each.num_bytes for each in came))
