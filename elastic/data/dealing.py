"""Who is dealt which tokens in a round: from the run file and the sizes of its sources alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from elastic.config import RunConfig
from elastic.data.corpus import Corpus, Numbers
from elastic.errors import ConfigError
from elastic.schedule.mixture import Deal, Part, assigned_mixture


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
        ValueError: no such slot, or a source has fewer sequences than there are slots.
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


def check_enough(config: RunConfig, corpus: Corpus) -> None:
    """Whether a round of `min_peers` has as much as it takes, in every phase.

    Raises:
        ConfigError: it has not.
        ValueError: a source has not one sequence.
    """
    shared = config.shared
    wanted, slots = shared.inner.steps * shared.inner.batch_size, shared.round.min_peers
    for round_ in (1, *(phase.from_round for phase in shared.data.phases)):
        parts = parts_of(config, corpus, round_)
        deal = Deal(shared.seed, shared.run, round_, slots, shared.data.block)
        try:
            found = len(assigned_mixture(parts, deal, 0, wanted))
        except ValueError as error:
            raise ConfigError(f"{error}: take more, or lower shared.round.min_peers or shared.data.block") from error
        if found < wanted:
            named = [part for part in parts if part.name and part.weight]
            what = f"of round {round_}, the sources together, have" if named else "the text has"
            total = sum(part.num_sequences for part in parts)
            short = f" {found:,} of them without giving one twice" if named else ""
            raise ConfigError(
                f"{what} {total:,} sequences of {shared.inner.sequence_length} tokens{short} and a round takes "
                f"{wanted:,} for each peer, with min_peers = {slots}: lower shared.inner.steps, "
                "shared.inner.batch_size or shared.round.min_peers"
            )
