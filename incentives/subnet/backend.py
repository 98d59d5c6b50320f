"""The incentive of a run that is a Bittensor subnet. It knows no chain: a settler tells it who is bound.

Inside the swarm it is `reputation` among those who are bound to a registered hotkey; stake buys nothing there. What it
adds is what leaves the swarm: weights on the chain.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from elastic.contracts import Settler
from elastic.errors import MalformedError, StateError
from elastic.messages import JSON, ContributionHeader, Evidence, PeerId, RoundIndex, Said, Scoreboard
from elastic.wire.signing import Identity
from incentives.opinion import SHUT_OUT
from incentives.reputation import Reputation
from incentives.subnet.news import News
from incentives.subnet.vector import vector

Fraction = Annotated[float, Field(ge=0, le=1)]
Uid = Annotated[int, Field(ge=0, le=65535)]


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
        seats: Literal["reputation", "stake"] = "reputation"
        """Who may become a validator of the run, where it has seats to fill: those who earned it, or those with a
        validator permit of the subnet, by stake. Validators without `[local.incentive]` know no stakes: they wish for
        nobody."""
        reputation: Reputation.Config = Reputation.Config()
        """Who is shut out, and whose work counts how much in the model; settings as of the incentive "reputation"."""

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
        self._reputation = Reputation(config.reputation)
        self._ratings: dict[PeerId, float] = {}
        """Peer → what its assessments amount to."""
        self._news = News()
        self._settler: Settler | None = None

    @classmethod
    def settler(cls, config: Config, local: Local, state_dir: Path, *, run: str, identity: Identity) -> Settler:
        """What takes scores to the chain from this machine.

        Raises:
            KeyFileError, LockedError, StateError: see `settler.Settler`.
        """
        from incentives.subnet.settler import Settler as OfSubnet  # the SDK, which nobody else needs

        return OfSubnet(config, local, state_dir, run=run, identity=identity)

    @property
    def news(self) -> News:
        """What was heard last."""
        return self._news

    def attach(self, settler: Any) -> None:
        """From now on boards go there."""
        self._settler = settler

    def learn(self, news: JSON) -> None:
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
        """Of the peers that are bound those that reputation would choose.

        As long as nobody is known to be bound, because the chain was not read yet or the subnet is new, everyone may
        contribute: no chain stalls training. If the chain falls silent, those bound before stay.
        """
        bound = self._news.roster or candidates
        return self._reputation.select(round_, [peer for peer in candidates if peer in bound], limit)

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        return self._reputation.shares(accepted)

    def trust(self, round_: RoundIndex, peers: Sequence[PeerId]) -> Mapping[PeerId, float]:
        """As reputation has it, of those who are bound; or by stake, of those whom the chain permits to validate."""
        roster, trusted = self._news.roster, self._reputation.trust(round_, peers)
        if self._config.seats == "reputation" or not roster:
            return {peer: each if peer in (roster or peers) or each < 0 else 0.0 for peer, each in trusted.items()}
        most = max(member.stake for member in roster.values()) or 1
        permitted = {peer: member for peer, member in roster.items() if member.validator_permit}
        by_stake = {peer: 0.5 + permitted[peer].stake / most / 2 if peer in permitted else SHUT_OUT for peer in peers}
        return {peer: min(by_stake[peer], SHUT_OUT if trusted[peer] < 0 else 1.0) for peer in peers}

    def score(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        """Take in a round's evidence. The scores are opinions, as reputation's are; weights follow ratings too."""
        board = self._reputation.score(round_, evidence)
        for each in evidence:
            if each.score is not None:
                self._ratings[each.verdict.peer] = each.score
        self._ratings = {peer: rating for peer, rating in self._ratings.items() if peer in board.scores}
        return board

    def hear(self, said: Sequence[Said]) -> None:
        self._reputation.hear(said)

    async def settle(self, board: Scoreboard) -> None:
        """Hand the weights to the settler, if this machine has one; it sends them when they are due."""
        if self._settler is not None:
            await self._settler.settle(self.weights(board))

    def weights(self, board: Scoreboard) -> Scoreboard:
        """What each peer should earn: opinion times rating, or the opinion alone where nobody was ever assessed."""
        rated = any(self._ratings.values())
        earned = {
            peer: max(0.0, opinion) * (self._ratings.get(peer, 0.0) if rated else 1.0)
            for peer, opinion in board.scores.items()
        }
        return Scoreboard(round=board.round, scores=earned)

    def payout(self, board: Scoreboard, payer: PeerId) -> Mapping[PeerId, float]:
        """Peer → weight on the chain, as `payer` would set them were every peer bound; what is left to 1 is burnt."""
        earned, burn_uid = self.weights(board).scores, self._config.burn_uid
        free = 0 if burn_uid is None else burn_uid + 1
        uids = {str(peer): uid for uid, peer in enumerate(sorted(earned), start=free)}
        scores = {str(peer): each for peer, each in earned.items()}
        made = vector(scores, uids, own=payer, burn=self._config.burn, burn_uid=burn_uid).weights
        return {peer: made[uids[peer]] for peer in sorted(earned) if uids[peer] in made}

    def state(self) -> JSON:
        ratings = dict(sorted(self._ratings.items()))
        return {"reputation": self._reputation.state(), "ratings": ratings, "news": self._news.to_json()}

    def restore(self, state: JSON) -> None:
        """Take back what `state` returned.

        Raises:
            StateError: something else.
        """
        try:
            ratings = {PeerId(peer): _rating(rating) for peer, rating in state["ratings"].items()}
            news = News.from_json(state["news"])
            self._reputation.restore(state["reputation"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MalformedError) as error:
            raise StateError(f"not a state of the subnet incentive: {error!r}") from error
        self._ratings, self._news = ratings, news


def _rating(saved: Any) -> float:
    number = float(saved)
    return max(number, 0.0) if isfinite(number) else 0.0
