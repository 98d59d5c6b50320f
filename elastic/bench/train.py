"""`elastic bench train`: our decoder's inner steps beside those of `transformers`' Llama of the same shape.

Both train in turns, A B B A, in processes of their own; ratios are medians over the pairs. On a GPU whose peak is known
the model FLOPs utilisation, too: tokens/s · FLOPs a token / peak. FLOPs a token are those of `elastic plan`,
6 · (numbers of all matrices that tokens are multiplied with) + 6 · layers · dim · T, of which the second is attention:
a causal mask leaves half of the 12 · layers · dim · T that are often counted. Recomputing does not count.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Protocol

from elastic.bench.decoders import OURS, THEIRS, Block, Work, in_processes
from elastic.config_local import TrainConfig
from elastic.errors import ConfigError, ElasticError, MissingExtraError
from elastic.plan.gpus import GPUS, kind_of
from elastic.plan.shape import flops_per_token, sizes_of
from elastic.sections import PluginChoice

Say = Callable[[str], None]

BLOCK_SECONDS = 1.0
"""That a block takes, about, if nobody says: short, so that whoever else is on the machine slows both alike."""
MOST_STEPS = 200
SAME_LOSS = {"fp32": 1e-3, "bf16": 5e-2}
"""How far the first losses of two decoders with the same weights may be apart, in nats."""


@dataclass(frozen=True, slots=True)
class Case:
    """A shape and a batch."""

    preset: str
    batch: int
    sequence: int
    layers: int = 0
    """0: the preset's."""


CPU_CASES = (Case("nano", 8, 128), Case("micro", 4, 256), Case("150m", 2, 512, layers=2))
GPU_CASES = (Case("150m", 16, 2048), Case("1b", 8, 2048))
OTHERS = Case("", 1, 512)
"""Batch and length for presets that are in no case."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured, and how."""

    cases: Sequence[Case]
    device: str = "cpu"
    precision: str = "fp32"
    compiled: Sequence[bool] = (False,)
    recompute: bool = False
    threads: int = 1
    pairs: int = 15
    steps: int = 0
    """Of a block; 0: as many as take some seconds."""
    alone: bool = False
    """Ours only."""

    def works(self) -> list[tuple[str, Work]]:
        """All that is measured, with names for people."""
        return [(_label(case, self, on), self._work(case, on)) for case in self.cases for on in self.compiled]

    def _work(self, case: Case, compiled: bool) -> Work:
        tree: dict[str, Any] = {"name": "llama", "preset": case.preset}
        if case.layers:
            tree["layers"] = case.layers
        how = TrainConfig.model_validate(
            {"precision": self.precision, "compile": compiled, "recompute": self.recompute}
        )
        model = PluginChoice.model_validate(tree)
        return Work(model, case.batch, case.sequence, how, self.device, self.threads)


class Trains(Protocol):
    """One of the two, wherever it is."""

    def train(self, steps: int) -> Block: ...

    def peak_bytes(self) -> int: ...


Start = Callable[[Work, Sequence[str]], AbstractContextManager[Mapping[str, Trains]]]


def chosen(presets: Sequence[str], changes: Mapping[str, Any], device: str, quick: bool) -> list[Case]:
    """The cases of these presets, or the usual ones; `changes` other than 0 go for all of them.

    Raises:
        ConfigError: no such preset, or a sequence that it does not take.
    """
    usual = GPU_CASES if device == "cuda" else CPU_CASES
    known = {case.preset: case for case in usual}
    wanted = [known.get(name, replace(OTHERS, preset=name)) for name in presets] or [*usual[: 1 if quick else None]]
    cases = [replace(case, **{key: value for key, value in changes.items() if value}) for case in wanted]
    for case in cases:
        sizes: Any = sizes_of(PluginChoice.model_validate({"name": "llama", "preset": case.preset}))
        if case.sequence > sizes.max_sequence_length:
            raise ConfigError(f"--sequence {case.sequence}: {case.preset} takes {sizes.max_sequence_length} tokens")
    return cases


def require_the_other() -> None:
    """Better to miss it before anything is measured.

    Raises:
        MissingExtraError: `transformers` is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(
            "elastic bench train compares with `transformers`: pip install transformers==5.15.1, or --alone"
        )


def measure(setup: Setup, say: Say, start: Start = in_processes) -> list[dict[str, Any]]:
    """A row for each case, as JSON; on Ctrl-C those that are done."""
    rows: list[dict[str, Any]] = []
    device = _device_name(setup.device)
    try:
        for label, work in setup.works():
            say(label)
            with start(work, [OURS] if setup.alone else [OURS, THEIRS]) as sides:
                rows.append({"what": label, "device": device, **_row(work, setup, sides, say)})
    except KeyboardInterrupt:
        say("stopped")
        if not rows:
            raise
    return rows


def _row(work: Work, setup: Setup, sides: Mapping[str, Trains], say: Say) -> dict[str, Any]:
    first = {who: side.train(1) for who, side in sides.items()}
    losses = [block.first_loss for block in first.values()]
    if max(losses) - min(losses) > SAME_LOSS[setup.precision]:
        raise ElasticError(f"the two are not the same model: their first losses are {losses}")
    second = {who: side.train(2) for who, side in sides.items()}  # the first step allocates, or compiles
    slowest = max(block.seconds / 2 for block in second.values())
    steps = setup.steps or min(MOST_STEPS, max(1, math.ceil(BLOCK_SECONDS / slowest)))
    blocks: dict[str, list[Block]] = {who: [] for who in sides}
    for number in range(setup.pairs):
        for who in list(sides)[:: -1 if number % 2 else 1]:
            blocks[who].append(sides[who].train(steps))
        say("  " + ", ".join(f"{who} {found[-1].rate:,.0f} tokens/s" for who, found in blocks.items()))
    sizes = sizes_of(work.model)
    row: dict[str, Any] = {
        "params": sizes.num_params(), "flops per token": flops_per_token(sizes, work.sequence),
        "threads": work.threads, "steps": steps, "pairs": setup.pairs, "first losses": losses,
    }  # fmt: skip
    for who, found in blocks.items():
        row[who] = {"tokens/s": median(block.rate for block in found), "peak bytes": sides[who].peak_bytes()}
    if THEIRS in blocks:
        pairs = list(zip(blocks[OURS], blocks[THEIRS], strict=True))
        row["ratios"] = [ours.rate / theirs.rate for ours, theirs in pairs]
        row["ratio"] = median(row["ratios"])
        if work.device == "cpu":
            row["cpu time ratio"] = median(theirs.cpu_seconds / ours.cpu_seconds for ours, theirs in pairs)
    return row


def utilisation(row: Mapping[str, Any], who: str = OURS) -> float | None:
    """Model FLOPs that are done in a second, over the bf16 peak of the device; None: its peak is not known."""
    kind = kind_of(row["device"])
    return None if kind is None else float(row[who]["tokens/s"] * row["flops per token"] / GPUS[kind].flops)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """For people."""
    heads = ("ours, tokens/s", "transformers", "ratio", "of CPU time", "ours, MB", "transformers", "MFU", "its MFU")
    lines = [f"{'':<38}" + "".join(f"{head:>15}" for head in heads)]
    for row in rows:
        ours, theirs = row[OURS], row.get(THEIRS)
        cells = [
            f"{ours['tokens/s']:,.0f}", f"{theirs['tokens/s']:,.0f}" if theirs else "",
            *(f"{row[key]:.3f}" if key in row else "" for key in ("ratio", "cpu time ratio")),
            f"{ours['peak bytes'] / 1e6:,.0f}", f"{theirs['peak bytes'] / 1e6:,.0f}" if theirs else "",
            *(_percent(utilisation(row, who) if who in row else None) for who in (OURS, THEIRS)),
        ]  # fmt: skip
        lines.append(f"{row['what']:<38}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def _percent(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.1f} %"


def _label(case: Case, setup: Setup, compiled: bool) -> str:
    layers = f" of {case.layers} layers" if case.layers else ""
    extras = (", compiled" if compiled else "") + (", recomputed" if setup.recompute else "")
    return f"{case.preset}{layers}, {case.batch} × {case.sequence}, {setup.precision}{extras}"


def _device_name(device: str) -> str:
    if device != "cuda":
        return device
    import torch

    return str(torch.cuda.get_device_name())
