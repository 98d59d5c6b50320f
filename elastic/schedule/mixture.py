"""Who trains on what if the tokens come from several sources, in proportion to their weights.

Every source is shuffled and dealt by itself (`assignment`), so slots never meet in any of them. In which source the
j-th sequence of a slot lies follows from the weights alone, the same for every slot: the k-th sequence of a source with
weight w has its turn at (k + 1/2) / w. So every prefix has the weights, to rounding; it is Webster's way to share out
seats. One source alone is dealt as a text is. A source that has not one block for every slot is left out of the round,
for all of them, and the others take its turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elastic.schedule.assignment import assigned_sequences, max_sequences_per_slot


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a mixture."""

    name: str
    """"" if it is a text."""
    num_sequences: int
    """That may be assigned."""
    weight: float
    """0: nothing of it."""


@dataclass(frozen=True, slots=True)
class Deal:
    """Which round of which run is dealt, among how many."""

    seed: int
    run: str
    index: int
    """The round."""
    roster_size: int
    block: int = 1
    """Neighbouring sequences that are dealt together."""


def turns(weights: Sequence[float], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each of the first `count` sequences the source, and which one of that source it is; both (count,)."""
    total, sources, places, times = sum(weights), [], [], []
    for source, weight in enumerate(weights):
        if weight > 0:
            nth = np.arange(int(count * weight / total) + len(weights) + 2)
            sources.append(np.full(len(nth), source))
            places.append(nth)
            times.append((2 * nth + 1) / weight)
    order = np.lexsort((np.concatenate(sources), np.concatenate(times)))[:count]
    return np.concatenate(sources)[order], np.concatenate(places)[order]


def in_all(part: Part, deal: Deal) -> int:
    """Sequences of a source that each slot can have in a round."""
    return max_sequences_per_slot(part.num_sequences, deal.roster_size, deal.block)


def assigned_mixture(parts: Sequence[Part], deal: Deal, slot: int, count: int) -> npt.NDArray[np.int64]:
    """The sequences of one slot in one round, (≤ count,); those of a source are numbered behind the sources before it.

    They end before the first source would have to give one twice.

    Raises:
        ValueError: no such slot, or no source has a block of sequences for each.
    """
    weights = [part.weight for part in parts]
    enough = [part.weight if in_all(part, deal) else 0.0 for part in parts]
    sources, nth = turns(enough if any(enough) else weights, count)
    for source, part in enumerate(parts):
        spent = (sources == source) & (nth >= in_all(part, deal))
        if spent.any():
            first = max(int(spent.argmax()), int((sources == source).argmax()) + 1)  # one at least, or it raises below
            sources, nth = sources[:first], nth[:first]
    found, start = np.empty(len(sources), np.int64), 0
    for source, part in enumerate(parts):
        here = sources == source
        if here.any():
            found[here] = start + _of(part, deal, slot, int(here.sum()))[nth[here]]
        start += part.num_sequences
    return found


def _of(part: Part, deal: Deal, slot: int, count: int) -> npt.NDArray[np.int64]:
    run = f"{deal.run}/{part.name}" if part.name else deal.run
    try:
        return assigned_sequences(
            part.num_sequences, deal.seed, run, deal.index, slot, count, deal.roster_size, deal.block
        )
    except ValueError as error:
        raise ValueError(f"source {part.name}: {error}" if part.name else str(error)) from error
