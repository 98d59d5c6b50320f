"""An incentive whose faults cost fairness and not the run.

Those who decide may agree on one that fails: it raises, or answers what no incentive may. They could not agree on a
better one either if it ended them. So everyone counts alike wherever it has no answer.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from math import fsum, isfinite
from typing import TypeVar

from elastic.contracts import Incentive
from elastic.errors import StateError
from elastic.messages import GENESIS, JSON, ContributionHeader, Evidence, PeerId, RoundIndex, Said, Scoreboard

logger = logging.getLogger(__name__)

T = TypeVar("T")

OFF_ONE = 1e-6
"""Shares sum to 1 within this."""


class Guarded:
    """Answers as the incentive within, or as `neutral` does where that one fails; says so once for each fault."""

    def __init__(self, name: str, within: Incentive, neutral: Incentive) -> None:
        self._name, self.within, self._neutral = name, within, neutral
        self._told: set[tuple[str, str]] = set()
        self.round = GENESIS
        """The last one that was scored."""

    def select(self, round_: RoundIndex, candidates: Sequence[PeerId], limit: int) -> Sequence[PeerId]:
        def ask() -> Sequence[PeerId]:
            chosen = list(self.within.select(round_, candidates, limit))
            if len(set(chosen)) < len(chosen) or len(chosen) > limit or not set(chosen) <= set(candidates):
                raise ValueError(f"not at most {limit} of the candidates, each once")
            return chosen

        return self._ask("select", ask, lambda: self._neutral.select(round_, candidates, limit))

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        def ask() -> Mapping[PeerId, float]:
            shares = {peer: float(share) for peer, share in self.within.shares(accepted).items()}
            strangers = shares.keys() - {header.peer for header in accepted}
            if strangers or not all(0 <= share <= 1 for share in shares.values()):
                raise ValueError("not parts of 1 for those who were accepted")
            if accepted and abs(fsum(shares.values()) - 1) > OFF_ONE:
                raise ValueError(f"the shares sum to {fsum(shares.values())}")
            return shares

        return self._ask("shares", ask, lambda: self._neutral.shares(accepted))

    def trust(self, round_: RoundIndex, peers: Sequence[PeerId]) -> Mapping[PeerId, float]:
        def ask() -> Mapping[PeerId, float]:
            trust = {peer: float(each) for peer, each in self.within.trust(round_, peers).items()}
            if not all(map(isfinite, trust.values())):
                raise ValueError("trust that is no number")
            return trust

        return self._ask("trust", ask, lambda: self._neutral.trust(round_, peers))

    def score(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        def ask() -> Scoreboard:
            board = self.within.score(round_, evidence)
            if not isinstance(board, Scoreboard) or board.round != round_:
                raise ValueError(f"no scoreboard of round {round_}")
            return board

        self.round = max(self.round, round_)
        return self._ask("score", ask, lambda: Scoreboard(round=round_, scores={}))

    def hear(self, said: Sequence[Said]) -> None:
        self._ask("hear", lambda: self.within.hear(said), lambda: None)

    async def settle(self, board: Scoreboard) -> None:
        try:
            await self.within.settle(board)
        except Exception as error:  # noqa: BLE001 - whatever others' code raises
            self._tell("settle", error)

    def state(self) -> JSON | None:
        """Its memory, and of which round it is; None if it has no answer: what was saved before stays."""

        def ask() -> JSON | None:
            memory = self.within.state()
            return None if memory is None else {"round": self.round, "memory": memory}

        return self._ask("state", ask, lambda: None)

    def restore(self, state: JSON) -> None:
        """Take back what `state` returned.

        Raises:
            StateError: it cannot.
        """
        try:
            round_ = RoundIndex(int(state["round"]))
            self.within.restore(state["memory"])
            self.round = round_
        except StateError:
            raise
        except Exception as error:
            raise StateError(f"the incentive {self._name} does not take its memory back: {error!r}") from error

    def _ask(self, what: str, ask: Callable[[], T], otherwise: Callable[[], T]) -> T:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 - whatever others' code raises
            self._tell(what, error)
            return otherwise()

    def _tell(self, what: str, error: Exception) -> None:
        if (what, fault := type(error).__name__) not in self._told:
            self._told.add((what, fault))
            logger.error(
                "the incentive %s fails at %s, and everyone counts alike there until the run agrees on another: %s",
                self._name, what, error, exc_info=error,
            )  # fmt: skip
