"""SparseLoCo: the k largest entries of every chunk, two bits each, with error feedback.

Sources: SparseLoCo (arXiv 2508.15706), Covenant-72B (arXiv 2603.08163). Where we differ from that run: two
magnitude levels per chunk, chosen optimally (there: one table per tensor), and a mean over all peers by share
(there: over the peers that sent the coordinate; here that is `rule = "senders"`).

Everything a peer must reproduce bit for bit (`decompress`, `aggregate`) is single element-wise fp32 operations in
PeerId order, and norms by fp64 sums in chunk order: neither threads, nor the CPU, nor the choice between the compiled
kernels and torch shows, as long as nobody tells the CPU to flush subnormal numbers to zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator

from elastic.errors import DivergedError
from elastic.reduce import topk
from elastic.sections import Section
from elastic.wire import codec
from elastic.wire.chunks import Array, Sparsity
from elastic.wire.codec import Part, SparsePayload
from elastic.wire.packing import Entries, Layout, layout, level_table, levels_of, pack, round_levels, unpack
from elastic.wire.threads import in_threads

try:
    from elastic.reduce import kernels as sender
    from elastic.wire import kernels as receiver
except ImportError:  # no numba: everything in torch
    sender = receiver = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

    from elastic.contracts import Tensors

NOTHING = np.empty(0, np.float32)


class SparseLoCo:
    """Top-k per chunk, a sign and a magnitude bit per entry, two levels per chunk: 0.019 bytes a parameter."""

    averages = False

    class Config(Section):
        """Settings of the `sparseloco` reducer; the same on every peer."""

        chunk: Annotated[int, Field(ge=16, le=65536)] = 4096
        """Elements per chunk. A square number cuts matrices into square tiles, any other into runs."""
        k: Annotated[int, Field(ge=1, le=65536, validate_default=True)] = 64
        """Entries kept of a full chunk, at most `chunk`; smaller chunks keep the same proportion."""
        bits: Literal[1, 2] = 2
        """Bits per entry. 2: sign and one of two magnitudes; 1: sign only, one magnitude per chunk."""
        beta: Annotated[float, Field(ge=0, le=1)] = 0.95
        """Decay of the residual per round; 1 forgets nothing, 0 turns error feedback off."""
        rule: Literal["mean", "senders"] = "mean"
        """"mean": Σ share · D̂. "senders": per coordinate, the plain mean over the peers that sent it."""

        @field_validator("k")
        @classmethod
        def _fits_chunk(cls, k: int, info: ValidationInfo) -> int:
            chunk = info.data.get("chunk")
            if chunk is not None and k > chunk:
                raise ValueError(f"k is at most chunk = {chunk}")
            return k

    def __init__(self, config: Config, compiled: bool = True) -> None:
        """One per process; holds no state.

        Args:
            config: settings of the run.
            compiled: use the compiled kernels for what is on the CPU, if numba is installed. Nobody sees a difference.
        """
        self.config = config
        self.sparsity = Sparsity(config.chunk, config.k, config.bits)
        self._compiled = compiled and sender is not None

    def compress(
        self, pseudo_gradient: Tensors, residual: Tensors, *, inplace: bool = False
    ) -> tuple[SparsePayload, dict[str, Tensor]]:
        """e = β·residual + Δ → what is sent of e, and e − D̂.

        Args:
            pseudo_gradient: Δ, name → any shape, on any device; not changed.
            residual: e of the round before; a missing name counts as zeros.
            inplace: write e − D̂ over the residual, where that is fp32 and contiguous: no second copy of the model. If
                it fails, the residual is spoilt.

        Returns:
            The payload, and fp32 residuals on Δ's devices; `decompress(payload)` + residual is e, to rounding.

        Raises:
            DivergedError: e has entries that are not finite.
        """

        def one(name: str) -> tuple[Array, Tensor]:
            part, left = self._compress(pseudo_gradient[name], residual.get(name), inplace=inplace)
            if part is None:
                raise DivergedError(f"pseudo-gradient of {name} is not finite: the inner steps diverged")
            return part, left

        names = _largest_first(pseudo_gradient)
        made = dict(zip(names, in_threads(one, names), strict=True))
        payload = SparsePayload(
            self.sparsity, {name: Part(tuple(pseudo_gradient[name].shape), made[name][0]) for name in pseudo_gradient}
        )
        return payload, {name: made[name][1] for name in pseudo_gradient}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _compress(self, delta: Tensor, residual: Tensor | None, *, inplace: bool) -> tuple[Array | None, Tensor]:
        """One tensor's bytes (None: not finite) and what is left of e."""
        form, shape = layout(tuple(delta.shape), self.sparsity), delta.shape
        if residual is not None and residual.shape != shape:
            raise ValueError(f"a residual of shape {tuple(residual.shape)} for a pseudo-gradient of {tuple(shape)}")
        delta = delta.detach().to(torch.float32).contiguous()
        if residual is not None:
            residual = residual.detach().to(delta.device, torch.float32).contiguous()
        error = residual if inplace and residual is not None else torch.empty_like(delta)
        if self._compiled and delta.device.type == "cpu":
            old = NOTHING if residual is None else residual.numpy().reshape(-1)
            part = self._pick_and_pack(delta.numpy().reshape(-1), old, error.numpy().reshape(-1), form)
            return part, error.reshape(shape)
        if residual is None:
            error.copy_(delta)
        else:
            torch.mul(residual, self.config.beta, out=error).add_(delta)
        if not torch.isfinite(error).all():
            return None, error
        return pack(topk.extract(error, form), form), error.reshape(shape)

    def _pick_and_pack(self, delta: Array, residual: Array, error: Array, form: Layout) -> Array | None:
        if not form.num_chunks:
            return np.empty(0, np.uint8)
        table, bits = receiver.table_of(form), form.bits
        indices, values = np.empty(form.num_entries, np.int32), np.empty(form.num_entries, np.float32)
        levels_C2 = np.empty((form.num_chunks, 2))
        beta = np.float32(self.config.beta)
        if not sender.pick(delta, residual, error, beta, table, indices, values, levels_C2, bits == 2):
            return None
        exponent, scales = round_levels(levels_C2, bits)
        words = np.zeros(form.max_bytes // 8 + 3, "<u8")
        used = sender.pack(error, table, indices, values, levels_of(scales, exponent), form.head, bits, words)
        part = words.view(np.uint8)[:used]
        part[0], part[1 : form.head] = exponent, scales.reshape(-1)
        return part

    def decompress(self, payload: SparsePayload, like: Tensors) -> dict[str, Tensor]:
        """D̂, dense fp32: zeros but for the entries sent."""

        alone = SparseLoCo(self.config.model_copy(update={"rule": "mean"}), self._compiled)
        return alone.aggregate([(payload, 1.0)], like)  # nobody to be clipped to

    def aggregate(
        self,
        parts: Sequence[tuple[SparsePayload, float]],
        like: Tensors,
        *,
        out: Tensors | None = None,
    ) -> dict[str, Tensor]:
        """One dense fp32 update from (payload, share) in PeerId order, by the configured rule.

        Each tensor of each peer is first clipped down to the median over peers of that tensor's norm. Then,
        peer by peer, value · fp32(factor) is rounded and added to the sum: a payload has no coordinate twice,
        so the order inside a peer cannot matter. No parts: zeros. The rule "senders" ignores shares, as that
        run did: it divides a coordinate's sum by how many sent it. For one dense tensor at a time, give one name
        in `like`.

        Args:
            parts: payloads that `decode` gave or `compress` made, with shares that sum to 1.
            like: name → anything with a `.shape`.
            out: name → fp32 contiguous tensor to write the update into, on any device: all give the same bits. Else
                there are new ones on the CPU.
        """
        updates = {}
        for name, meta in like.items():
            room = torch.empty(tuple(meta.shape)) if out is None else out[name]
            mine = [(self._checked(payload, name, room), share) for payload, share in parts]
            updates[name] = self._sum(mine, room)
        return updates

    def _checked(self, payload: SparsePayload, name: str, like: Tensor) -> Array:
        """A tensor's bytes; the kernels read and write where these bytes say, so they must have been checked for it."""
        part = payload.parts[name]
        if payload.sparsity != self.sparsity or part.shape != tuple(like.shape):
            raise ValueError(
                f"{name}: {payload.sparsity} of {part.shape} cannot be added as {self.sparsity} of {tuple(like.shape)}"
            )
        return part.data

    def _sum(self, parts: Sequence[tuple[Array, float]], room: Tensor) -> Tensor:
        """One tensor's update by the configured rule, written into `room`."""
        form, by_share = layout(tuple(room.shape), self.sparsity), self.config.rule == "mean"
        total = room.view(-1)
        senders = torch.zeros(0 if by_share else len(total), dtype=torch.float32, device=room.device)
        if parts and form.num_chunks:
            shares = [share if by_share else 1.0 for _, share in parts]
            add = self._add_compiled if self._compiled and room.device.type == "cpu" else self._add
            add(total, senders, [part for part, _ in parts], shares, form)
        else:
            total.zero_()
        if not by_share:
            total /= senders.clamp_(min=1)
        return room

    def _add(
        self, total: Tensor, senders: Tensor, parts: Sequence[Array], shares: Sequence[float], form: Layout
    ) -> None:
        """total = Σ share · clip · D̂, and into `senders`, unless empty, how many sent each coordinate."""
        total.zero_()
        clips = clip_factors([math.sqrt(topk.energy(unpack(part, form)[0])) for part in parts])
        for part, share, clip in zip(parts, shares, clips, strict=True):  # unpacked again: one peer's entries at a time
            places, values = topk.entries_of(unpack(part, form)[0], form)
            places_N = torch.from_numpy(places).to(total.device)
            scaled_N = torch.from_numpy(values * np.float32(share * clip)).to(total.device)
            total[places_N] = total[places_N] + scaled_N
            if len(senders):
                senders[places_N] += 1

    def _add_compiled(
        self, total: Tensor, senders: Tensor, parts: Sequence[Array], shares: Sequence[float], form: Layout
    ) -> None:
        """The same on the CPU."""
        words, starts = receiver.as_words(parts)
        levels, table = np.stack([level_table(int(part[0])) for part in parts]), receiver.table_of(form)
        energies = np.empty(len(parts))
        receiver.energies(words, starts, form.head, form.bits, table, levels, energies)
        clips = clip_factors([math.sqrt(each) for each in energies.tolist()])
        factors = np.array([share * clip for share, clip in zip(shares, clips, strict=True)], np.float32)
        slabs = receiver.slabs(words, starts, form, torch.get_num_threads())
        sums, counts = total.numpy(), senders.numpy()

        def add(slab: tuple[Array, Array]) -> None:
            """Some chunks, of all peers: no other thread touches their elements."""
            chunks, ones = slab
            receiver.add(sums, counts, words, starts, chunks, ones, form.head, form.bits, table, levels, factors)

        in_threads(add, slabs)

    def entries(self, payload: SparsePayload, name: str, shape: Sequence[int]) -> Entries:
        """What a payload sends of one tensor, unpacked: to look at, or to compare."""
        return unpack(payload.parts[name].data, layout(tuple(shape), self.sparsity))[0]

    def glance(self, payload: SparsePayload, name: str) -> tuple[Array, float]:
        """Where a payload says something of one tensor, int64, counted chunk after chunk; and its squared norm."""
        shape = payload.parts[name].shape
        entries = self.entries(payload, name, shape)
        places, start = [np.empty(0, np.int64)], 0
        for block, indices_CK in zip(layout(tuple(shape), self.sparsity).blocks, entries.indices, strict=True):
            starts_C = start + block.size * np.arange(block.num_chunks, dtype=np.int64)
            places.append((starts_C[:, None] + indices_CK).reshape(-1))
            start += block.size * block.num_chunks
        return np.concatenate(places), topk.energy(entries)

    def join(self, payloads: Sequence[SparsePayload]) -> SparsePayload:
        return SparsePayload(self.sparsity, {name: part for each in payloads for name, part in each.parts.items()})

    def encode(self, payload: SparsePayload) -> bytes:
        return codec.encode(payload)

    def decode(self, data: bytes, like: Tensors) -> SparsePayload:
        """Strict inverse of `encode`; `like` may hold meta tensors. What it returns is still packed.

        Raises:
            MalformedError: any deviation, other settings of chunk, k and bits included.
        """
        return codec.decode(data, like, self.sparsity)

    def max_bytes(self, like: Mapping[str, Any]) -> int:
        """No payload is longer."""
        return codec.max_bytes(like, self.sparsity)


def compile_kernels() -> None:
    """Compile now what the first round would compile otherwise; numba keeps it for later processes."""
    reducer = SparseLoCo(SparseLoCo.Config())
    tensors = {"w": torch.ones(3)}
    payload, residual = reducer.compress(tensors, {})
    payload, _ = reducer.compress(tensors, residual)
    reducer.aggregate([(reducer.decode(reducer.encode(payload), tensors), 1.0)], tensors)


def clip_factors(norms: Sequence[float]) -> list[float]:
    """min(1, median / norm) for each peer.

    Of an even number the lower of the middle two is the median: else the loud half would say what is loud. Who sent
    nothing but zeros has no say.
    """
    loud = [peer_norm for peer_norm in norms if peer_norm > 0]
    median = statistics.median_low(loud) if loud else 0.0
    return [min(1.0, median / peer_norm) if peer_norm > 0 else 1.0 for peer_norm in norms]


def _largest_first(tensors: Mapping[str, Any]) -> list[str]:
    """Names in the order in which threads should take them, so that all end at about the same time."""
    return sorted(tensors, key=lambda name: (-math.prod(tensors[name].shape), name))
