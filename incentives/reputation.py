"""Reputation without tokens or a chain: who helped counts more, and who does damage is shut out.

Validators form opinions (`incentives.opinion`) from the cheap checks and from what they assessed, and tell them. What
counts is the lower median of what validators say: as long as fewer than half of them lie, it is never above what some
honest validator thinks, nor below, so liars move nobody's reputation further than honest opinions lie apart. Names are
free, so who was shut out can come back as a newcomer; what it cannot have again is a reputation, and all newcomers
share a part of the places that does not grow with their number. What a name costs: `incentives.entry`.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from statistics import median_high, median_low
from typing import Annotated

from pydantic import Field

from elastic.errors import StateError
from elastic.messages import (
    JSON,
    ContributionHeader,
    Evidence,
    Invitation,
    PeerId,
    PeerIdField,
    RoundIndex,
    Said,
    Scoreboard,
    SignedScoreboard,
)
from incentives.entry import Entry, EntryConfig
from incentives.opinion import SHUT_OUT, Fraction, Opinions
from incentives.uniform import capped_tokens, draw, normalised

Score = Annotated[float, Field(ge=-1, le=1)]

FRESH_ROUNDS = 16
"""What a validator said longer ago than this does not count: it is gone, or nobody hears it."""


class Reputation:
    """Shares by tokens × reputation; places for those with the most of it, and always some for newcomers."""

    class Config(EntryConfig):
        """[shared.incentive] name = "reputation"."""

        newcomers: Fraction = 0.25
        """At least this part of the places goes to peers still on trial, as long as there are such."""
        floor: Annotated[float, Field(gt=0, le=1)] = 0.25
        """A newcomer's share is this against floor + 1 for the best reputation of those who contribute, at equal \
tokens."""
        decides: Fraction = 0.5
        """With so much reputation a peer may become a validator, where the run has seats to fill."""
        carried: Annotated[dict[PeerIdField, Score], Field(max_length=1024)] = {}  # noqa: RUF012 (pydantic copies it)
        """Reputations of an earlier run, peer id = number, -1: shut out. `elastic incentives export` writes them."""
        cap: Annotated[float, Field(ge=1)] = 4.0
        """Nobody counts for more than this many times the median tokens: tokens are only claimed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._opinions = Opinions(config, proven_only=config.entry == "work")
        self._opinions.carry(config.carried)
        self._entry = Entry(config)
        self._heard: dict[PeerId, SignedScoreboard] = {}
        """Validator → what it said last."""
        self._two_faced: set[PeerId] = set()
        """Who told different peers different things: shut out, and never heard again."""
        self._out: set[PeerId] = set()
        """Whom the validators shut out, as of the last round."""

    def select(self, round_: RoundIndex, candidates: Sequence[PeerId], limit: int) -> Sequence[PeerId]:
        """The newcomers' places are drawn, anew every round; the others go by reputation. In PeerId order.

        Nobody who is shut out is among them, unless that leaves fewer than half of the candidates: then either
        most of the swarm is bad and lost anyway, or we are wrong.
        """
        allowed = self._entry.allowed(candidates, lambda peers: self._standing(round_, list(peers)))
        drawn = sorted(allowed, key=lambda peer: draw(round_, peer))
        standing = self._standing(round_, drawn)
        trusted = sorted((peer for peer in drawn), key=lambda peer: standing[peer] == SHUT_OUT)
        inside = sum(standing[peer] != SHUT_OUT for peer in drawn)
        drawn = trusted[: max(inside, ceil(len(drawn) / 2))]
        trials = [peer for peer in drawn if self._opinions.on_trial(peer)]
        chosen = trials[: ceil(self._config.newcomers * limit)]
        rest = sorted((peer for peer in drawn if peer not in set(chosen)), key=lambda peer: -standing[peer])
        return sorted((chosen + rest)[:limit])

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        tokens = capped_tokens(accepted, self._config.cap)
        if not tokens:
            return {}
        known = {peer: max(0.0, each) for peer, each in self._standing(accepted[0].round, list(tokens)).items()}
        least = self._config.floor * (max(known.values()) or 1.0)
        worth = {peer: (least + each) * self._entry.part(each) for peer, each in known.items()}
        return normalised({peer: tokens[peer] * worth[peer] for peer in tokens})

    def trust(self, round_: RoundIndex, peers: Sequence[PeerId]) -> Mapping[PeerId, float]:
        """Reputation, of those who have enough of it to decide; who is shut out decides nothing either."""
        standing = self._standing(round_, peers)
        standing |= dict.fromkeys(self._two_faced & standing.keys(), SHUT_OUT)
        return {peer: each if each < 0 or each >= self._config.decides else 0.0 for peer, each in standing.items()}

    def score(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        """Take in a round's evidence. The scores are our own opinions, -1 for who is shut out."""
        before = self._opinions.shut_out(RoundIndex(round_ + 1))
        self._opinions.take_in(round_, evidence)
        out = self._told_out(round_) | self._two_faced
        # Who becomes a validator later has not measured whom the others shut out, and shall not let them in again.
        self._opinions.shut(round_, out - self._out)
        self._out = out
        for peer in sorted(self._opinions.shut_out(RoundIndex(round_ + 1)) - before):
            for inviter in sorted(self._entry.inviters(peer)):
                self._opinions.charge(inviter, self._config.vouched)
        return Scoreboard(round=round_, scores=self._opinions.all(round_))

    def hear(self, said: Sequence[Said]) -> None:
        self._entry.hear([each for each in said if isinstance(each, Invitation)], self._opinions.knows)
        boards = [each for each in said if isinstance(each, SignedScoreboard)]
        words = {(each.peer, each.round): each.body() for each in boards}
        self._two_faced |= {each.peer for each in boards if each.body() != words[each.peer, each.round]}
        for each in boards:
            known = self._heard.get(each.peer)
            if known is None or known.round < each.round:
                self._heard[each.peer] = each

    async def settle(self, board: Scoreboard) -> None:
        """Nothing to write anywhere: validators tell each other by themselves."""

    def state(self) -> JSON:
        heard = [each.model_dump(mode="json") for _, each in sorted(self._heard.items())]
        return {
            "peers": self._opinions.state(), "heard": heard, "invited": self._entry.state(),
            "two_faced": sorted(self._two_faced), "out": sorted(self._out),
        }  # fmt: skip

    def restore(self, state: JSON) -> None:
        """Take back what `state` returned.

        Raises:
            StateError: something else.
        """
        try:
            heard = [SignedScoreboard.model_validate(each) for each in state["heard"]]
            two_faced, out = ({PeerId(str(each)) for each in state[key]} for key in ("two_faced", "out"))
            self._opinions.restore(state["peers"])
            self._entry.restore(state["invited"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StateError(f"not a state of the reputation incentive: {error!r}") from error
        self._heard, self._two_faced, self._out = {}, two_faced, out
        self.hear(heard)

    def _voices(self, round_: RoundIndex) -> list[Mapping[PeerId, float]]:
        heard = [each for each in self._heard.values() if each.peer not in self._two_faced]
        return [each.scores for each in heard if each.round > round_ - FRESH_ROUNDS]

    def _told_out(self, round_: RoundIndex) -> set[PeerId]:
        told = {peer for voice in self._voices(round_) for peer in voice}
        return {peer for peer, score in self._standing(round_, sorted(told)).items() if score == SHUT_OUT}

    def _standing(self, round_: RoundIndex, peers: Sequence[PeerId]) -> dict[PeerId, float]:
        """Peer → what the validators think of it; what we think, if none has said anything of late."""
        voices = self._voices(round_)
        if not voices:
            return {peer: self._opinions.of(round_, peer) for peer in peers}
        return {peer: _agreed([each.get(peer, 0.0) for each in voices]) for peer in peers}


def _agreed(scores: Sequence[float]) -> float:
    """What validators agree on: the lower median; more than half of them shut out, never one and a liar of four."""
    return SHUT_OUT if median_high(scores) < 0 else min(max(median_low(scores), 0.0), 1.0)
