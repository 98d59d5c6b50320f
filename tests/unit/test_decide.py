"""Pure decisions of the schedule: what to do next, whether to commit, how long to wait, who may contribute."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from elastic.agreement.manifests import draft, genesis
from elastic.config import RoundConfig, Shared
from elastic.messages import Manifest, PeerCard, PeerId, PeerStage, RoundIndex, RoundPlan, Seconds, digest_of
from elastic.schedule.decide import CatchUp, Commit, Found, Leave, Skip, Train, Wait, decide_commit, decide_next
from elastic.schedule.plan import SLACK_SECONDS, candidates, plan_round, round_deadline
from elastic.wire.signing import Identity

PEERS = sorted(Identity.generate().peer for _ in range(6))
ANCHOR, SHARED = digest_of(b"anchor"), digest_of(b"shared")
seconds = st.floats(0.01, 5000).map(Seconds)
configs = st.builds(
    RoundConfig,
    train_seconds=st.floats(0.01, 1500),
    gather_seconds=st.floats(0.01, 240),
    deadline_factor=st.floats(1, 10, allow_nan=False),
)


def manifest(round_: int, roster: Any = PEERS) -> Manifest:
    """An unsigned head of that round."""
    zeroth = genesis("demo", ANCHOR, roster, PEERS[0])
    return zeroth.model_copy(update={"round": RoundIndex(round_)})


def plan(roster: Any = PEERS) -> RoundPlan:
    shared = Shared.model_validate({"run": "demo", "agreement": {"validators": (PEERS[0],)}})
    return plan_round(shared, manifest(4, roster), ANCHOR, PEERS[0])


rounds = st.integers(0, 30).map(RoundIndex)


@given(rounds, st.none() | st.integers(0, 30), st.integers(1, 20), st.booleans())
def test_one_thing_is_right_to_do_next(holds: RoundIndex, head: int | None, length: int, validator: bool) -> None:
    # when
    known = manifest(head) if head is not None else None
    decision = decide_next(holds=holds, head=known, rounds=length, validator=validator)
    # then
    next_round = 0 if head is None else head + 1
    match decision:
        case Train(found):
            assert found is known and holds == next_round and next_round <= length
        case CatchUp(found):
            assert found is known and holds < next_round
        case Found():
            assert known is None and validator and holds == 0
        case Leave():
            assert holds == next_round > length
        case Wait(because):
            assert holds > next_round or (known is None and not validator)
            assert because


@given(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 3))
def test_a_manifest_is_applied_whole_and_to_its_own_anchor_or_not_at_all(
    known: bool, same_anchor: bool, same_previous: bool, missing: int
) -> None:
    # given
    the_plan = plan()
    final = draft(manifest(4), the_plan.anchor, [], PEERS, PEERS[0])
    changes = {} if same_anchor else {"anchor": digest_of(b"other")}
    changes |= {} if same_previous else {"previous": digest_of(b"other")}
    final = final.model_copy(update=changes)
    # when
    decision = decide_commit(the_plan, final if known else None, [digest_of(bytes(i)) for i in range(missing)])
    # then
    if isinstance(decision, Commit):
        assert known and same_anchor and same_previous and not missing
        assert decision.manifest is final
    else:
        assert isinstance(decision, Skip)
        assert not (known and same_anchor and same_previous and not missing)
        assert known == ("no manifest" not in decision.because)


@given(configs, st.lists(seconds, max_size=12))
def test_a_deadline_is_bounded_and_leaves_room_for_the_usual_round(config: RoundConfig, history: list[Seconds]) -> None:
    # when
    deadline = round_deadline(config, history)
    # then
    bound = config.train_seconds + config.gather_seconds
    assert 0 < deadline <= bound
    if not history:
        assert deadline == bound
    else:
        assert deadline >= min(bound, min(history) + SLACK_SECONDS)


@given(configs, seconds)
def test_one_slow_round_among_many_hardly_moves_the_deadline(config: RoundConfig, slow: Seconds) -> None:
    usual = [Seconds(1.0)] * 7
    assert round_deadline(config, [*usual, slow]) == round_deadline(config, usual)


@given(configs, st.lists(seconds, max_size=8), st.lists(st.sampled_from(PEERS), unique=True))
def test_a_plan_follows_from_the_head(config: RoundConfig, history: list[Seconds], roster: list[PeerId]) -> None:
    # given
    tree = {"run": "demo", "round": config.model_dump(), "agreement": {"validators": (PEERS[0],)}}
    shared, head = Shared.model_validate(tree), manifest(7, roster).model_copy(update={"pace": tuple(history)})
    # when
    plans = [plan_round(shared, head, ANCHOR, peer) for peer in PEERS]
    # then
    assert {each.round for each in plans} == {8} and {each.previous for each in plans} == {head.digest()}
    assert [each.slot for each in plans if each.slot is not None] == list(range(len(roster)))
    assert all(each.train_seconds <= min(config.train_seconds, each.gather_seconds) for each in plans)


stages = st.sampled_from(list(PeerStage))
cards = st.lists(
    st.builds(
        lambda peer, stage, round_, shared: PeerCard(
            peer=peer, run="demo", shared=shared, stage=stage, round=RoundIndex(round_)
        ),
        st.sampled_from(PEERS), stages, st.integers(3, 7), st.sampled_from([SHARED, digest_of(b"other run")]),
    ),
    unique_by=lambda card: card.peer,
)  # fmt: skip
some_peers = st.sets(st.sampled_from(PEERS))


@given(cards, some_peers, some_peers)
def test_candidates_are_those_who_came_or_are_ready_and_new(
    known: list[PeerCard], roster: set[PeerId], came: set[PeerId]
) -> None:
    # given
    the_plan, arrived = plan(sorted(roster)), came & roster
    # when
    chosen = candidates(known, the_plan, SHARED, arrived)
    # then
    assert chosen == sorted(set(chosen))
    by_peer = {card.peer: card for card in known}
    for peer in PEERS:
        card = by_peer.get(peer)
        unwilling = card is not None and card.stage in (PeerStage.LEAVING, PeerStage.WATCHING)
        ready = card is not None and card.stage is PeerStage.READY and card.shared == SHARED and card.round >= 5
        expected = peer in arrived or (ready and (peer not in roster or not arrived))
        assert (peer in chosen) == (expected and not unwilling)


@given(cards, some_peers, some_peers)
def test_candidates_do_not_depend_on_the_order_of_cards(
    known: list[PeerCard], roster: set[PeerId], came: set[PeerId]
) -> None:
    the_plan, arrived = plan(sorted(roster)), came & roster
    assert candidates(known, the_plan, SHARED, arrived) == candidates(known[::-1], the_plan, SHARED, arrived)
