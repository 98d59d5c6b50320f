"""`elastic bench reducer`: what compressing and adding up costs, beside a reference in the style of the published code.

Both work on the same tensors in the same process, in turns; figures are medians over the passes, ratios medians over
the pairs. Sizes are those of a Llama with about the given number of parameters.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elastic.bench import published
from elastic.bench.simulate import recorded_residuals
from elastic.messages import ContributionHeader, RoundIndex, digest_of
from elastic.reduce.sparseloco import SparseLoCo, compile_kernels
from elastic.reduce.topk import entries_of
from elastic.train.outer import Turns
from elastic.wire.codec import SparsePayload
from elastic.wire.packing import layout
from elastic.wire.signing import Identity
from elastic.wire.threads import in_threads
from elastic.wire.tree import blob_digest

Say = Callable[[str], None]

DISTINCT = 4
"""Different payloads that are made; more peers send these again."""
VOCABULARY = 50_304
SENT = ("student-t", "uneven", "bf16")
"""What is compressed: see `draw`; bf16 is Student-t, as inner steps in bfloat16 leave it."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured."""

    params: float
    peers: Sequence[int]
    passes: int
    seed: int = 0
    device: str = "cpu"


def llama_shapes(params: float) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama of about that many parameters, all sizes multiples of 64."""

    def shapes(dim: int) -> dict[str, tuple[int, ...]]:
        vocabulary = min(VOCABULARY, dim * 64)
        found: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, dim), "norm": (dim,)}
        ffn = -(-dim * 8 // 3 // 64) * 64
        for layer in range(max(1, dim // 64)):
            found |= {f"{layer}.{name}": (dim, dim) for name in ("q", "k", "v", "o")}
            found |= {f"{layer}.gate": (ffn, dim), f"{layer}.up": (ffn, dim), f"{layer}.down": (dim, ffn)}
            found |= {f"{layer}.norm1": (dim,), f"{layer}.norm2": (dim,)}
        return found

    return min(map(shapes, range(64, 4096, 64)), key=lambda found: abs(num_params(found) - params))


def num_params(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes.values())


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int, kind: str = "student-t") -> dict[str, Tensor]:
    """Values, a thousandth in size: "student-t" (4 degrees of freedom), "gaussian", or "uneven", which is Student-t
    with a size of its own for every 64 × 64 tile: lognormal, most within a factor of twenty."""
    rng = np.random.default_rng(seed)

    def one(shape: tuple[int, ...]) -> Tensor:
        values = rng.standard_normal(shape) if kind == "gaussian" else rng.standard_t(4, shape)
        if kind == "uneven" and len(shape) == 2:
            sizes = np.exp(1.5 * rng.standard_normal([-(-length // published.SIDE) for length in shape]))
            values *= np.kron(sizes, np.ones((published.SIDE,) * 2))[: shape[0], : shape[1]]
        return torch.from_numpy((values * 1e-3).astype(np.float32))

    return {name: one(shape) for name, shape in shapes.items()}


def measure(setup: Setup, say: Say) -> dict[str, Any]:
    """All figures, as JSON."""
    shapes, small = llama_shapes(setup.params), llama_shapes(min(setup.params, 2e6))
    count = num_params(shapes)
    where = f"{torch.get_num_threads()} threads, {setup.device}"
    say(f"{count:,} parameters in {len(shapes)} tensors, {where}, seed {setup.seed}")
    say("recording residuals of a real training run")
    errors = {
        "student-t": quantiser_errors(draw(small, setup.seed)),
        "gaussian": quantiser_errors(draw(small, setup.seed, "gaussian")),
        "real residuals": quantiser_errors(recorded_residuals(setup.seed)),
    }
    say("making payloads")
    compile_kernels()
    bench = _Bench(shapes, setup, count)
    # Ours with its signed commitment, all that is sent; theirs without its container.
    sizes = {"ours": len(bench.payloads[0]) + len(_commitment(bench.payloads[0])),
             "published": published.size_bytes(bench.parts[0])}  # fmt: skip
    result: dict[str, Any] = {"params": count, "threads": torch.get_num_threads(), "device": setup.device}
    result["errors"] = errors
    result["bytes per parameter"] = {who: size / count for who, size in sizes.items()}
    result["times smaller than fp32"] = {who: 4 * count / size for who, size in sizes.items()}
    result["sender"] = {}
    for kind in SENT:
        say(f"sender, {kind}")
        result["sender"][kind] = bench.sender(kind)
    result["receiver"] = {}
    for peers in setup.peers:
        say(f"receiver, {peers} peers")
        result["receiver"][str(peers)] = bench.receiver(peers)
    return result


class _Bench:
    """Both senders and both receivers with their tensors."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], setup: Setup, count: int) -> None:
        self.reducer, self.setup, self.millions = SparseLoCo(SparseLoCo.Config()), setup, count / 1e6
        self.like = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        self.turns = Turns(self.like, setup.device)
        self.shapes = shapes
        self._draw(SENT[0])
        self.payloads, self.parts = [], []
        for _ in range(DISTINCT):
            self.payloads.append(self.reducer.encode(self._compress()))
            self.parts.append(published.compress(self.delta, self.their_error))

    def _draw(self, kind: str) -> None:
        """Pseudo-gradient and residual of that kind, on the device; one residual for each sender."""
        values = draw(self.shapes, self.setup.seed, "student-t" if kind == "bf16" else kind)
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        self.delta = {name: value.to(self.setup.device, dtype) for name, value in values.items()}
        self.error = {name: value.to(self.setup.device, copy=True) for name, value in values.items()}
        self.their_error = {name: value.clone() for name, value in self.error.items()}

    def _compress(self) -> SparsePayload:
        payload, self.error = self.reducer.compress(self.delta, self.error, inplace=True)
        return payload

    def sender(self, kind: str) -> dict[str, Any]:
        """ms per 1M parameters of each stage, and the ratio to the reference."""
        self._draw(kind)
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for _ in range(self.setup.passes):
            ours.append(self._stages(compress=lambda _: self._compress(), encode=self.reducer.encode))
            theirs.append(
                self._stages(
                    compress=lambda _: published.compress(self.delta, self.their_error), encode=published.encode
                )
            )
        summary = _summary(ours, theirs)
        seconds = summary["ours"]["total"] * self.millions / 1e3
        moved = sum((2 * 4 + delta.element_size()) * delta.numel() for delta in self.delta.values())
        return {**summary, "state GB/s": moved / seconds / 1e9}

    def receiver(self, peers: int) -> dict[str, Any]:
        """The same for `peers` payloads of equal shares."""
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for _ in range(self.setup.passes):
            ours.append(self._stages(decode=lambda _: self._decode(peers), aggregate=self._aggregate))
            theirs.append(self._stages(decode=lambda _: self._their_decode(peers), aggregate=self._their_aggregate))
        return _summary(ours, theirs)

    def _aggregate(self, payloads: Sequence[SparsePayload]) -> None:
        parts = [(payload, 1 / len(payloads)) for payload in payloads]
        for some, room in self.turns:
            self.reducer.aggregate(parts, some, out=room)

    def _their_aggregate(self, parts: Sequence[Mapping[str, published.Part]]) -> None:
        for some, _ in self.turns:
            published.aggregate(parts, some)

    def _decode(self, peers: int) -> list[SparsePayload]:
        data = [self.payloads[peer % DISTINCT] for peer in range(peers)]
        return in_threads(lambda each: self.reducer.decode(each, self.like), data)

    def _their_decode(self, peers: int) -> list[Mapping[str, published.Part]]:
        """Their container is left out, so this is the check alone."""
        data = [self.parts[peer % DISTINCT] for peer in range(peers)]
        return [published.check(each, self.delta) for each in data]

    def _stages(self, **stages: Callable[[Any], Any]) -> dict[str, float]:
        """Each stage works on what the one before made: ms per 1M parameters."""
        value, times = None, {}
        gc.collect()
        for stage, call in stages.items():
            start = time.perf_counter()
            value = call(value)
            if self.setup.device == "cuda":
                torch.cuda.synchronize()
            times[stage] = (time.perf_counter() - start) * 1e3 / self.millions
        return times


def _summary(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, Any]:
    def medians(passes: list[dict[str, float]]) -> dict[str, float]:
        stages = {stage: median(each[stage] for each in passes) for stage in passes[0]}
        return {**stages, "total": median(sum(each.values()) for each in passes)}

    ratios = [sum(b.values()) / sum(a.values()) for a, b in zip(ours, theirs, strict=True)]
    return {"ours": medians(ours), "published": medians(theirs), "times faster": median(ratios)}


def _commitment(payload: bytes) -> bytes:
    """What is posted beside a payload: who, which round, which digests, and the signature."""
    me = Identity.generate()
    header = ContributionHeader(
        run="benchmark", round=RoundIndex(1000), peer=me.peer, anchor=digest_of(b""), proof=digest_of(b""),
        payload=blob_digest(payload), size_bytes=len(payload), steps=30, tokens=10**6, loss=3.141592653589793,
    )  # fmt: skip
    return me.sign(header).canonical()


def quantiser_errors(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative L2 error on the values sent, and how many of them got the wrong sign, for both; matrices only."""
    reducer = SparseLoCo(SparseLoCo.Config())
    found = {"ours": [0.0, 0.0, 0.0, 0.0], "published": [0.0, 0.0, 0.0, 0.0]}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or any(size % published.SIDE for size in tensor.shape):
            continue
        payload, _ = reducer.compress({name: tensor}, {})
        ours = reducer.decompress(payload, {name: tensor})[name]
        places = entries_of(
            reducer.entries(payload, name, tensor.shape), layout(tuple(tensor.shape), reducer.sparsity)
        )[0]
        _note(found["ours"], tensor.view(-1)[places], ours.view(-1)[places])
        chunks = published.to_chunks(tensor)
        indices = chunks.abs().topk(published.KEPT, dim=1).indices
        values = chunks.gather(1, indices)
        theirs = published.dequantise(published.Part(indices, *published.quantise(values)))
        _note(found["published"], values, theirs)
    return {
        label: value
        for who, (error, energy, wrong, sent) in found.items()
        for label, value in ((who, (error / energy) ** 0.5), (f"{who}, wrong signs", wrong / sent))
    }


def _note(sums: list[float], true: Tensor, sent: Tensor) -> None:
    a, b = true.double(), sent.double()
    for i, value in enumerate(((a - b).square().sum(), a.square().sum(), (a * b < 0).sum())):
        sums[i] += float(value)
    sums[3] += true.numel()


def table(result: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"{'ms per 1M parameters':<28}{'ours':>10}{'published':>12}{'times faster':>14}"]
    rows = [(f"sender, {kind}", row) for kind, row in result["sender"].items()]
    rows += [(f"receiver, {peers} peers", row) for peers, row in result["receiver"].items()]
    for label, row in rows:
        for stage in row["ours"]:
            times = f"{row['times faster']:>13.1f}x" if stage == "total" else ""
            what = label if stage == "total" else f"  {stage}"
            lines.append(f"{what:<28}{row['ours'][stage]:>10.2f}{row['published'][stage]:>12.2f}{times}")
    size, times = result["bytes per parameter"], result["times smaller than fp32"]
    lines.append(f"{'bytes per parameter':<28}{size['ours']:>10.4f}{size['published']:>12.4f}")
    lines.append(f"{'times smaller than fp32':<28}{times['ours']:>10.1f}{times['published']:>12.1f}")
    for what, errors in result["errors"].items():
        lines.append(f"{'rel. L2, ' + what:<28}{errors['ours']:>10.3f}{errors['published']:>12.3f}")
        wrong = [100 * errors[f"{who}, wrong signs"] for who in ("ours", "published")]
        lines.append(f"{'  wrong signs, %':<28}{wrong[0]:>10.1f}{wrong[1]:>12.1f}")
    speed = result["sender"][SENT[0]]["state GB/s"]
    lines.append(f"sender: {speed:.1f} GB/s of state read and written")
    return "\n".join(lines)
