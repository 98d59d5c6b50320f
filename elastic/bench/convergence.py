"""`elastic bench convergence`: what each way of training comes to at equal tokens, as held-out loss and bytes sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch

from elastic.bench.simulate import Recipe, Swarm, num_params
from elastic.config import InnerConfig, OuterConfig
from elastic.errors import ConfigError
from elastic.reduce.sparseloco import SparseLoCo
from elastic.registry import BPE, READ_CORPUS, load
from elastic.sections import PluginChoice

Say = Callable[[str], None]

VOCABULARY = 2048
MODEL = PluginChoice.model_validate(
    {"name": "llama", "preset": "nano", "vocab_size": VOCABULARY, "layers": 4, "dim": 192, "heads": 6, "kv_heads": 3,
     "ffn_dim": 512}
)  # fmt: skip
TOKENS = 245_760
"""480 steps of 4 peers with 128 tokens each: whole rounds of 15, 30 and 60 steps."""
INNER_STEPS = 30
LONG = 8
"""Times more tokens in the long rows."""
LEARNING_RATE = {"adamw": 1.5e-3, "diloco": 1.5e-3, "sparseloco": 3e-3}
"""Peak of the inner AdamW: for each method the best of 1.5e-3, 3e-3 and 6e-3 at 250,000 tokens."""
LARGE = 4
"""Times larger batches, and more tokens, in the rows of larger batches; their H is half as large."""
SAME_AS = (", 16 peers", f", {LONG}x tokens", f", {LARGE}x batch")
"""Endings of names: such rows are compared with AdamW in the same setting."""
DILOCO = OuterConfig(learning_rate=0.7, nesterov=0.9)
"""The outer optimizer of DiLoCo, arXiv 2311.08105."""


@dataclass(frozen=True, slots=True)
class Row:
    """A finished recipe."""

    key: str
    """Digest of the recipe and of the text."""
    name: str
    seed: int
    held_out: float
    bytes_per_peer: int
    tokens: int
    seconds: float
    curve: list[tuple[int, float]]


def recipes(quick: bool, tokens: int) -> list[Recipe]:
    """The rows, headline first: a run that is cut short has the rows that matter most."""
    tokens = tokens or TOKENS
    headline = [
        _recipe("AdamW, data-parallel", "adamw", tokens),
        replace(_recipe("DiLoCo", "diloco", tokens), outer=DILOCO),
        plain := _recipe("SparseLoCo", "sparseloco", tokens),
    ]
    if quick:
        return headline
    mean_of_params = replace(_recipe("Averaging (α = 1, no momentum)", "diloco", tokens), outer=OuterConfig())
    rows = [*headline, mean_of_params]
    rows += [_large(recipe) for recipe in rows]
    rows += [replace(recipe, name=recipe.name + SAME_AS[1], tokens=LONG * tokens) for recipe in headline]
    rows.append(_with(plain, "SparseLoCo, 1 bit", bits=1))
    rows += [_with(plain, f"SparseLoCo, k = {k}", k=k) for k in (32, 128)]
    rows += [_with(plain, f"SparseLoCo, β = {beta}", beta=beta) for beta in (0.9, 0.99)]
    rows.append(_with(plain, "SparseLoCo, senders", rule="senders"))
    for alpha in (0.4, 2.0):
        rule = "senders" if alpha < 1 else "mean"
        rows.append(
            replace(_with(plain, f"SparseLoCo, {rule}, α = {alpha}", rule=rule), outer=OuterConfig(learning_rate=alpha))
        )
    for steps in (15, 60):
        inner = plain.inner.model_copy(update={"steps": steps})
        rows.append(replace(plain, name=f"SparseLoCo, H = {steps}", inner=inner))
    rows += [replace(recipe, name=recipe.name + SAME_AS[0], peers=16) for recipe in headline]
    return rows + [replace(recipe, seed=seed) for seed in (1, 2) for recipe in headline]


def _large(recipe: Recipe) -> Recipe:
    """The same with less noise in every step, and twice as many rounds."""
    inner = recipe.inner.model_copy(
        update={"batch_size": LARGE * recipe.inner.batch_size, "steps": INNER_STEPS // 2, "learning_rate": 3e-3}
    )
    return replace(recipe, name=recipe.name + SAME_AS[2], inner=inner, tokens=LARGE * recipe.tokens)


def _recipe(name: str, method: str, tokens: int) -> Recipe:
    inner = InnerConfig(steps=INNER_STEPS, batch_size=2, sequence_length=64, learning_rate=LEARNING_RATE[method])
    return Recipe(name, method, inner, tokens=tokens)


def _with(recipe: Recipe, name: str, **settings: Any) -> Recipe:
    return replace(recipe, name=name, reducer=SparseLoCo.Config.model_validate(settings))


def run(quick: bool, tokens: int, texts: Sequence[Path], kept: Path | None, say: Say) -> list[Row]:
    """Train every recipe that is not in the file `kept` yet; the file is written after each."""
    text = read_text(texts)
    data = load(BPE).train(text, VOCABULARY).encode(text).astype(np.uint16)
    todo = recipes(quick, tokens)
    say(f"{num_params(MODEL):,} parameters, {len(data):,} tokens of text, {torch.get_num_threads()} threads")
    rows = _read(kept)
    keys = [_key(recipe, data) for recipe in todo]
    for number, (recipe, key) in enumerate(zip(todo, keys, strict=True), 1):
        title = f"{number:2d}/{len(todo)} {recipe.name}, seed {recipe.seed}"
        if any(row.key == key for row in rows):
            say(f"{title}: kept from before")
            continue
        say(f"{title}: {recipe.tokens:,} tokens")
        outcome = Swarm(recipe, MODEL, data).train(lambda at, loss: say(f"      {at:,} tokens: {loss:.3f}"))
        row = Row(
            key, recipe.name, recipe.seed, outcome.held_out, outcome.bytes_per_peer, outcome.tokens, outcome.seconds,
            outcome.curve,
        )  # fmt: skip
        rows.append(row)
        say(f"{title}: held out {row.held_out:.4f}, {row.seconds:.0f} s")
        if kept is not None:
            new = kept.with_name(kept.name + ".new")
            new.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2) + b"\n")
            new.replace(kept)  # whoever kills us here finds the old rows or the new ones
    return [row for row in rows if row.key in keys]


def _key(recipe: Recipe, data: npt.NDArray[Any]) -> str:
    """Names what a row says: its recipe, the model and the text."""
    return hashlib.sha256(repr((recipe, MODEL)).encode() + data.tobytes()).hexdigest()[:16]


def read_text(texts: Sequence[Path]) -> str:
    """These files, one after the other, or the text that ships with the project."""
    if not texts:
        return str(load(READ_CORPUS)("pride_and_prejudice").decode())
    return "\n".join(map(_read_utf8, texts))


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--text {path}: {error}: expected UTF-8") from error


def _read(kept: Path | None) -> list[Row]:
    if kept is None or not kept.exists():
        return []
    try:
        rows = [Row(**row) for row in orjson.loads(kept.read_bytes())]
        return [replace(row, curve=[(int(tokens), loss) for tokens, loss in row.curve]) for row in rows]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{kept}: not a file of this benchmark ({error}); choose another") from error


def table(rows: Sequence[Row]) -> str:
    """Markdown: means over seeds, and the distance to data-parallel AdamW of as many peers."""
    names = list(dict.fromkeys(row.name for row in rows))
    by_name = {name: [row for row in rows if row.name == name] for name in names}
    lines = [
        "| | held-out loss | against AdamW | sent per peer | times less than AdamW |",
        "|---|---|---|---|---|",
    ]
    for name, mine in by_name.items():
        setting = next((ending for ending in SAME_AS if name.endswith(ending)), "")
        rival = by_name.get("AdamW, data-parallel" + setting, mine)
        loss, base = mean(row.held_out for row in mine), mean(row.held_out for row in rival)
        spread = f" ± {stdev(row.held_out for row in mine):.3f}" if len(mine) > 1 else ""
        sent, less = mine[0].bytes_per_peer, rival[0].bytes_per_peer / mine[0].bytes_per_peer
        lines.append(
            f"| {name} | {loss:.3f}{spread} | {100 * (loss / base - 1):+.1f} % | {sent / 1e6:,.2f} MB | {less:,.0f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Held-out loss over tokens and over bytes sent, of the first seed's rows; the suffix decides the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    over_tokens, over_bytes = figure.subplots(1, 2, sharey=True)
    for row in rows:
        if row.seed != 0:
            continue
        tokens, losses = zip(*row.curve, strict=True)
        headline = row.name.removesuffix(SAME_AS[1]) in ("AdamW, data-parallel", "DiLoCo", "SparseLoCo")
        if headline:
            over_tokens.plot(tokens, losses, marker=".", label=row.name)
        over_bytes.plot(
            row.bytes_per_peer / 1e6, row.held_out, "o" if headline else ".", color=None if headline else "grey"
        )
        if headline:
            over_bytes.annotate(row.name.replace(", ", ",\n"), (row.bytes_per_peer / 1e6, row.held_out), fontsize=7)
    over_tokens.set(xscale="log", xlabel="tokens of all peers", ylabel="held-out loss, nats per token")
    over_bytes.set(xscale="log", xlabel="MB sent by each peer")
    over_bytes.margins(x=0.3)  # room for the names
    over_tokens.legend(fontsize=7)
    figure.savefig(path)
