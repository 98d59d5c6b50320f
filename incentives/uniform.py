"""Everyone counts alike, by the work they say they did: for swarms of people who know each other."""

from collections.abc import Mapping, Sequence
from math import fsum
from statistics import median
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from elastic.messages import (
    JSON,
    ContributionHeader,
    Evidence,
    PeerId,
    RoundIndex,
    Said,
    Scoreboard,
    digest_of,
)


class Uniform:
    """Shares by tokens, or equal ones. Keeps no memory: its scores are the verdicts of the last round."""

    class Config(BaseModel):
        """[shared.incentive] name = "uniform"."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

        by: Literal["peer", "tokens"] = "tokens"
        """"tokens": shares follow the tokens trained on. "peer": everyone's share is the same."""
        cap: Annotated[float, Field(ge=1)] = 4.0
        """Nobody counts for more than this many times the median tokens: tokens are only claimed."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def select(self, round_: RoundIndex, candidates: Sequence[PeerId], limit: int) -> Sequence[PeerId]:
        """All of them; if there are too many, a draw that differs every round. In PeerId order."""
        drawn = sorted(set(candidates), key=lambda peer: draw(round_, peer))
        return sorted(drawn[:limit])

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        if self._config.by == "peer":
            return normalised({header.peer: 1.0 for header in accepted})
        return normalised(capped_tokens(accepted, self._config.cap))

    def trust(self, round_: RoundIndex, peers: Sequence[PeerId]) -> Mapping[PeerId, float]:
        """Nobody is known to be better than others: the validators stay those of the run file."""
        return dict.fromkeys(peers, 0.0)

    def score(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        """1 for those whose contribution was accepted, 0 for the others."""
        scores = {each.verdict.peer: float(each.verdict.accepted) for each in evidence}
        return Scoreboard(round=round_, scores=scores)

    def hear(self, said: Sequence[Said]) -> None:
        """Others' opinions do not count here."""

    async def settle(self, board: Scoreboard) -> None:
        """Nothing to write anywhere."""

    def state(self) -> JSON:
        return {}

    def restore(self, state: JSON) -> None:
        """Nothing to remember."""


def capped_tokens(accepted: Sequence[ContributionHeader], cap: float) -> dict[PeerId, float]:
    """Peer → tokens, nobody's more than `cap` × the median; at least 1, so that every share is positive."""
    if not accepted:
        return {}
    tokens = {header.peer: float(max(header.tokens, 1)) for header in accepted}
    bound = cap * median(tokens.values())
    return {peer: min(amount, bound) for peer, amount in tokens.items()}


def normalised(amounts: Mapping[PeerId, float]) -> dict[PeerId, float]:
    """Peer → positive part of 1, in PeerId order; the same whatever order the amounts come in."""
    total = fsum(amounts.values())
    return {peer: amounts[peer] / total for peer in sorted(amounts)}


def draw(round_: RoundIndex, peer: PeerId) -> str:
    """A key to sort peers by that is new every round, so that no choice of PeerId is always lucky."""
    return digest_of(f"{round_}:{peer}".encode())
