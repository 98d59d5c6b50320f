"""The cheap checks: every way to be wrong has its reason, and being right has none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.errors import MalformedError
from elastic.messages import (
    ContributionHeader,
    Digest,
    PeerId,
    RejectReason,
    RoundIndex,
    RoundPlan,
    Verdict,
    digest_of,
)
from elastic.verify.checks import (
    LOUD,
    Sample,
    check_fresh,
    check_header,
    check_payload,
    mark_copies,
    mark_diverged,
    mark_loud,
    mark_near_copies,
)
from elastic.wire.signing import Identity
from elastic.wire.tree import blob_digest

ANN, BOB, EVE = (Identity.generate() for _ in range(3))
ANCHOR, OTHER = digest_of(b"anchor"), digest_of(b"other")
PAYLOAD = b"payload"


def plan() -> RoundPlan:
    return RoundPlan(
        run="demo",
        round=RoundIndex(5),
        previous=OTHER,
        anchor=ANCHOR,
        peer=ANN.peer,
        roster=tuple(sorted((ANN.peer, BOB.peer))),
        slot=0,
        inner_steps=10,
        seed=0,
        train_seconds=10.0,
        gather_seconds=10.0,
    )


def unsigned(peer: PeerId, **changes: Any) -> ContributionHeader:
    fields: dict[str, Any] = {
        "run": "demo",
        "round": 5,
        "peer": peer,
        "anchor": ANCHOR,
        "proof": ANCHOR,
        "payload": blob_digest(PAYLOAD),
        "size_bytes": len(PAYLOAD),
        "steps": 10,
        "tokens": 1000,
        "loss": 2.5,
    }
    return ContributionHeader(**fields | changes)


def header(identity: Identity = BOB, **changes: Any) -> ContributionHeader:
    return identity.sign(unsigned(identity.peer, **changes))


def checked(header: ContributionHeader, sender: PeerId = BOB.peer) -> Verdict:
    return check_header(header, sender=sender, plan=plan(), max_bytes=100, max_tokens=2000)


def test_an_honest_header_is_accepted() -> None:
    assert checked(header()) == Verdict(peer=BOB.peer, round=RoundIndex(5))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": "another"}, RejectReason.MALFORMED),
        ({"round": 4}, RejectReason.STALE),
        ({"round": 6}, RejectReason.STALE),
        ({"anchor": OTHER}, RejectReason.WRONG_ANCHOR),
        ({"size_bytes": 101}, RejectReason.OVERSIZED),
        ({"tokens": 0}, RejectReason.MALFORMED),
        ({"tokens": 2001}, RejectReason.MALFORMED),
    ],
)
def test_each_wrong_field_has_its_reason(changes: dict[str, Any], reason: RejectReason) -> None:
    verdict = checked(header(**changes))
    assert verdict.rejected == reason
    assert verdict.detail


def test_bounds_are_inclusive() -> None:
    assert checked(header(size_bytes=100, tokens=2000)).accepted


def test_an_unsigned_or_altered_header_has_a_bad_signature() -> None:
    assert checked(unsigned(BOB.peer)).rejected == RejectReason.BAD_SIGNATURE
    altered = header().model_copy(update={"tokens": 1500})
    assert checked(altered).rejected == RejectReason.BAD_SIGNATURE


def test_a_header_in_anothers_name_blames_the_sender() -> None:
    verdict = checked(header(ANN), sender=BOB.peer)
    assert (verdict.peer, verdict.rejected) == (BOB.peer, RejectReason.BAD_SIGNATURE)


def test_a_stranger_is_not_in_the_roster() -> None:
    assert checked(header(EVE), sender=EVE.peer).rejected == RejectReason.NOT_IN_ROSTER


def test_a_key_that_is_no_key_is_a_verdict_too() -> None:
    fake = PeerId("Z" * 52)
    assert checked(unsigned(fake, signature="0" * 128), sender=fake).rejected == RejectReason.BAD_SIGNATURE


def strict(data: bytes) -> bytes:
    if data != PAYLOAD:
        raise MalformedError("not that payload")
    return data


def test_the_payload_committed_to_is_accepted() -> None:
    assert check_payload(header(), PAYLOAD, strict).accepted


@pytest.mark.parametrize(
    ("changes", "payload", "reason"),
    [
        ({}, b"pAyload", RejectReason.WRONG_DIGEST),
        ({}, b"pay", RejectReason.WRONG_DIGEST),
        ({}, PAYLOAD + b"!", RejectReason.OVERSIZED),
        ({"size_bytes": 50}, PAYLOAD, RejectReason.MALFORMED),
        ({"payload": blob_digest(b"garbage")}, b"garbage", RejectReason.MALFORMED),
    ],
)
def test_each_wrong_payload_has_its_reason(changes: dict[str, Any], payload: bytes, reason: RejectReason) -> None:
    assert check_payload(header(**changes), payload, strict).rejected == reason


def test_a_long_detail_is_cut() -> None:
    def verbose(data: bytes) -> None:
        raise MalformedError("x" * 1000)

    assert len(check_payload(header(), PAYLOAD, verbose).detail) == 300


@settings(deadline=None)
@given(payload=st.binary(max_size=20), size=st.integers(0, 40))
def test_no_bytes_raise(payload: bytes, size: int) -> None:
    claimed = unsigned(BOB.peer, payload=blob_digest(payload), size_bytes=size)
    assert check_payload(claimed, payload, strict).accepted == (payload == PAYLOAD and size == len(PAYLOAD))


def arrivals(
    **payloads: bytes,
) -> tuple[dict[PeerId, Verdict], dict[PeerId, ContributionHeader]]:
    """Accepted contributions with these payloads, by the names of the identities above."""
    who = {"ann": ANN, "bob": BOB, "eve": EVE}
    headers = {who[name].peer: unsigned(who[name].peer, payload=blob_digest(data)) for name, data in payloads.items()}
    return {peer: Verdict(peer=peer, round=RoundIndex(5)) for peer in headers}, headers


def refused(verdicts: dict[PeerId, Verdict]) -> dict[PeerId, RejectReason]:
    return {peer: verdict.rejected for peer, verdict in verdicts.items() if verdict.rejected}


def test_different_payloads_are_no_copies() -> None:
    verdicts, headers = arrivals(ann=b"1", bob=b"2", eve=b"3")
    assert mark_copies(verdicts, headers) == verdicts


@pytest.mark.parametrize("thief", [BOB, EVE])
def test_the_earliest_commitment_is_the_original(thief: Identity) -> None:
    verdicts, headers = arrivals(ann=b"1", bob=b"1", eve=b"1")
    seen = {ANN.peer: 2.0, BOB.peer: 2.0, EVE.peer: 2.0} | {thief.peer: 1.0}
    assert set(refused(mark_copies(verdicts, headers, seen))) == {ANN.peer, BOB.peer, EVE.peer} - {thief.peer}


def test_who_was_seen_goes_before_who_was_not() -> None:
    verdicts, headers = arrivals(ann=b"1", bob=b"1")
    assert refused(mark_copies(verdicts, headers, {BOB.peer: 9.0})) == {ANN.peer: RejectReason.COPY}


def test_without_an_order_exactly_one_counts_whatever_the_order_of_arrival() -> None:
    verdicts, headers = arrivals(ann=b"1", bob=b"1", eve=b"1")
    backwards = dict(reversed(headers.items()))
    assert len(refused(mark_copies(verdicts, headers))) == 2
    assert refused(mark_copies(verdicts, headers)) == refused(mark_copies(verdicts, backwards))


def test_the_draw_favours_nobody_for_ever() -> None:
    winners = set()
    for round_ in range(40):
        verdicts, headers = arrivals(ann=b"1", bob=b"1")
        moved = {peer: each.model_copy(update={"round": round_}) for peer, each in headers.items()}
        winners |= set(headers) - set(refused(mark_copies(verdicts, moved)))
    assert winners == {ANN.peer, BOB.peer}


@pytest.mark.parametrize("mark", [mark_copies, mark_diverged])
def test_the_refused_stay_refused_and_take_nobody_with_them(
    mark: Callable[..., dict[PeerId, Verdict]],
) -> None:
    verdicts, headers = arrivals(ann=b"1", bob=b"1")
    verdicts[BOB.peer] = Verdict(peer=BOB.peer, round=RoundIndex(5), rejected=RejectReason.STALE)
    before = dict(verdicts)
    assert mark(verdicts, headers) == before
    assert verdicts == before


def test_of_averages_the_strict_majority_stands() -> None:
    assert refused(mark_diverged(*arrivals(ann=b"1", bob=b"1", eve=b"2"))) == {EVE.peer: RejectReason.DIVERGED}


@pytest.mark.parametrize("payloads", [{"ann": b"1", "bob": b"2"}, {"ann": b"1", "bob": b"2", "eve": b"3"}])
def test_without_a_majority_all_have_diverged(payloads: dict[str, bytes]) -> None:
    assert set(refused(mark_diverged(*arrivals(**payloads))).values()) == {RejectReason.DIVERGED}
    assert len(refused(mark_diverged(*arrivals(**payloads)))) == len(payloads)


def test_nobody_diverges_where_nobody_arrived() -> None:
    assert mark_diverged({}, {}) == {}
    assert mark_copies({}, {}) == {}


def test_digests_are_compared_whole() -> None:
    verdicts, headers = arrivals(ann=b"1", bob=b"2")
    near = Digest(headers[ANN.peer].payload[:-1] + ("0" if headers[ANN.peer].payload[-1] != "0" else "1"))
    headers[BOB.peer] = headers[BOB.peer].model_copy(update={"payload": near})
    assert not refused(mark_copies(verdicts, headers))


def test_what_an_earlier_round_counted_is_refused_before_its_download() -> None:
    again = {header().payload: RoundIndex(3)}
    assert check_fresh(header(), {}).accepted
    assert check_fresh(header(), again).rejected == RejectReason.COPY
    assert check_fresh(header(payload=OTHER), again).accepted


def samples(**places: Any) -> dict[PeerId, Sample]:
    who = {"ann": ANN, "bob": BOB, "eve": EVE}
    return {who[name].peer: Sample(np.asarray(sorted(each)), 1.0) for name, each in places.items()}


def test_who_speaks_of_the_same_places_later_is_a_copy() -> None:
    # given eve's payload, with one place in ten of bob's moved, and ann's, who shares half of them
    verdicts, headers = arrivals(ann=b"1", bob=b"2", eve=b"3")
    kept = samples(bob=range(1000), eve=range(100, 1100), ann=range(500, 1500))
    seen = {ANN.peer: 1.0, BOB.peer: 2.0, EVE.peer: 3.0}
    # when / then
    assert refused(mark_near_copies(verdicts, headers, kept, seen)) == {EVE.peer: RejectReason.COPY}
    later = {**seen, BOB.peer: 4.0}
    assert refused(mark_near_copies(verdicts, headers, kept, later)) == {BOB.peer: RejectReason.COPY}


def test_of_many_names_for_one_work_one_counts() -> None:
    verdicts, headers = arrivals(ann=b"1", bob=b"2", eve=b"3")
    same = samples(ann=range(1000), bob=range(20, 1020), eve=range(40, 1040))
    assert len(refused(mark_near_copies(verdicts, headers, same, {}))) == 2
    # and who was refused already is nobody's original
    refusal = Verdict(peer=ANN.peer, round=RoundIndex(5), rejected=RejectReason.NO_PROOF)
    marked = mark_near_copies({**verdicts, ANN.peer: refusal}, headers, same, {ANN.peer: 0.0})
    assert sorted(refused(marked).values()) == [RejectReason.COPY, RejectReason.NO_PROOF]


def test_few_places_prove_no_copy() -> None:
    verdicts, headers = arrivals(ann=b"1", bob=b"2")
    for few in (range(0), range(50)):
        assert mark_near_copies(verdicts, headers, samples(ann=few, bob=few), {}) == verdicts


def loudness(*norms: float) -> dict[PeerId, Sample]:
    return {each.peer: Sample(np.arange(3), norm**2) for each, norm in zip((ANN, BOB, EVE), norms, strict=False)}


def test_who_shouts_is_refused_and_cannot_make_others_seem_loud() -> None:
    verdicts, _ = arrivals(ann=b"1", bob=b"2", eve=b"3")
    assert refused(mark_loud(verdicts, loudness(1.0, 1.5, 1.1 * LOUD * 1.5))) == {EVE.peer: RejectReason.LOUD}
    assert mark_loud(verdicts, loudness(1.0, 1.5, 0.9 * LOUD * 1.5)) == verdicts
    # nobody is loud beside whispers, silence, or one other
    for norms in ((1e-6, 1.0, 1.0), (0.0, 0.0, 1.0), (1e-6, 1.0)):
        assert mark_loud(verdicts, loudness(*norms)) == verdicts
