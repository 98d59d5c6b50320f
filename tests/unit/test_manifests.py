"""What a manifest is: each rule, and who may call it final."""

from typing import Any

import pytest

from elastic.agreement.manifests import check_final, check_manifest, draft, genesis
from elastic.agreement.votes import Vote, VoteKind
from elastic.errors import MalformedError, SignatureInvalidError
from elastic.messages import Counted, Digest, Finality, Manifest, PeerId, View, digest_of
from elastic.wire.signing import Identity

VALIDATOR, PEER, STRANGER = (Identity.generate() for _ in range(3))
FIRST, SECOND = digest_of(b"first anchor"), digest_of(b"second anchor")
BOTH = sorted((VALIDATOR.peer, PEER.peer))


def counted(peer: PeerId, share: float, payload: bytes = b"payload") -> Counted:
    return Counted(peer=peer, payload=digest_of(payload), size_bytes=7, share=share)


def zeroth() -> Manifest:
    return VALIDATOR.sign(genesis("demo", FIRST, BOTH, proposer=VALIDATOR.peer))


def after(previous: Manifest, payload: bytes = b"payload", anchor: Digest = FIRST) -> Manifest:
    entries = [counted(PEER.peer, 0.25, payload), counted(VALIDATOR.peer, 0.75, payload)]
    return draft(previous, anchor, entries, BOTH, VALIDATOR.peer)


def check(manifest: Manifest, previous: Manifest | None = None) -> None:
    check_manifest(manifest, run="demo", validators=[VALIDATOR.peer], previous=previous)


def test_a_draft_is_in_order_whatever_order_it_is_given() -> None:
    manifest = after(zeroth())
    shuffled = draft(zeroth(), FIRST, reversed(manifest.counted), reversed(BOTH), VALIDATOR.peer)
    assert shuffled == manifest
    assert list(manifest.roster) == BOTH
    assert (manifest.round, manifest.previous, manifest.anchor) == (1, zeroth().digest(), FIRST)


def test_a_chain_of_drafts_holds() -> None:
    first = VALIDATOR.sign(after(zeroth()))
    void = VALIDATOR.sign(draft(first, SECOND, [], BOTH, VALIDATOR.peer))
    check(zeroth())
    check(first, zeroth())
    check(void, first)
    assert void.void


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "another"}, "is of run"),
        ({"roster": tuple(reversed(BOTH))}, "roster that is not in PeerId order"),
        ({"roster": (BOTH[0], BOTH[0])}, "roster that is not in PeerId order"),
        ({"counted": (counted(BOTH[1], 0.5), counted(BOTH[0], 0.5))}, "counts peers out of PeerId order"),
        ({"counted": (counted(BOTH[0], 0.5), counted(BOTH[0], 0.5))}, "counts peers out of PeerId order"),
        ({"counted": (counted(BOTH[0], 0.5),)}, "shares that sum to 0.5"),
        ({"counted": (counted(BOTH[0], 0.9), counted(BOTH[1], 0.9))}, "shares that sum to 1.8"),
        ({"round": 0}, "is no genesis"),
        ({"round": 2}, "does not follow round 0"),
        ({"previous": SECOND}, "names another predecessor"),
        ({"anchor": SECOND}, "changes the anchor after a void round"),
        ({"counted": (counted(STRANGER.peer, 1.0),)}, "not in its roster"),
    ],
)
def test_each_broken_rule_is_named(changes: dict[str, Any], message: str) -> None:
    signed = VALIDATOR.sign(after(zeroth()).model_copy(update=changes))
    with pytest.raises(MalformedError, match=message):
        check(signed, zeroth())


def test_only_a_validator_may_propose() -> None:
    manifest = STRANGER.sign(after(zeroth()).model_copy(update={"proposer": STRANGER.peer}))
    with pytest.raises(MalformedError, match="who is no validator"):
        check(manifest)


def test_the_signature_is_over_everything() -> None:
    with pytest.raises(SignatureInvalidError):
        check(after(zeroth()))
    signed = VALIDATOR.sign(after(zeroth()))
    with pytest.raises(SignatureInvalidError):
        check(signed.model_copy(update={"roster": (BOTH[0],)}))


def decided(manifest: Manifest, *voters: Identity, view: int = 0) -> Manifest:
    """With the votes of these validators."""
    votes = {
        voter.peer: voter.sign(
            Vote(
                run=manifest.run, round=manifest.round, view=View(view), kind=VoteKind.FINALIZE,
                manifest=manifest.digest(), peer=voter.peer,
            )
        ).signature
        for voter in voters
    }  # fmt: skip
    return manifest.model_copy(update={"finality": Finality(view=View(view), signatures=votes)})


FOUR = [Identity.generate() for _ in range(4)]
NAMES = [each.peer for each in FOUR]


def test_a_quorum_makes_it_final_and_changes_nothing_else() -> None:
    manifest = decided(zeroth(), *FOUR[:3], view=2)
    check_final(manifest, NAMES)
    assert manifest.digest() == zeroth().digest()
    assert Manifest.from_bytes(manifest.canonical()) == manifest


def test_two_of_four_are_no_quorum() -> None:
    with pytest.raises(MalformedError, match="carries 2 votes, 3 make it final"):
        check_final(decided(zeroth(), *FOUR[:2]), NAMES)
    with pytest.raises(MalformedError, match="carries no votes"):
        check_final(zeroth(), NAMES)


def test_votes_of_strangers_do_not_count() -> None:
    with pytest.raises(MalformedError, match="who is no validator"):
        check_final(decided(zeroth(), *FOUR[:3], STRANGER), NAMES)


def test_votes_for_something_else_do_not_count() -> None:
    # given votes of another view, and votes for another manifest
    finality = decided(zeroth(), *FOUR).finality
    assert finality is not None
    other = VALIDATOR.sign(genesis("demo", SECOND, BOTH, proposer=VALIDATOR.peer))
    elsewhere = zeroth().model_copy(update={"finality": finality.model_copy(update={"view": View(1)})})
    # when / then
    for manifest in (elsewhere, other.model_copy(update={"finality": finality})):
        with pytest.raises(SignatureInvalidError):
            check_final(manifest, NAMES)
