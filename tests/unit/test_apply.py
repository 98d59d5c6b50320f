"""Taking manifests: what becomes of work whose round ended without an outer step here."""

from types import SimpleNamespace
from typing import Any

from elastic.agreement.manifests import draft, genesis
from elastic.apply import catch_up
from elastic.errors import FetchError
from elastic.messages import Counted, Digest, Manifest, PeerId, RoundIndex, digest_of
from elastic.wire.signing import Identity

ME, OTHER = sorted(Identity.generate().peer for _ in range(2))
ANCHOR, STATE = digest_of(b"anchor"), b"state"


class Trainer:
    """It made a contribution in this round, after its peer last asked what it holds."""

    def __init__(self) -> None:
        self.now: Any = SimpleNamespace(
            round=RoundIndex(1),
            anchor=ANCHOR,
            size_bytes=5,
            pending=SimpleNamespace(round=RoundIndex(1), payload=b"mine"),
        )
        self.settled_by: Manifest | None = None

    async def state(self) -> Any:
        return self.now

    async def load(self, state: bytes, round_: RoundIndex, settled: Manifest | None) -> None:
        self.settled_by = settled
        self.now = SimpleNamespace(round=RoundIndex(round_ + 1), anchor=digest_of(b"later"), size_bytes=5, pending=None)


async def test_work_of_this_very_round_is_settled_when_the_anchor_is_taken_from_others() -> None:
    # given a peer whose contribution counted in round 1, beside one whose payload is gone, and others in round 2
    zeroth = genesis("demo", ANCHOR, [ME, OTHER], ME)
    counted = [Counted(peer=peer, payload=digest_of(peer.encode()), size_bytes=1, share=0.5) for peer in (ME, OTHER)]
    first = draft(zeroth, ANCHOR, counted, [ME, OTHER], ME)
    head = draft(first, digest_of(b"later"), [], [ME, OTHER], ME)
    trainer = Trainer()

    async def fetch(digest: Digest, size_bytes: int, holders: list[PeerId]) -> bytes:
        if digest == head.anchor:
            return STATE
        raise FetchError("gone")

    async def decided(round_: RoundIndex) -> Manifest | None:
        return {1: first, 2: head}.get(round_)

    async def cards() -> list[Any]:
        return []

    async def refresh() -> None:
        peer.state = await trainer.state()

    peer: Any = SimpleNamespace(
        id=ME, trainer=trainer, chain=SimpleNamespace(get=lambda round_: None), refresh=refresh,
        agreement=SimpleNamespace(decided=decided), decides=lambda round_: False,
        exchange=SimpleNamespace(fetch=fetch, cards=cards),
        state=SimpleNamespace(round=RoundIndex(1), anchor=ANCHOR, size_bytes=5, pending=None),
        holds=lambda: peer.state.round,
    )  # fmt: skip
    # when it takes the anchor
    await catch_up(peer, head)
    # then the trainer is told what became of its work
    assert trainer.settled_by == first
