"""Getting blobs: from all holders at once, chunk by chunk, each checked as it arrives.

`selection` decides what is asked of whom, in the one thread of a fetch; requests run in the threads of a pool and
report back through a queue.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import base58
import numpy as np
from google.protobuf.message import DecodeError
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from elastic.errors import FetchError
from elastic.exchange.blobs import bulk
from elastic.exchange.blobs.bulk import Head, Holder, Kind, Status, Traffic
from elastic.exchange.blobs.ledger import Entry
from elastic.exchange.blobs.partial import Partial, Partials
from elastic.exchange.blobs.selection import Ask, Bits, Selection
from elastic.exchange.blobs.streams import ask_daemon, open_stream, read_exactly, shut
from elastic.exchange.blobs.transfer import Account
from elastic.exchange.limits import Limits
from elastic.messages import Digest, PeerId
from elastic.wire.tree import HASH_BYTES, Table, chunk_size, num_chunks

_LOOK_SECONDS = 0.25
"""Between two looks whether the fetch was given up."""
_NO_DATA = Table(0, b"")

Outcome = Callable[[], None]
"""What a request came to, told to the selection in the fetch's own thread."""


class _LieError(Exception):
    """What came cannot be from an honest holder; the message says why."""


class _LacksError(Exception):
    """The holder has nothing of the blob."""


class _BusyError(Exception):
    """The holder has no time."""


class BulkClient:
    """Fetches blobs through the local p2pd. Blocking: call it in a thread.

    Args:
        partials: where chunks are kept, also those of a fetch that failed.
        seed: of the random choices among equals.
    """

    def __init__(
        self, control_path: str, partials: Partials, traffic: Traffic, seed: int, limits: Limits | None = None
    ) -> None:
        self.control_path = control_path
        self.partials = partials
        self.traffic = traffic
        self.limits = limits or Limits()
        self.streams = ThreadPoolExecutor(self.limits.max_fetch_streams, thread_name_prefix="bulk-stream")
        self.closed = threading.Event()
        self._seed = seed
        self._active: list[Digest] = []

    def fetch_blob(
        self,
        holders: Sequence[Holder],
        digest: Digest,
        size_bytes: int,
        stop: threading.Event,
        account: Account | None = None,
    ) -> bytes:
        """Get a blob from whoever has parts of it, the first holder asked for little.

        Raises:
            FetchError: it could not be completed, or `stop` was set; the message says what each holder did. What came
                is kept for the next try.
        """
        if size_bytes == 0 and _NO_DATA.digest == digest:
            return b""
        rng = np.random.default_rng([self._seed, int(digest[:8], 16)])
        self._active.append(digest)
        try:
            return _Fetch(self, holders, (digest, size_bytes), rng, account or Account()).run(stop)
        except OSError as error:
            self.partials.drop(digest)
            raise FetchError(f"{digest}: what came cannot be kept: {error}") from error
        finally:
            self._active.remove(digest)

    def max_asks(self) -> int:
        """Requests that one fetch may have open, so that those of all fetches need not wait for a thread."""
        share = self.limits.max_fetch_streams // max(1, len(self._active))
        return min(self.limits.max_asks, max(2, share))

    def close(self) -> None:
        """Give all fetches up."""
        self.closed.set()
        self.streams.shutdown(wait=False)


class _Fetch:
    """One fetch in progress."""

    def __init__(
        self,
        client: BulkClient,
        holders: Sequence[Holder],
        blob: tuple[Digest, int],
        rng: np.random.Generator,
        account: Account,
    ) -> None:
        self._client, self._limits, self._account = client, client.limits, account
        self._holders = {holder.peer: holder for holder in holders}
        self._digest, self._size = blob
        self._selection = Selection(list(self._holders), rng, time.monotonic())
        self._outcomes: queue.SimpleQueue[Future[Outcome] | Outcome] = queue.SimpleQueue()
        self._partial: Partial | None = None
        self._keep = ExitStack()
        self._open: dict[Ask, socket.socket] = {}
        self._dialled: set[PeerId] = set()
        self._ended = threading.Event()

    def run(self, stop: threading.Event) -> bytes:
        """Until the blob is complete; raises FetchError, or OSError if it cannot be kept."""
        with self._keep:
            known = self._client.partials.get(self._digest)
            if known is not None and known.table.size == self._size:
                self._begin(known.table)
            try:
                self._complete(stop)
            finally:
                self._ended.set()
                for stream in list(self._open.values()):
                    shut(stream)
            assert self._partial is not None, "a table comes before any chunk"
            return self._partial.data()

    def _complete(self, stop: threading.Event) -> None:
        selection, in_flight = self._selection, 0
        while not selection.complete:
            if stop.is_set() or self._client.closed.is_set():
                raise self._given_up()
            while in_flight < self._client.max_asks() and (ask := selection.next(time.monotonic())) is not None:
                self._submit(ask)
                in_flight += 1
            if selection.hopeless(time.monotonic()):
                told = "; ".join(f"{peer}: {problem}" for peer, problem in selection.story.items())
                raise FetchError(f"nobody gave {self._digest}: {told or 'no holder is known'}")
            try:
                outcome = self._outcomes.get(timeout=min(selection.wait(time.monotonic()), _LOOK_SECONDS))
            except queue.Empty:
                continue
            if isinstance(outcome, Future):
                in_flight -= 1
                outcome = outcome.result()
            outcome()

    def _submit(self, ask: Ask) -> None:
        try:
            self._client.streams.submit(self._request, ask).add_done_callback(self._outcomes.put)
        except RuntimeError as error:
            if self._client.closed.is_set():  # since we looked
                raise self._given_up() from error
            raise

    def _given_up(self) -> FetchError:
        return FetchError(f"the fetch of {self._digest} was given up")

    def _begin(self, table: Table) -> None:
        """The table is known: what we have of the blob already counts."""
        if self._partial is None:
            self._partial = self._keep.enter_context(self._client.partials.receiving(table))
            self._selection.got_table(self._partial.holds, time.monotonic())

    def _request(self, ask: Ask) -> Outcome:
        """In a thread of the pool: one request, from dialling to the ack."""
        start, selection = time.monotonic(), self._selection
        try:
            count = self._talk(ask)
        except _LieError as error:
            problem = str(error)
            return lambda: selection.lied(ask, problem, time.monotonic())
        except (DecodeError, ValueError) as error:
            problem = str(error)
            return lambda: selection.lied(ask, problem, time.monotonic())
        except _LacksError:
            return lambda: selection.lacks(ask, "does not have it", time.monotonic())
        except _BusyError:
            return lambda: selection.busy(ask, "is busy", time.monotonic())
        except (OSError, EOFError) as error:
            self._dialled.discard(ask.holder)
            problem = str(error) or "timed out"
            return lambda: selection.failed(ask, problem, time.monotonic())
        seconds = time.monotonic() - start
        return lambda: selection.answered(ask, count, seconds, time.monotonic())

    def _talk(self, ask: Ask) -> int:
        """Returns how many chunks came."""
        holder = self._holders[ask.holder]
        self._check_open()
        entry = self._account.ledger.begin(ask.holder)
        try:
            self._dial(holder)
            with self._stream_to(holder) as stream:
                self._open[ask] = stream
                try:
                    self._check_open()  # again: who ends the fetch shuts the streams that it finds
                    count = self._receive(stream, ask, entry)
                    stream.sendall(bulk.ACK)
                    return count
                finally:
                    del self._open[ask]
        finally:
            self._account.ledger.end(entry)

    def _check_open(self) -> None:
        if self._ended.is_set():
            raise EOFError("the fetch is over")

    def _receive(self, stream: socket.socket, ask: Ask, entry: Entry) -> int:
        kind = Kind.TABLE if ask.table else Kind.CHUNKS
        head = Head(kind, self._digest, ask.most, ask.copies, len(ask.chunks))
        stream.sendall(head.pack() + bulk.pack_numbers(ask.chunks))
        status, size = bulk.RESPONSE.unpack(self._read(stream, bulk.RESPONSE.size, ask.holder))
        if status == Status.UNKNOWN:
            raise _LacksError
        if status == Status.BUSY:
            raise _BusyError
        if status != Status.OK:
            raise _LieError(f"status {status}")
        if size != self._size:
            raise _LieError(f"announces {size} bytes, expected {self._size}")
        total = num_chunks(size)
        holds = bulk.unpack_bits(self._read(stream, -(-total // 8), ask.holder), total)
        if ask.table:
            return self._receive_table(stream, ask, holds)
        self._outcomes.put(lambda: self._selection.told(ask.holder, holds))
        return self._receive_chunks(stream, ask, entry)

    def _receive_table(self, stream: socket.socket, ask: Ask, holds: Bits) -> int:
        table = Table(self._size, self._read(stream, num_chunks(self._size) * HASH_BYTES, ask.holder))
        if table.digest != self._digest:
            raise _LieError("gave wrong bytes: its table has another digest")

        def outcome() -> None:
            self._begin(table)
            self._selection.told(ask.holder, holds)

        self._outcomes.put(outcome)
        return 0

    def _receive_chunks(self, stream: socket.socket, ask: Ask, entry: Entry) -> int:
        partial = self._partial
        assert partial is not None, "chunks are asked for once the table is known"
        (count,) = bulk.COUNT.unpack(self._read(stream, bulk.COUNT.size, ask.holder))
        if count > ask.most:
            raise _LieError(f"sends {count} chunks, asked for {ask.most}")
        numbers = bulk.unpack_numbers(self._read(stream, count * bulk.NUMBER_BYTES, ask.holder))
        if len(set(numbers)) != count or not set(numbers) <= set(ask.chunks):
            raise _LieError("sends chunks that it was not asked for")
        for number in numbers:
            begin = time.time_ns()
            chunk = self._read(stream, chunk_size(self._size, number), ask.holder)
            self._account.ledger.add(entry, len(chunk))
            self._account.marks.add("fine.chunk", begin, time.time_ns(), number=number, peer_from=ask.holder)
            if not partial.add(number, chunk):
                raise _LieError(f"gave wrong bytes for chunk {number}")
            self._outcomes.put(lambda number=number: self._selection.got(number, time.monotonic()))  # type: ignore[misc]
        return len(numbers)

    def _dial(self, holder: Holder) -> None:
        """Let p2pd connect to the addresses on the holder's card; without them it asks its own routing."""
        addresses = [raw for address in holder.addresses for raw in _transport_of(address, holder.peer)]
        if not addresses or holder.peer in self._dialled:
            return
        connect = p2pd_pb2.ConnectRequest(
            peer=base58.b58decode(holder.peer), addrs=addresses, timeout=int(self._limits.open_seconds)
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connect)
        # At once if we are connected already, also if it was the holder who dialled us.
        ask_daemon(self._client.control_path, request, self._limits.open_seconds).close()
        self._dialled.add(holder.peer)

    def _stream_to(self, holder: Holder) -> socket.socket:
        span = self._account.span
        opening = p2pd_pb2.StreamOpenRequest(
            peer=base58.b58decode(holder.peer), proto=[bulk.TRACED, bulk.PROTOCOL] if span else [bulk.PROTOCOL],
            timeout=int(self._limits.open_seconds),
        )  # fmt: skip
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening)
        stream, answer = open_stream(self._client.control_path, request, self._limits.open_seconds)
        stream.settimeout(self._limits.idle_seconds)
        if answer.streamInfo.proto == bulk.TRACED:
            stream.sendall(span)
        return stream

    def _read(self, stream: socket.socket, length: int, holder: PeerId) -> bytes:
        """Exactly that many bytes, from a holder that is not too slow."""
        data = read_exactly(stream, length, self._limits.grace_seconds, self._limits.min_bytes_per_second)
        self._client.traffic.add(received=length, peer=holder)
        return data


def _transport_of(address: str, peer: PeerId) -> list[bytes]:
    """The part of a card's address that p2pd dials; nothing if it is not a TCP address of that peer."""
    transport, _, owner = address.partition("/p2p/")
    if owner not in ("", peer) or "/tcp/" not in transport:
        return []
    try:
        return [Multiaddr(transport).to_bytes()]
    except ValueError:
        return []
