"""The seams of the framework. Nothing here does work.

A Protocol exists only where two real implementations do (a shipped double counts once); everything else is a function.
Tensors are typed loosely so that importing this file does not import torch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from elastic.messages import (
    JSON,
    Assessment,
    ContributionHeader,
    Digest,
    Evidence,
    InnerReport,
    Manifest,
    PeerCard,
    PeerId,
    RoundIndex,
    RoundPlan,
    Said,
    Scoreboard,
    Seconds,
    Terms,
    View,
)
from elastic.reports import Carried, StateMeta, TrainerState

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]
    """Parameter name → tensor, any shape, fp32 unless said otherwise."""
    Payload = Any
    """What one reducer's `compress` makes, and only that reducer understands."""


class Clock(Protocol):
    """Time as an argument: `WallClock` outside, `ManualClock` in tests and simulation."""

    def now(self) -> Seconds:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...

    async def sleep(self, seconds: Seconds) -> None: ...


class Trainer(Protocol):
    """Inner steps, compression and outer step of one peer: `train.session`, behind Ray Train or in this process."""

    async def state(self) -> TrainerState: ...

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        """Train from the anchor on the tokens assigned by the plan."""
        ...

    async def compress(self, plan: RoundPlan, inner: InnerReport) -> bytes:
        """Pseudo-gradient plus residual → payload bytes; both are on disk when this returns."""
        ...

    async def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        """Apply a final manifest; returns the digest of the new anchor, which is on disk by then.

        Our pending contribution of that round leaves the residual if counted, and goes back into it if not.
        """
        ...

    async def load(self, state: bytes, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        """Take an anchor fetched from others (its digest was checked by the caller).

        `settled` is the manifest of our pending contribution's round, if it is known.
        """
        ...

    async def assess(
        self, plan: RoundPlan, header: ContributionHeader, payload: bytes, seed: int, beside: bytes | None = None
    ) -> Assessment:
        """What one contribution alone would do to the loss of the plan's anchor, on tokens that `seed` draws.

        `beside` is another payload of the round: who is louder is clipped to it, as the outer step clips.

        Called between `compress` and the outer step only: it needs the place where the model's params are.
        """
        ...

    async def evaluate(self, max_sequences: int) -> float:
        """Mean held-out loss of the anchor, in nats per token."""
        ...

    async def generate(self, prompt: str, num_tokens: int) -> str:
        """Text continued by the anchor's model."""
        ...

    async def close(self) -> None: ...


class Reducer(Protocol):
    """Makes a pseudo-gradient small: `sparseloco`, `average`. Stateless: the residual goes in and comes out."""

    def compress(
        self, pseudo_gradient: Tensors, residual: Tensors, *, inplace: bool = False
    ) -> tuple[Payload, dict[str, Tensor]]:
        """Decay the residual, add Δ, select and quantise. Returns the payload and what it leaves behind.

        With `inplace` that may be written over the residual, which is then spoilt if this raises.

        Raises:
            DivergedError: not everything is finite.
        """
        ...

    def decompress(self, payload: Payload, like: Tensors) -> dict[str, Tensor]:
        """What the payload stands for, dense fp32."""
        ...

    def aggregate(
        self, parts: Sequence[tuple[Payload, float]], like: Tensors, *, out: Tensors | None = None
    ) -> dict[str, Tensor]:
        """(payload, share) in PeerId order → one dense fp32 update, bit for bit the same on every peer.

        `like` may name some of the tensors only. With `out`, tensors of the same shapes, it may be written there.
        """
        ...

    def encode(self, payload: Payload) -> bytes: ...

    def decode(self, data: bytes, like: Tensors) -> Payload:
        """Strict inverse of `encode`; `like` may hold meta tensors.

        Raises:
            MalformedError: any deviation; nothing larger than the model is allocated before it is found.
        """
        ...

    def glance(self, payload: Payload, name: str) -> tuple[Any, float]:
        """What a payload says of one tensor, as far as it takes to compare it with others.

        Returns:
            Which elements it speaks of, numpy int64, increasing, in any order of the elements that is the same for all
            payloads of the run (empty: of all of them); and the squared norm of what it says.
        """
        ...

    def max_bytes(self, like: Tensors) -> int:
        """No honest payload is larger; a download above it is refused before it starts."""
        ...

    @property
    def averages(self) -> bool:
        """True if payloads are averaged among the peers before they are committed (swarms that trust each other).

        Such a reducer is an `AveragingReducer`.
        """
        ...


class AveragingReducer(Reducer, Protocol):
    """A reducer whose payloads are dense numbers that the exchange can average."""

    def arrays(self, data: bytes, like: Tensors) -> dict[str, Any]:
        """A payload's bytes as name → fp32 numpy array, to be averaged."""
        ...

    def from_arrays(self, arrays: Mapping[str, Any]) -> bytes:
        """The payload's bytes of an average; `from_arrays(arrays(data, like)) == data`."""
        ...


class Exchange(Protocol):
    """How records and bytes travel between peers: Hivemind outside, memory in tests. One bad peer never raises here.

    Records are small (≤ 16 KiB), keyed by (kind, round), one per peer, and proven to come from that peer. Blobs are
    content-addressed by the digest of `wire.tree`, against which every part of them can be checked.
    """

    async def announce(self, card: PeerCard) -> None:
        """Make or renew our card; it lasts `card_seconds` (config)."""

    async def cards(self) -> Sequence[PeerCard]:
        """Live cards of this run, ours included; unreadable ones are left out, and some if there are very many."""
        ...

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        """Publish our record of that kind for that round."""

    async def records(self, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
        """Everyone's records of that kind for that round, ours included; some are left out if there are very many."""
        ...

    async def heed(self, peers: Sequence[PeerId]) -> None:
        """From now on cards and records of these peers (128 at most, those named last) come before everyone else's.

        Theirs are always kept for others and returned. Of strangers, who may be very many, only some are.
        """
        ...

    async def provide(self, blob: bytes) -> Digest:
        """Serve these bytes to whoever asks for their digest."""

    async def provide_file(self, digest: Digest, path: str) -> None:
        """Serve a file whose bytes have this digest, from disk."""
        ...

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        """Get a blob from the holders, each chunk from whoever has it; ours is returned at once if we hold it.

        The first holder, who made it as a rule, is spared. What comes is served while it comes, and kept if the fetch
        fails, so that the next try goes on from there.

        Raises:
            FetchError: nobody gave it; the message says what each holder did.
        """
        ...

    async def average(self, key: str, tensors: Mapping[str, Any], num_peers: int, timeout: Seconds) -> dict[str, Any]:
        """All-reduce: the mean over the peers that call with the same key, as name → fp32 numpy array.

        Raises:
            AveragingError: no group, a peer lost in the middle, or not everyone took part.
        """

    async def traffic(self) -> tuple[int, int]:
        """(bytes out, bytes in) of blobs, records and averaging since the start."""

    async def partners(self) -> Mapping[PeerId, tuple[int, int]]:
        """(bytes out, bytes in) of parts of blobs by the peer at the other end; of some if there are very many."""

    async def served(self) -> Sequence[Carried]:
        """What each peer took of our blobs since the last call, most first; for traces, nothing depends on it."""

    async def close(self) -> None: ...


Drafts = Callable[[View], Awaitable[Manifest]]
"""What a validator proposes when its turn comes in that view, unsigned."""
Accepts = Callable[[Manifest], Awaitable[bool]]
"""Whether a validator would sign another's manifest, which is sound by itself."""


@dataclass(frozen=True, slots=True)
class Times:
    """How long validators wait for each other; instants of the peer's clock."""

    proposer: Seconds
    """Until when the first proposer is waited for."""
    patience: Seconds
    """Seconds that the second one gets; each further one gets twice as many as the one before."""
    give_up: Seconds
    """When to return without a manifest."""


class Agreement(Protocol):
    """Everyone counts the same contributions: a quorum of validators says so, from one validator up."""

    def terms(self, round_: RoundIndex) -> Terms:
        """Who decides that round, and what scores mean in it, as far as we know: see `amendments`."""
        ...

    def amendments(self) -> Sequence[Manifest]:
        """Every manifest that changed the terms, as far as we know, in order; to be kept over restarts."""
        ...

    async def decide(self, round_: RoundIndex, drafts: Drafts, accepts: Accepts, times: Times) -> Manifest | None:
        """As a validator: agree with the others on a round; the final manifest, or None if there is none yet.

        Args:
            round_: called again for the same one it goes on where it stopped.
            drafts: makes our own manifest, once; one that we proposed before a restart stands.
            accepts: whether we would sign another's; may take its time.
            times: how long who is waited for.
        """
        ...

    async def decided(self, round_: RoundIndex) -> Manifest | None:
        """The final manifest of that round if it is known yet, checked."""
        ...

    async def head(self) -> Manifest | None:
        """The newest final manifest the swarm knows of."""
        ...

    async def repeat(self, manifest: Manifest) -> None:
        """Tell the swarm of a final manifest that it may have forgotten."""
        ...


class StateStore(Protocol):
    """Files of one trainer: a directory outside, a temporary one in tests. One process commits."""

    def load(self) -> StateMeta | None:
        """The newest state whose files are there; None at the first start."""
        ...

    def candidates(self) -> Sequence[StateMeta]:
        """What `load` gives, and behind it what was known to be on the disk: a power failure may garble the first."""
        ...

    def restore(self, meta: StateMeta) -> None:
        """Take one of the candidates for the state."""
        ...

    def read_file(self, name: str) -> bytes: ...

    def write_file(self, name: str, data: bytes) -> str:
        """Write under a new name; counts for nothing until `commit`. Returns the path."""
        ...

    def create(self, name: str, size: int) -> str:
        """A temporary of that size for several processes to write into. Returns its path."""
        ...

    def adopt(self, temporary: str, name: str) -> str:
        """Give it its name, now that all have written; counts for nothing until `commit`. Returns the path."""
        ...

    def discard(self, temporary: str) -> None:
        """Remove a temporary that is not adopted."""
        ...

    def commit(self, meta: StateMeta) -> None:
        """Make these files the state, in one step: SIGKILL loses nothing from here on, and a power failure no more than
        a round. Drop files that are no longer needed."""
        ...

    def flush(self) -> None:
        """Wait until what was committed outlives a power failure, too."""
        ...

    def path_of(self, name: str) -> str: ...


class Incentive(Protocol):
    """What scores mean: who may contribute, whose work counts how much, what is written where."""

    def select(self, round_: RoundIndex, candidates: Sequence[PeerId], limit: int) -> Sequence[PeerId]:
        """Who may contribute in that round."""
        ...

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        """Each accepted contribution's part of the outer step; they sum to 1. Nobody's share may be 0: leave it out."""
        ...

    def trust(self, round_: RoundIndex, peers: Sequence[PeerId]) -> Mapping[PeerId, float]:
        """How far each may be trusted to decide: only above 0 may it become a validator, below 0 it may not stay one.

        Who is left out has 0. Validators should come to nearly the same, or they will not agree on whom to choose.
        """
        ...

    def score(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        """Turn a round's evidence into scores. Pure but for the backend's own memory."""
        ...

    def hear(self, said: Sequence[Said]) -> None:
        """What validators of the run, ourselves included, said of everyone's scores, two of one on one round if it told
        others something else; and invitations that their bearers showed. Signatures were checked."""
        ...

    async def settle(self, board: Scoreboard) -> None:
        """The only I/O: what leaves the swarm, as weights on a chain. Returns at once."""
        ...

    def state(self) -> JSON | None:
        """Everything that must survive a restart, as JSON. None: nothing is known, and what was saved stays."""
        ...

    def restore(self, state: JSON) -> None: ...


class Settler(Protocol):
    """What an incentive has to do outside of the swarm, on a chain for instance; it runs in an actor of its own.

    An incentive that needs one also has a nested pydantic class `Local`, the settings of this machine
    (`[local.incentive]`, without which there is no settler), and a class method that makes one:
    `settler(config, local, state_dir, *, run, identity)`.
    """

    async def settle(self, board: Scoreboard) -> None:
        """Take a board in place of the last one; returns at once."""
        ...

    async def news(self) -> JSON:
        """What the incentive should know; returns at once. What metrics make of it: `elastic.actors.measuring`."""

    async def close(self) -> None:
        """Stop, also in the middle of something; what is on its way stays written down."""


class SettledIncentive(Incentive, Protocol):
    """An incentive with a settler."""

    def attach(self, settler: Any) -> None:
        """From now on boards go there."""

    def learn(self, news: JSON) -> None:
        """Take in what the settler tells; StateError: it is none of its news."""
