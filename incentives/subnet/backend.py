"""The incentive of a run that is a Bittensor subnet. It knows no chain: a settler tells it who is bound.

Stake buys nothing here: who is bound to a registered hotkey may contribute, and shares go by tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Annotated, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from elastic.errors import MalformedError, StateError
from elastic.messages import JSON, ContributionHeader, Evidence, PeerId, RoundIndex, Scoreboard
from incentives.subnet.news import News
from incentives.uniform import capped_tokens, draw, normalised

Fraction = Annotated[float, Field(ge=0, le=1)]
Uid = Annotated[int, Field(ge=0, le=65535)]


class Settles(Protocol):
    """Takes boards to the chain; `settler.Settler`, or a handle to the actor that it runs in."""

    async def settle(self, board: Scoreboard) -> None:
        """Returns at once."""
        ...


@dataclass(frozen=True)
class Standing:
    """What is remembered of one peer."""

    score: float
    """As of `last`."""
    last: int
    """The last round with evidence."""


class Subnet:
    """Contributors are peers bound to registered hotkeys; scores become weights on the chain."""

    class Config(BaseModel):
        """[shared.incentive] name = "subnet"."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

        netuid: Uid
        """The subnet's number on its chain."""
        burn: Fraction = 0.0
        """Part of the weights that goes to `burn_uid`."""
        burn_uid: Uid | None = None
        """A uid of the subnet's owner: what it earns is burnt by the chain. It gets everything while nobody scores."""
        version_key: Annotated[int, Field(ge=0, lt=2**63)] = 0
        """Sent with the weights; raise it together with the subnet's WeightsVersionKey."""
        binding_blocks: Annotated[int, Field(ge=100, le=2**32)] = 216_000
        """A binding of a peer to a hotkey lasts at most so many blocks (30 days); it is renewed half way."""
        memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
        """A round's work counts this much less in the score with each round that passes."""
        forget_rounds: Annotated[int, Field(ge=1)] = 1000
        """A peer not seen for so many rounds is forgotten; bounds the memory that strangers can fill."""
        cap: Annotated[float, Field(ge=1)] = 4.0
        """Nobody counts for more than this many times the median tokens: tokens are only claimed."""

        @model_validator(mode="after")
        def _burns_somewhere(self) -> Self:
            if self.burn > 0 and self.burn_uid is None:
                raise ValueError("burn needs a burn_uid, a uid that belongs to the subnet's owner")
            return self

    class Local(BaseModel):
        """This machine's way to the chain: a validator's, or of a contributor that binds itself."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

        endpoint: Annotated[str, Field(pattern=r"^wss?://[^\s@]+$", max_length=256)]
        """A WebSocket address of a node, "wss://…": the only one that is asked."""
        wallet_path: Path = Path("~/.bittensor/wallets")
        """Where `btcli` keeps wallets. Of the wallet only the hotkey's file is read, never the coldkey's."""
        wallet: str = "default"
        """The wallet's name."""
        hotkey: str = "default"
        """The hotkey's name in it."""
        publish: bool = True
        """False: only bind this peer to its hotkey, for a contributor that is no validator of the subnet."""
        poll_seconds: Annotated[float, Field(gt=0)] = 6.0
        """Between two looks at the chain; half a block time of the public chains."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._standings: dict[PeerId, Standing] = {}
        self._news = News()
        self._settler: Settles | None = None

    @property
    def news(self) -> News:
        """What was heard last."""
        return self._news

    def attach(self, settler: Settles) -> None:
        """From now on boards go there."""
        self._settler = settler

    def hear(self, news: JSON) -> None:
        """Take in what a settler tells; news from before the first look at the chain change nothing.

        Raises:
            StateError: it is no news of ours.
        """
        try:
            heard = News.from_json(news)
        except MalformedError as error:
            raise StateError(f"not news of the subnet's settler: {error}") from error
        if heard.block is not None:
            self._news = heard

    def select(self, round_: RoundIndex, candidates: Sequence[PeerId], limit: int) -> Sequence[PeerId]:
        """Peers that are bound; if there are too many, a draw that differs every round. In PeerId order.

        As long as nobody is known to be bound, because the chain was not read yet or the subnet is new, everyone may
        contribute: no chain stalls training. If the chain falls silent, those bound before stay.
        """
        bound = self._news.roster or candidates
        drawn = sorted({peer for peer in candidates if peer in bound}, key=lambda peer: draw(round_, peer))
        return sorted(drawn[:limit])

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        return normalised(capped_tokens(accepted, self._config.cap))

    def score(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        """Accepted work of the last rounds, by tokens, the median peer's round being 1; a round is taken in once."""
        accepted = {each.verdict.peer: max(each.tokens, 1) for each in evidence if each.verdict.accepted}
        usual = median(accepted.values()) if accepted else 1
        for peer in sorted({each.verdict.peer for each in evidence}):
            standing = self._standings.get(peer, Standing(0.0, -1))
            if standing.last < round_:
                work = min(accepted.get(peer, 0) / usual, self._config.cap)
                score = self._at(round_, peer) + (1 - self._config.memory) * work
                self._standings[peer] = Standing(score, round_)
        oldest = round_ - self._config.forget_rounds
        self._standings = {peer: each for peer, each in self._standings.items() if each.last > oldest}
        return Scoreboard(round=round_, scores={peer: self._now(round_, peer) for peer in sorted(self._standings)})

    async def settle(self, board: Scoreboard) -> None:
        """Hand the board to the settler, if this machine has one; it becomes weights when they are due."""
        if self._settler is not None:
            await self._settler.settle(board)

    def state(self) -> JSON:
        standings = {peer: asdict(each) for peer, each in sorted(self._standings.items())}
        return {"standings": standings, "news": self._news.to_json()}

    def restore(self, state: JSON) -> None:
        """Take back what `state` returned; a score that is not a finite number counts as none.

        Raises:
            StateError: something else.
        """
        try:
            standings = {PeerId(str(peer)): _standing(fields) for peer, fields in state["standings"].items()}
            news = News.from_json(state["news"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MalformedError) as error:
            raise StateError(f"not a state of the subnet incentive: {error!r}") from error
        self._standings, self._news = standings, news

    def _at(self, round_: RoundIndex, peer: PeerId) -> float:
        """A score as it enters a round, faded by that round and those without evidence before it."""
        standing = self._standings.get(peer)
        return standing.score * self._config.memory ** max(0, round_ - standing.last) if standing else 0.0

    def _now(self, round_: RoundIndex, peer: PeerId) -> float:
        return self._at(round_, peer) if self._standings[peer].last < round_ else self._standings[peer].score


def _standing(fields: JSON) -> Standing:
    score = float(fields["score"])
    return Standing(score=max(score, 0.0) if isfinite(score) else 0.0, last=int(fields["last"]))
