"""JSON-RPC as a node speaks it: what clients ask, what they are told of without asking again, and faults on demand."""

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from incentives.devnet.chain import Block, Chain
from incentives.devnet.codec import blake2
from incentives.devnet.rules import RefusedError
from incentives.devnet.views import state_call

logger = logging.getLogger(__name__)

Send = Callable[[str], Awaitable[None]]
"""How to reach one client; raises ConnectionError when it has gone."""


def to_hex(data: bytes) -> str:
    return "0x" + data.hex()


def from_hex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


@dataclass
class Faults:
    """How the node misbehaves; all of it may be changed while it runs."""

    delay: float = 0.0
    """Seconds before each answer."""
    silent: bool = False
    """Reads and never answers."""
    forgetful: bool = False
    """Takes extrinsics, says so, and forgets them."""
    override: dict[str, Callable[[list[Any]], Any]] = field(default_factory=dict)
    """Method → what is answered instead, from the parameters; it may raise RefusedError."""


@dataclass
class Watch:
    """A client that is told what becomes of an extrinsic, or of new heads."""

    send: Send
    id: str
    extrinsic: bytes | None = None
    """Its hash; None: heads."""
    finalized: bool = False


class Rpc:
    """Answers requests from one chain."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.faults = chain, Faults()
        self.requests: list[tuple[str, list[Any]]] = []
        """Every (method, parameters) so far."""
        self._watches: list[Watch] = []
        self._ids = itertools.count(1)
        self._methods: dict[str, Callable[..., Any]] = {
            "chain_getHead": lambda: to_hex(self.chain.head.hash),
            "chain_getFinalizedHead": lambda: to_hex(self.chain.finalized.hash),
            "chain_getHeader": self._header,
            "chain_getBlockHash": self._block_hash,
            "chain_getBlock": self._block,
            "state_getRuntimeVersion": self._runtime_version,
            "state_call": lambda name, data, at=None: to_hex(
                state_call(self.chain, name, from_hex(data), self._at(at))
            ),
            "state_getStorageAt": self._storage,
            "state_getStorage": self._storage,
            "state_queryStorageAt": self._query_storage,
            "state_getKeysPaged": self._keys,
            "account_nextIndex": self.chain.next_nonce,
            "author_submitExtrinsic": lambda data: to_hex(self._submit(from_hex(data))),
        }

    async def receive(self, text: str | bytes, send: Send) -> None:
        """Answer one frame: a request, or a list of them."""
        if self.faults.silent:
            return
        frame = json.loads(text)
        answers = [await self._answer(each, send) for each in (frame if isinstance(frame, list) else [frame])]
        await send(json.dumps(answers if isinstance(frame, list) else answers[0]))

    def hang_up(self, send: Send) -> None:
        """This client has gone."""
        self._watches = [each for each in self._watches if each.send is not send]

    async def announce(self, block: Block) -> None:
        """Tell who watches that there is a new block."""
        final = self.chain.finalized
        hashes, final_hashes = set(map(blake2, block.extrinsics)), set(map(blake2, final.extrinsics))
        for watch in list(self._watches):
            if watch.extrinsic is None:
                header = self._header(to_hex((final if watch.finalized else block).hash))
                await self._tell(watch, "chain_newHead", header)
                continue
            if watch.extrinsic in hashes:
                await self._tell(watch, "author_extrinsicUpdate", {"inBlock": to_hex(block.hash)})
            if watch.extrinsic in final_hashes:
                self._watches.remove(watch)
                await self._tell(watch, "author_extrinsicUpdate", {"finalized": to_hex(final.hash)})

    async def tell_watchers(self, status: str) -> None:
        """Tell everyone who watches an extrinsic that this became of it: "usurped", "dropped", …"""
        for watch in [each for each in self._watches if each.extrinsic is not None]:
            self._watches.remove(watch)
            await self._tell(watch, "author_extrinsicUpdate", {status: to_hex(bytes(32))})

    async def _answer(self, request: dict[str, Any], send: Send) -> dict[str, Any]:
        method, parameters = request["method"], request.get("params") or []
        self.requests.append((method, parameters))
        if self.faults.delay:
            await asyncio.sleep(self.faults.delay)
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            return {**answer, "result": self._result(method, parameters, send)}
        except RefusedError as error:
            return {**answer, "error": error.error}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return {**answer, "error": {"code": -32602, "message": f"{method}: {error!r}"}}

    def _result(self, method: str, parameters: list[Any], send: Send) -> Any:
        if method in self.faults.override:
            return self.faults.override[method](parameters)
        if method == "author_submitAndWatchExtrinsic":
            return self._watch(send, extrinsic=self._submit(from_hex(parameters[0])))
        if method in ("chain_subscribeNewHeads", "chain_subscribeFinalizedHeads"):
            return self._watch(send, finalized="Finalized" in method)
        if "nsubscribe" in method or method == "author_unwatchExtrinsic":
            self._watches = [each for each in self._watches if each.id != parameters[0]]
            return True
        if method not in self._methods:
            raise RefusedError(f"Method not found: {method}", code=-32601)
        return self._methods[method](*parameters)

    async def _tell(self, watch: Watch, method: str, result: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": {"subscription": watch.id, "result": result}}
        try:
            await watch.send(json.dumps(message))
        except ConnectionError:
            logger.debug("a client that watched has gone")

    def _watch(self, send: Send, extrinsic: bytes | None = None, finalized: bool = False) -> str:
        watch = Watch(send, f"watch{next(self._ids)}", extrinsic, finalized)
        self._watches.append(watch)
        return watch.id

    def _submit(self, data: bytes) -> bytes:
        digest = self.chain.submit(data)
        if self.faults.forgetful:
            self.chain.pool.pop()
        return digest

    def _at(self, hash_: str | None) -> Block:
        if hash_ is None:
            return self.chain.head
        block = self.chain.by_hash.get(from_hex(hash_))
        if block is None:
            raise RefusedError(f"UnknownBlock: State already discarded for {hash_}", code=4003)
        return block

    def _header(self, hash_: str | None = None) -> dict[str, Any] | None:
        block = self.chain.by_hash.get(from_hex(hash_)) if hash_ else self.chain.head
        if block is None:
            return None
        root = to_hex(bytes(32))
        return {
            "parentHash": to_hex(block.parent), "number": hex(block.number), "stateRoot": root,
            "extrinsicsRoot": root, "digest": {"logs": []},
        }  # fmt: skip

    def _block_hash(self, number: int | None = None) -> str | None:
        blocks = self.chain.blocks
        if number is None:
            return to_hex(self.chain.head.hash)
        return to_hex(blocks[number].hash) if 0 <= number < len(blocks) else None

    def _block(self, hash_: str | None = None) -> dict[str, Any]:
        block = self._at(hash_)
        extrinsics = [to_hex(each) for each in block.extrinsics]
        return {"block": {"header": self._header(to_hex(block.hash)), "extrinsics": extrinsics}, "justifications": None}

    def _runtime_version(self, _at: str | None = None) -> dict[str, Any]:
        codec = self.chain.codec
        return {
            "specName": "node-subtensor", "implName": "local devnet", "specVersion": codec.spec_version,
            "transactionVersion": codec.transaction_version,
        }  # fmt: skip

    def _storage(self, key: str, at: str | None = None) -> str | None:
        value = self._at(at).state.storage.get(from_hex(key))
        return None if value is None else to_hex(value)

    def _query_storage(self, keys: list[str], at: str | None = None) -> list[dict[str, Any]]:
        return [{"block": to_hex(self._at(at).hash), "changes": [[key, self._storage(key, at)] for key in keys]}]

    def _keys(self, prefix: str, count: int, start: str | None = None, at: str | None = None) -> list[str]:
        after = from_hex(start or prefix)
        return [to_hex(key) for key in self._at(at).state.keys_under(from_hex(prefix), after, count)]
