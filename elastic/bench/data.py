"""`elastic data prepare` beside the tokenizer's own batch speed on the same text, which is all in memory there."""

from __future__ import annotations

import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from elastic.registry import BPE, OPEN_PIECES, PREPARE, PREPARE_SETTINGS, READING, load

SMALLEST = 1000
"""Bytes of a file that is taken; of smaller ones Python's library has many."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Medians over pairs, in MB of text per second, and medians of each pair's ratio."""

    prepare: float
    encode_batch: float
    encode_batch_fast: float
    ratio: float
    """To `encode_batch`, and"""
    ratio_fast: float
    """to `encode_batch_fast`, which leaves out where each token lies in the text."""
    text_bytes: int


def library_sources(most: int) -> list[Path]:
    """Python's own library, as text: what every machine has; about `most` bytes."""
    found, total = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        size = path.stat().st_size
        if size >= SMALLEST and "site-packages" not in path.parts and "lib2to3" not in path.parts:
            found.append(path)
            total += size
        if total >= most:
            break
    return found


def measure_data(
    paths: Sequence[Path], tokenizer: str, vocab_size: int, workers: int, pairs: int, say: Callable[[str], None]
) -> Speeds:
    """Alternate the two; the tokenizer is learnt once, before."""
    from tokenizers import Tokenizer  # the library itself, without anything of ours

    reading = load(READING)("text", "text", "replace")
    settings = load(PREPARE_SETTINGS)(tokenizer, vocab_size, paths, reading, 2**22, 0.05)
    texts = [piece.text for path in paths for piece in load(OPEN_PIECES)(path, reading)]
    text_bytes = sum(len(text.encode()) for text in texts)
    engine = Tokenizer.from_str(load(BPE)(settings.definition).to_json())
    say(f"{len(paths)} files, {text_bytes / 1e6:.1f} MB, {len(texts)} pieces, {settings.vocab_size} tokens known")
    rows = []
    for pair in range(pairs):
        ours = text_bytes / 1e6 / _prepared(paths, settings, workers)
        plain = text_bytes / 1e6 / _timed(lambda: engine.encode_batch(texts, add_special_tokens=False))
        fast = text_bytes / 1e6 / _timed(lambda: engine.encode_batch_fast(texts, add_special_tokens=False))
        rows.append((ours, plain, fast))
        say(f"pair {pair + 1}: prepare {ours:.2f} MB/s, encode_batch {plain:.2f}, encode_batch_fast {fast:.2f}")
    ours, plain, fast = (median(each) for each in zip(*rows, strict=True))
    return Speeds(ours, plain, fast, median(a / b for a, b, _ in rows), median(a / c for a, _, c in rows), text_bytes)


def _prepared(paths: Sequence[Path], settings: Any, workers: int) -> float:
    with tempfile.TemporaryDirectory(prefix="elastic-data-") as folder:
        return _timed(lambda: load(PREPARE)(paths, Path(folder) / "out", settings, workers))


def _timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
