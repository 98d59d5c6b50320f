"""[shared.data] of the run file: which tokens, cut how, mixed how."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from elastic.messages import HexDigest
from elastic.sections import Positive, Section

SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
LEAST_WEIGHT = 1e-6


def _no_trace(weight: float) -> float:
    """Less of one would never have its turn, or turns that cannot be counted."""
    if 0 < weight < LEAST_WEIGHT:
        raise ValueError(f"a weight is 0, or at least {LEAST_WEIGHT:g}")
    return weight


Weight = Annotated[float, Field(ge=0, le=1e6), AfterValidator(_no_trace)]


def _unset(value: Any) -> bool:
    """What is not used is no part of the run's digest."""
    return not value


class SourceConfig(Section):
    """[[shared.data.sources]]: prepared tokens, one part of a mixture."""

    name: SourceName
    """What it is called; `local.data.sources` says where this machine finds it."""
    index: HexDigest
    """SHA-256 of its index.json, which stands for all its tokens and its tokenizer; `elastic data show` prints it."""
    weight: Weight = 1.0
    """Its part of each peer's sequences, in proportion to the others'; 0: none, until a phase says otherwise."""


class PhaseConfig(Section):
    """[[shared.data.phases]]: other weights from a round on."""

    from_round: Positive
    """The first round of the phase; it lasts until the next one."""
    weights: dict[SourceName, Weight]
    """Source → weight; a source that is not named has 0."""

    @model_validator(mode="after")
    def _has_some(self) -> "PhaseConfig":
        if not any(self.weights.values()):
            raise ValueError("weights: at least one is above 0")
        return self


class DataConfig(Section):
    """[shared.data]: which text, cut how."""

    corpus: str = "pride_and_prejudice"
    """Name of a text that ships with the project; a text of your own gets any name and `local.corpus` its path."""
    sha256: HexDigest | None = None
    """Digest of the text's bytes, so that everyone trains on the same; `elastic init` fills it in."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    """"bytes": one token a byte. "bpe": byte-pair encoding trained on the text in-process, the same on every peer."""
    vocab_size: Annotated[int, Field(ge=256, le=2**20)] = 256
    """Size of the vocabulary; 256 for "bytes"."""
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Fraction at the end of the text that no contributor is ever assigned; prepared sources have their own."""
    sources: Annotated[tuple[SourceConfig, ...], Field(strict=False, max_length=1024, exclude_if=_unset)] = ()
    """Prepared tokens instead of a text: `elastic data prepare` makes them."""
    phases: Annotated[tuple[PhaseConfig, ...], Field(strict=False, max_length=1024, exclude_if=_unset)] = ()
    """Other weights from some round on."""
    block: Annotated[int, Field(ge=1, le=2**24, exclude_if=lambda block: block == 1)] = 1
    """Neighbouring sequences that are always dealt together. 1 mixes best; more let a peer fetch few shards of what \
lies elsewhere."""

    @model_validator(mode="after")
    def _bytes_have_256(self) -> "DataConfig":
        if self.tokenizer == "bytes" and self.vocab_size != 256:
            raise ValueError(
                'the "bytes" tokenizer has vocab_size = 256; remove vocab_size or choose tokenizer = "bpe"'
            )
        return self

    @model_validator(mode="after")
    def _sources_go_together(self) -> "DataConfig":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("sources: two of them have one name")
        if len({source.index for source in self.sources}) < len(names):
            raise ValueError("sources: two of them have one `index`: name these tokens once, with their whole weight")
        if names and self.sha256 is not None:
            raise ValueError("sha256 is of a text; with sources the digest of each is its `index`: remove it")
        if not any(source.weight for source in self.sources) and names:
            raise ValueError("sources: at least one needs a weight above 0")
        if self.phases and not names:
            raise ValueError("phases are of a mixture: it needs sources")
        for earlier, later in pairwise(self.phases):
            if later.from_round <= earlier.from_round:
                raise ValueError(f"phases: from_round = {later.from_round} does not follow {earlier.from_round}")
        for phase in self.phases:
            if unknown := sorted(set(phase.weights) - set(names)):
                raise ValueError(f'phases: no source is called "{unknown[0]}" (there are: {", ".join(names)})')
        return self

    def weights(self, round_: int) -> tuple[float, ...]:
        """Of each source in a round; one for a text."""
        now = [phase for phase in self.phases if phase.from_round <= round_]
        if now:
            return tuple(now[-1].weights.get(source.name, 0.0) for source in self.sources)
        return tuple(source.weight for source in self.sources) or (1.0,)
