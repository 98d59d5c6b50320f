"""Messages: frozen values that cross an actor, the DHT or a disk. No tensors in them, ever.

Every message has one canonical form (sorted JSON, see `canonical`); its SHA-256 is its digest, and signatures are made
over that form. `extra="forbid"` and `strict=True`: a stranger's record either is exactly this, or it is refused.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NewType, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elastic.errors import MalformedError

PeerId = NewType("PeerId", str)
"""A libp2p peer id of an Ed25519 key, base58: `12D3Koo…`. It contains the public key."""
RoundIndex = NewType("RoundIndex", int)
"""Rounds count from 1; manifest 0 is the genesis, which names the first anchor and counts nobody."""
Digest = NewType("Digest", str)
"""SHA-256 as 64 lower-case hex characters."""
Seconds = NewType("Seconds", float)
View = NewType("View", int)
"""Views of a round's agreement count from 0; see `agreement.simplex`."""

PROTOCOL_VERSION = 6
"""Raised when peers of two versions can no longer understand each other's records."""
GENESIS = RoundIndex(0)
"""The round of the manifest that starts a run."""
NO_DIGEST = Digest("0" * 64)
"""What the genesis manifest names as its predecessor."""
PACE_ROUNDS = 8
"""Rounds that the deadlines look back on."""
MAX_SCORES = 128
"""So many fit into one record."""
MAX_VALIDATORS = 16
"""So many signatures fit into one record beside a manifest."""
MAX_INCENTIVE = 1024
"""Letters of the name and settings of a new incentive, which must fit in there too."""

HexDigest = Annotated[Digest, Field(pattern=r"^[0-9a-f]{64}$")]
PEER_ID = r"^[1-9A-HJ-NP-Za-km-z]{40,64}$"
PeerIdField = Annotated[PeerId, Field(pattern=PEER_ID)]
RunName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Signature = Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")]
NonNegative = Annotated[int, Field(ge=0, le=2**53)]
Index = Annotated[RoundIndex, Field(ge=0, le=2**40)]
Pace = Annotated[tuple[Annotated[float, Field(gt=0, le=86_400)], ...], Field(max_length=PACE_ROUNDS)]
ViewField = Annotated[View, Field(ge=0, le=2**20)]


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """SHA-256 of the bytes, in hex."""
    return Digest(hashlib.sha256(data).hexdigest())


class Message(BaseModel):
    """Base of all messages: frozen, strict, nothing unexpected."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def canonical(self, *, without: frozenset[str] = frozenset()) -> bytes:
        """The one form that is hashed and signed: JSON, keys sorted, no spaces."""
        return orjson.dumps(self.model_dump(mode="json", exclude=set(without)), option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `canonical` wrote.

        Raises:
            MalformedError: the bytes are not exactly such a message.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, first["loc"]))[:100] or "body"  # a stranger's words, perhaps
            where = "".join(letter if letter.isprintable() else "?" for letter in path)
            raise MalformedError(f"{cls.__name__}: {where}: {first['msg']}") from error


class Signed(Message):
    """A message signed by the peer it names; `elastic.wire.signing` signs and verifies."""

    signature: Signature = ""

    @property
    def signer(self) -> PeerId:
        """Who must have signed it."""
        raise NotImplementedError

    def body(self) -> bytes:
        """The bytes under the signature."""
        return self.canonical(without=frozenset({"signature"}))


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run can change about itself from one round to the next."""

    validators: tuple[PeerId, ...]
    """Who decides, in PeerId order."""
    incentive: str
    """What scores mean: name and settings of the incentive, as canonical JSON."""


class Amendment(Message):
    """A change of the terms; what is None stays as it is."""

    validators: Annotated[tuple[PeerIdField, ...], Field(min_length=1, max_length=MAX_VALIDATORS)] | None
    incentive: Annotated[str, Field(max_length=MAX_INCENTIVE)] | None

    def applied(self, terms: Terms) -> Terms:
        """The terms as they are then."""
        return Terms(
            validators=terms.validators if self.validators is None else self.validators,
            incentive=terms.incentive if self.incentive is None else self.incentive,
        )


class PeerStage(StrEnum):
    """What a peer is doing, as far as others need to know. Who is watching holds all that a ready one does."""

    STARTING = "starting"
    CATCHING_UP = "catching up"
    READY = "ready"
    WATCHING = "watching"
    LEAVING = "leaving"


class PeerCard(Message):
    """A live peer: announced in the DHT under its own key, again and again, and gone when it expires."""

    peer: PeerIdField
    run: RunName
    protocol: NonNegative = PROTOCOL_VERSION
    shared: HexDigest
    """Digest of the [shared] configuration; another digest means another run."""
    name: Annotated[str, Field(max_length=64)] = ""
    stage: PeerStage
    round: Index
    """The round it is working on: it holds the anchor of this round if its stage is READY or WATCHING."""
    addresses: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=16)] = ()


class RoundPlan(Message):
    """What one peer does in one round; derived alike by everyone from the last manifest."""

    run: RunName
    round: Index
    previous: HexDigest
    """Digest of the manifest this round builds on."""
    anchor: HexDigest
    peer: PeerIdField
    roster: tuple[PeerIdField, ...]
    """Who may contribute in this round, sorted by PeerId."""
    slot: NonNegative | None
    """Our place in the roster, which decides our tokens; None: not in this round."""
    inner_steps: NonNegative
    seed: NonNegative
    pace: Pace = ()
    """That of the last manifest."""
    validators: tuple[PeerIdField, ...] = ()
    """Who decides this round, in PeerId order."""
    amended: Index = GENESIS
    """The last round before this one whose manifest changed the terms; 0: none did."""
    train_seconds: float
    """Stop inner steps after this many seconds, even if fewer than `inner_steps` are done."""
    gather_seconds: float
    """Wait for others at most this many seconds, counted from the start of the round."""

    @property
    def decides(self) -> bool:
        """Whether we are one of the validators of this round."""
        return self.peer in self.validators


class InnerReport(Message):
    """What the inner steps of one peer came to."""

    steps: NonNegative
    tokens: NonNegative
    first_loss: float
    last_loss: float
    mean_loss: float
    seconds: float


class ContributionHeader(Signed):
    """A peer's commitment to its payload, published before the payload can be fetched."""

    run: RunName
    round: Index
    peer: PeerIdField
    anchor: HexDigest
    proof: HexDigest
    """That the peer holds this anchor; see `verify.proof`."""
    payload: HexDigest
    size_bytes: NonNegative
    steps: NonNegative
    tokens: NonNegative
    loss: float

    @property
    def signer(self) -> PeerId:
        return self.peer


class RejectReason(StrEnum):
    """Why a contribution does not count."""

    MISSING = "missing"
    BAD_SIGNATURE = "bad signature"
    NOT_IN_ROSTER = "not in roster"
    STALE = "stale"
    WRONG_ANCHOR = "wrong anchor"
    NO_PROOF = "no proof"
    """It names the right anchor, and does not hold it."""
    OVERSIZED = "oversized"
    WRONG_DIGEST = "wrong digest"
    UNFETCHABLE = "unfetchable"
    MALFORMED = "malformed"
    COPY = "copy"
    DIVERGED = "diverged"
    """With the `average` reducer: this peer's averaged result differs from the others'."""
    LOUD = "loud"
    """Many times the norm that is usual in its round."""
    EQUIVOCAL = "equivocal"
    """It committed to two payloads in one round."""


class Verdict(Message):
    """Whether one peer's contribution counts, by the cheap checks every peer makes."""

    peer: PeerIdField
    round: Index
    rejected: RejectReason | None = None
    detail: Annotated[str, Field(max_length=300)] = ""

    @property
    def accepted(self) -> bool:
        return self.rejected is None


class Assessment(Message):
    """How much one contribution helped, measured by a validator: relative loss gains (dimensionless)."""

    peer: PeerIdField
    round: Index
    gain_assigned: float
    """On tokens that it was to train on,"""
    gain_heldout: float
    """and on tokens that nobody was to, if the text has any left, or only others."""


class Evidence(Message):
    """All an incentive sees of one peer in one round."""

    verdict: Verdict
    tokens: NonNegative = 0
    assessment: Assessment | None = None
    helped: bool | None = None
    """Whether it lowered the loss as a contribution should (`verify.ratings`), if that can be told."""
    part: float | None = None
    """How much of what is usual for its tokens it helps, over the rounds: most honest peers about 1; None: unknown."""
    works: bool | None = None
    """Whether it trains on the tokens it is assigned, as its assessments show over the rounds; None: too few."""
    score: float | None = None
    """What all assessments of it so far amount to (`verify.ratings`), if it was ever assessed."""


class Scoreboard(Message):
    """Peer → score, after the round named."""

    round: Index
    scores: dict[PeerIdField, float]


class SignedScoreboard(Signed):
    """A validator's scoreboard, for everyone to hear."""

    run: RunName
    round: Index
    peer: PeerIdField
    """Whose word it is."""
    previous: HexDigest = NO_DIGEST
    """Digest of that round's manifest: a word of another run, though it has the same name, proves nothing here."""
    scores: Annotated[dict[PeerIdField, float], Field(max_length=MAX_SCORES)]
    heard: Annotated[dict[PeerIdField, HexDigest], Field(max_length=MAX_VALIDATORS)] = {}
    """Validator → digest of the body of what it said, as far as we know, on the round before."""

    @property
    def signer(self) -> PeerId:
        return self.peer


class Invitation(Signed):
    """A peer answers for a newcomer, who shows it to everyone."""

    run: RunName
    inviter: PeerIdField
    number: Annotated[int, Field(ge=0, lt=64)]
    """Which of the inviter's invitations it is: none is given twice."""
    invited: PeerIdField

    @property
    def signer(self) -> PeerId:
        return self.inviter


Said = SignedScoreboard | Invitation
"""What is told to everyone, beside the rounds."""


class BlobRef(Message):
    """Where something is to be had that a record is too small for."""

    digest: HexDigest
    size_bytes: Annotated[int, Field(ge=0, le=2**20)]


class Counted(Message):
    """One contribution that the outer step applies."""

    peer: PeerIdField
    payload: HexDigest
    size_bytes: NonNegative
    share: Annotated[float, Field(gt=0, le=1)]


class Finality(Message):
    """Why a manifest is final: a quorum of validators said so in one view of its round."""

    view: ViewField
    signatures: Annotated[dict[PeerIdField, Signature], Field(max_length=MAX_VALIDATORS)]
    """Validator → signature of its vote, a `VoteKind.FINALIZE` for the manifest's digest; see `agreement.votes`."""


class Manifest(Signed):
    """What counted in one round. The chain of manifests from the genesis is the run.

    Beyond `spec/agreement.md` it names the roster of the next round: who may contribute, on which tokens, is agreed too
    and no matter of whose view of the DHT is fresher; and how long rounds take: the next deadline is everyone's.
    """

    run: RunName
    round: Index
    previous: HexDigest
    anchor: HexDigest
    """Digest of the anchor it applies to."""
    counted: Annotated[tuple[Counted, ...], Field(max_length=1024)] = ()
    """In PeerId order; empty means void: no outer step, every residual keeps its work."""
    roster: Annotated[tuple[PeerIdField, ...], Field(max_length=1024)]
    """Who may contribute in the next round, in PeerId order."""
    pace: Pace = ()
    """Seconds from the beginning of a round until half of its roster had contributed, as its proposer saw it; of the
    last rounds, newest last. Deadlines follow the median, which no minority of proposers, or of peers, can move far."""
    amended: Index = GENESIS
    """The last round before this one whose manifest changed the terms; 0: the run file's hold."""
    amendment: Amendment | None = None
    """Of the terms, from the next round on."""
    proposer: PeerIdField
    finality: Finality | None = None
    """Added when it is decided, by whoever sees the quorum; no part of its identity."""

    @property
    def signer(self) -> PeerId:
        return self.proposer

    def body(self) -> bytes:
        return self.canonical(without=frozenset({"signature", "finality"}))

    def digest(self) -> Digest:
        """Its identity: the digest of its canonical bytes, signature and finality left out."""
        return digest_of(self.body())

    def keeps_pace(self, before: tuple[float, ...]) -> bool:
        """Whether its pace is that of the manifest before, with one round more at most."""
        return self.pace in (before, (*before, *self.pace[-1:])[-PACE_ROUNDS:])

    @property
    def amends(self) -> RoundIndex:
        """The last round up to this one whose manifest changed the terms."""
        return self.amended if self.amendment is None else self.round

    @property
    def void(self) -> bool:
        return not self.counted

    def counts(self, peer: PeerId) -> bool:
        """Whether a contribution of this peer is in it."""
        return any(entry.peer == peer for entry in self.counted)

    def applies(self, payload: Digest) -> bool:
        """Whether this payload is in it, under whatever name: a copy moves the anchor as far as its original."""
        return any(entry.payload == payload for entry in self.counted)


JSON = dict[str, Any]
