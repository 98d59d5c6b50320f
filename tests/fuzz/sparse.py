"""Sparse payloads, mutated, against the decoder: `python -m tests.fuzz.sparse --runs 10000000`.

Every execution must end in MalformedError or in a payload that encodes to the very same bytes. Of those that decode,
the numpy decoder must say the same, and adding them up must touch nothing outside the tensor. The seed is printed;
with it a run can be repeated. A find is written to a file and ends the run.
"""

import argparse
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from elastic.errors import MalformedError
from elastic.reduce.sparseloco import SparseLoCo
from elastic.reduce.topk import entries_of
from elastic.wire import codec, kernels
from elastic.wire.chunks import Sparsity
from elastic.wire.packing import layout, level_table, pack, unpack

MODELS = (
    {"w": (9, 6), "v": (21,), "scalar": (), "empty": (0, 3)},
    {"w": (64, 70), "v": (5,)},
    {"w": (130, 64)},
)
SPARSITIES = (
    *(Sparsity(16, 4), Sparsity(16, 16, 1), Sparsity(24, 5), Sparsity(4096, 64), Sparsity(4096, 64, 1)),
    *(Sparsity(65536, 9), Sparsity(25, 1), Sparsity(4096, 4096)),
)
GUARD = 64
"""Elements around the sum that must stay as they are."""


def honest(rng: np.random.Generator) -> list[tuple[dict[str, torch.Tensor], bytes]]:
    """(like, bytes) to start from: every model with every sparsity, several times."""
    found = []
    for shapes in MODELS:
        for chunk, k, bits in SPARSITIES:
            reducer = SparseLoCo(SparseLoCo.Config(chunk=chunk, k=k, bits=bits))
            for _ in range(4):
                delta = {n: torch.from_numpy(np.asarray(rng.standard_t(3, s), np.float32)) for n, s in shapes.items()}
                like = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
                found.append((like, reducer.encode(reducer.compress(delta, {})[0])))
    return found


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes of the kinds that break parsers; mostly behind the header."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        kind, some = rng.randrange(8), rng.randrange(1, 9)
        place = rng.randrange(0 if rng.random() < 0.1 else codec.HEADER.size, max(len(changed), codec.HEADER.size) + 1)
        if kind <= 2 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 3 and place < len(changed):
            changed[place] = rng.choice((0, 255, 127, 128))
        elif kind == 4:
            del changed[place : place + some]
        elif kind == 5:
            changed[place:place] = rng.randbytes(some)
        elif kind == 6:
            changed[place : place + some] = other[place : place + some]
        else:
            changed[place : place + some] = rng.choice((b"\0", b"\xff")) * some
    return bytes(changed)


def execute(data: bytes, like: dict[str, torch.Tensor], *, thoroughly: bool) -> str:
    """One execution; returns how it ended, raises AssertionError (or anything) if it is a find."""
    try:
        payload = codec.decode(data, like)
    except MalformedError as error:
        if thoroughly:
            assert not decodes_in_numpy(data, like), "numpy takes what the kernels refuse"
        return re.sub(r"b(['\"]).*\1|\d+", "#", str(error)).replace("payload: ", "")
    assert codec.encode(payload) == data, "two encodings of one payload"
    if thoroughly:
        assert decodes_in_numpy(data, like), "numpy refuses what the kernels take"
        for name, part in payload.parts.items():
            form = layout(tuple(like[name].shape), payload.sparsity)
            assert np.array_equal(pack(unpack(part.data, form)[0], form), part.data), (
                "pack is not the inverse of unpack"
            )
            add_between_guards(part.data, form)
    return "decoded"


def decodes_in_numpy(data: bytes, like: dict[str, torch.Tensor]) -> bool:
    codec.kernels, kept = None, codec.kernels
    try:
        codec.decode(data, like)
    except MalformedError:
        return False
    else:
        return True
    finally:
        codec.kernels = kept


def add_between_guards(part: np.ndarray, form: object) -> None:
    if not form.num_chunks:
        return
    size = sum(block.num_chunks * block.size for block in form.blocks)
    sums, counts = (np.full(size + 2 * GUARD, 7, np.float32) for _ in range(2))
    counts[GUARD:-GUARD] = 0
    words, starts = kernels.as_words([part])
    for chunks, ones in kernels.slabs(words, starts, form, 3):
        kernels.add(
            sums[GUARD:-GUARD], counts[GUARD:-GUARD], words, starts, chunks, ones, form.head, form.bits,
            kernels.table_of(form), level_table(int(part[0]))[None], np.ones(1, np.float32),
        )  # fmt: skip
    expected = np.zeros((2, size), np.float32)
    places, values = entries_of(unpack(part, form)[0], form)
    expected[0, places] += values
    expected[1, places] += 1
    for memory, right in zip((sums, counts), expected, strict=True):
        assert (memory[:GUARD] == 7).all() and (memory[-GUARD:] == 7).all(), "a write outside the tensor"
        assert right.tobytes() == memory[GUARD:-GUARD].tobytes(), "another sum than in numpy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="executions (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all mutations (default %(default)s)")
    parser.add_argument(
        "--thorough", type=int, default=64, help="one in so many is also checked in numpy (default %(default)s)"
    )
    options = parser.parse_args()
    if options.runs < 1 or options.thorough < 1:
        parser.error("--runs and --thorough: expected numbers from 1 on")
    run(options.runs, options.seed, options.thorough)


def run(runs: int, seed: int, thorough: int) -> Counter:
    """Returns how executions ended."""
    rng = random.Random(seed)
    seeds, outcomes, start = honest(np.random.default_rng(seed)), Counter(), time.monotonic()
    sys.stdout.write(f"{runs:,} executions, seed {seed}\n")
    try:
        for number in range(runs):
            (like, data), (_, other) = rng.choice(seeds), rng.choice(seeds)
            mutated = mutate(data, other, rng)
            try:
                outcomes[execute(mutated, like, thoroughly=number % thorough == 0)] += 1
            except Exception:
                Path(f"find-{seed}-{number}.bin").write_bytes(mutated)
                model = {name: tuple(tensor.shape) for name, tensor in like.items()}
                sys.stdout.write(f"execution {number}: find-{seed}-{number}.bin, {model}\n")
                raise
            if number % 1_000_000 == 999_999:
                sys.stdout.write(f"{number + 1:,} after {time.monotonic() - start:.0f} s\n")
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(f"stopped after {outcomes.total():,} executions\n")
    for outcome, times in outcomes.most_common():
        sys.stdout.write(f"{times:12,}  {outcome}\n")
    return outcomes


if __name__ == "__main__":
    main()
