"""What a validator objects to in another's manifest, rule by rule; whole rounds are told by tests/swarm/test_quorum."""

from types import SimpleNamespace
from typing import Any

import pytest

from elastic.exchange.gather import Arrival
from elastic.messages import (
    ContributionHeader,
    Counted,
    Digest,
    Manifest,
    PeerCard,
    PeerId,
    PeerStage,
    RejectReason,
    RoundIndex,
    RoundPlan,
    Verdict,
    digest_of,
)
from elastic.propose import EACH_ITS_OWN, objection, own_manifest
from elastic.schedule.absences import Absences
from elastic.seen import Seen
from incentives.uniform import Uniform

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEF"]
ME, OTHER = PEERS[0], PEERS[1]
ROUND, ANCHOR, BEFORE, SHARED = RoundIndex(3), digest_of(b"anchor"), digest_of(b"before"), digest_of(b"shared")
FOREIGN = Digest("f" * 64)
PLAN = RoundPlan(
    run="demo", round=ROUND, previous=BEFORE, anchor=ANCHOR, peer=ME, roster=tuple(PEERS), slot=0, inner_steps=1,
    seed=0, train_seconds=1.0, gather_seconds=1.0,
)  # fmt: skip
CARDS = [PeerCard(peer=peer, run="demo", shared=SHARED, stage=PeerStage.READY, round=ROUND) for peer in PEERS]


def peer(*, averages: bool = False, max_peers: int = 48) -> Any:
    shared = SimpleNamespace(digest=lambda: SHARED, round=SimpleNamespace(max_peers=max_peers))
    reducer = SimpleNamespace(averages=averages)
    return SimpleNamespace(
        id=ME, shared=shared, reducer=reducer, incentive=Uniform(Uniform.Config()), absences=Absences()
    )


def arrival(sender: PeerId, payload: bytes | None = None) -> Arrival:
    header = ContributionHeader(
        run="demo", round=ROUND, peer=sender, anchor=ANCHOR, proof=ANCHOR,
        payload=digest_of(payload or sender.encode()),
        size_bytes=7, steps=1, tokens=64, loss=1.0,
    )  # fmt: skip
    return Arrival(header, b"payload", Verdict(peer=sender, round=ROUND), 0.0, 0.0)


def seen(rejected: dict[PeerId, RejectReason] | None = None, **payloads: bytes) -> Seen:
    arrivals = {sender: arrival(sender, payloads.get(sender)) for sender in PEERS}
    verdicts = {sender: Verdict(peer=sender, round=ROUND, rejected=(rejected or {}).get(sender)) for sender in arrivals}
    return Seen(arrivals, verdicts)


def theirs(**changes: Any) -> Manifest:
    """What an honest proposer that saw the same would propose."""
    honest = own_manifest(peer(), PLAN, seen(), CARDS).model_copy(update={"proposer": OTHER})
    return honest.model_copy(update=changes)


def entries(*senders: PeerId, shares: list[float] | None = None) -> tuple[Counted, ...]:
    each = shares or [1 / len(senders)] * len(senders)
    return tuple(
        Counted(peer=sender, payload=digest_of(sender.encode()), size_bytes=7, share=share)
        for sender, share in zip(senders, each, strict=True)
    )


def against(manifest: Manifest, what: Seen | None = None, patience: float = 1.0, **settings: Any) -> str | None:
    return objection(peer(**settings), PLAN, what or seen(), CARDS, manifest, patience=patience)


def test_who_saw_the_same_signs() -> None:
    assert against(theirs()) is None
    assert len(theirs().counted) == len(PEERS)


def test_a_share_of_nothing_leaves_its_peer_out_and_ends_nobody() -> None:
    who = peer()
    who.incentive = SimpleNamespace(
        shares=lambda accepted: {each.peer: float(each.peer == PEERS[1]) for each in accepted},
        select=lambda round_, candidates, limit: list(candidates),
    )
    assert [entry.peer for entry in own_manifest(who, PLAN, seen(), CARDS).counted] == [PEERS[1]]


def test_a_few_may_be_missing() -> None:
    assert against(theirs(counted=entries(*PEERS[:4]))) is None
    assert against(theirs(counted=entries(*PEERS[:3]))) == "it counts 3, we would 6"


@pytest.mark.parametrize("reason", set(RejectReason) - EACH_ITS_OWN, ids=str)
def test_what_we_reject_does_not_count(reason: RejectReason) -> None:
    objected = against(theirs(), seen({OTHER: reason}))
    assert objected == f"it counts {OTHER}: {reason}"


def test_which_of_two_copies_counts_is_the_proposers_choice_but_not_both() -> None:
    # given two with one payload, the second of which we hold for the copy
    same = digest_of(b"same")
    what = seen({PEERS[2]: RejectReason.COPY}, **{OTHER: b"same", PEERS[2]: b"same"})
    counted = [each for each in entries(*PEERS) if each.peer not in (OTHER, PEERS[2])]

    def with_copies(*senders: PeerId) -> Manifest:
        mine = [Counted(peer=sender, payload=same, size_bytes=7, share=0.1) for sender in senders]
        both = sorted([*counted, *mine], key=lambda each: each.peer)
        share = 1 / len(both)
        return theirs(counted=tuple(each.model_copy(update={"share": share}) for each in both))

    # when / then
    assert against(with_copies(OTHER), what) is None
    assert against(with_copies(PEERS[2]), what) is None
    assert against(with_copies(OTHER, PEERS[2]), what) == "it counts one payload twice"


def test_an_average_is_one_payload_for_all() -> None:
    what = seen(**dict.fromkeys(PEERS, b"mean"))
    counted = tuple(each.model_copy(update={"payload": digest_of(b"mean")}) for each in entries(*PEERS))
    assert against(theirs(counted=counted), what, averages=True) is None


@pytest.mark.parametrize("changes", [{"payload": digest_of(b"else")}, {"size_bytes": 8}], ids=str)
def test_the_payload_is_the_one_that_was_committed(changes: dict[str, Any]) -> None:
    first, *others = entries(*PEERS)
    message = against(theirs(counted=(first.model_copy(update=changes), *others)))
    assert message == f"it counts another payload of {PEERS[0]} than was committed to"


@pytest.mark.parametrize("share", [0.26, 0.1])
def test_a_share_is_neither_much_larger_nor_much_smaller_than_ours(share: float) -> None:
    rest = (1 - share) / 5
    shares = [share, *[rest] * 5]
    assert "a share of" in (against(theirs(counted=entries(*PEERS, shares=shares))) or "")


def test_who_was_told_other_scores_bears_more_the_longer_there_is_no_agreement() -> None:
    # given shares further from ours than is usual, as a validator with two faces can bring about
    theirs_ = theirs(counted=entries(*PEERS, shares=[0.3, *[0.14] * 5]))
    # then they are refused at first, and not for ever
    assert "a share of" in (against(theirs_) or "")
    assert against(theirs_, patience=2.0) is None


def test_scores_may_differ_a_little() -> None:
    shares = [0.2, 0.2, 0.15, 0.15, 0.15, 0.15]
    assert against(theirs(counted=entries(*PEERS, shares=shares))) is None


def test_the_next_roster_has_a_limit() -> None:
    assert against(theirs(roster=tuple(PEERS[:5])), max_peers=5) is None
    assert "at most 5 may be" in (against(theirs(), max_peers=5) or "")


def test_a_few_of_the_next_roster_may_be_unknown_to_us() -> None:
    # whose card is seen by whom is luck, or a liar's choice: it must not stop the run
    strangers = [PeerId("12D3KooW" + letter * 44) for letter in "GHJ"]
    assert against(theirs(roster=tuple(sorted([*PEERS, *strangers])))) is None


def test_dead_and_foreign_cards_are_nobodys_peers() -> None:
    # given more than half of the roster is leaving, or of another run
    gone = [PeerId("12D3KooW" + letter * 44) for letter in "GHJKLMN"]
    cards = [
        *CARDS,
        *(PeerCard(peer=each, run="demo", shared=SHARED, stage=PeerStage.LEAVING, round=ROUND) for each in gone[:3]),
        *(
            PeerCard(peer=each, run="demo", shared=Digest("f" * 64), stage=PeerStage.READY, round=ROUND)
            for each in gone[3:]
        ),
    ]
    manifest = theirs(roster=tuple(sorted([*PEERS, *gone])))
    assert objection(peer(), PLAN, seen(), cards, manifest) == "its next roster names 7 of 13 whom we do not see"
