"""Who is dealt which tokens in a round: from the run file and the sizes of its sources alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from elastic.config import RunConfig
from elastic.data.corpus import Corpus, Numbers
from elastic.errors import ConfigError
from elastic.schedule.mixture import Deal, Part, assigned_mixture, in_all


@dataclass(frozen=True, slots=True)
class Dealt:
    """One sequence, and where its tokens lie."""

    sequence: int
    source: str
    """"" if it is a text."""
    start: int
    """In the source, and"""
    stop: int
    """one behind the last, which is only predicted."""
    spans: tuple[tuple[str, int, int], ...]
    """(shard, first, one behind the last) in it; empty for a text."""

    def line(self) -> str:
        """As it is printed and hashed."""
        where = " ".join(f"{shard}[{first}:{stop}]" for shard, first, stop in self.spans)
        return f"{self.source or 'text'}[{self.start}:{self.stop}]{' ' if where else ''}{where}"


def parts_of(config: RunConfig, corpus: Corpus, round_: int) -> list[Part]:
    """Sizes and weights of the sources in a round.

    Raises:
        ValueError: a source has not one sequence.
    """
    sizes = corpus.sizes(config.shared.inner.sequence_length)
    weights = config.shared.data.weights(round_)
    return [
        Part(source.name, size, weight) for source, size, weight in zip(corpus.sources, sizes, weights, strict=True)
    ]


def dealt(config: RunConfig, corpus: Corpus, deal: Deal, slot: int, count: int) -> Numbers:
    """Numbers of the sequences of a slot, (≤ count,).

    Raises:
        ValueError: no such slot, or no source has a block of sequences for each.
    """
    return assigned_mixture(parts_of(config, corpus, deal.index), deal, slot, count)


def described(config: RunConfig, corpus: Corpus, sequences: Numbers) -> Iterator[Dealt]:
    """Where these sequences lie; only what indexes say is looked at."""
    length = config.shared.inner.sequence_length
    which, starts = corpus.placed(sequences, length)
    for sequence, number, start in zip(sequences.tolist(), which.tolist(), starts.tolist(), strict=True):
        source = corpus.sources[number]
        spans = tuple(source.tokens.spans(start, length + 1)) if hasattr(source.tokens, "spans") else ()
        yield Dealt(sequence, source.name, start, start + length + 1, spans)


def digest_of_deal(lines: list[str]) -> str:
    """SHA-256 over the lines, each with its line end."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def check_enough(config: RunConfig, corpus: Corpus) -> str:
    """Whether every phase has what a round of `min_peers` takes, and something for each of `max_peers`.

    Returns:
        What to know of a mixture whose rounds are shorter once `max_peers` share it; "": they are not.

    Raises:
        ConfigError: it has not.
        ValueError: a source has not one sequence.
    """
    shared = config.shared
    wanted, few, many = shared.inner.steps * shared.inner.batch_size, shared.round.min_peers, shared.round.max_peers
    note = ""
    for round_ in (1, *(phase.from_round for phase in shared.data.phases)):
        parts = parts_of(config, corpus, round_)
        crowded = Deal(shared.seed, shared.run, round_, many, shared.data.block)
        for part in parts:
            if part.weight and not in_all(part, crowded):
                raise ConfigError(
                    f"{f'source {part.name}' if part.name else 'the text'}: {part.num_sequences:,} sequences, in "
                    f"blocks of {shared.data.block}, are too few for {many} contributors: take more, or lower "
                    "shared.round.max_peers or shared.data.block"
                )
        found = len(assigned_mixture(parts, replace(crowded, roster_size=few), 0, wanted))
        if found < wanted:
            raise ConfigError(_too_little(config, parts, round_, found))
        left = len(assigned_mixture(parts, crowded, 0, wanted))
        if left < wanted and shared.data.sources and not note:
            note = (
                f"from round {round_} on, {many} peers (max_peers) have {left:,} sequences each before a source is "
                f"spent, not {wanted:,}: so many make fewer inner steps"
            )
    return note


def _too_little(config: RunConfig, parts: list[Part], round_: int, found: int) -> str:
    shared = config.shared
    named = [part for part in parts if part.name and part.weight]
    wanted, total = shared.inner.steps * shared.inner.batch_size, sum(part.num_sequences for part in parts)
    has = f"the text has {total:,}"
    if named:
        has = f"in round {round_} the sources give each of them {found:,} before one is spent, of {total:,} in all"
    return (
        f"with min_peers = {shared.round.min_peers} a round takes {wanted:,} sequences of "
        f"{shared.inner.sequence_length} tokens for each peer, and {has}: "
        "lower shared.inner.steps, shared.inner.batch_size or shared.round.min_peers"
    )
