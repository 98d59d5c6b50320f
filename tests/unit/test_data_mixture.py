import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from elastic.config_data import DataConfig, PhaseConfig, SourceConfig
from elastic.data.corpus import Corpus, Source
from elastic.schedule.assignment import assigned_sequences, num_train_sequences
from elastic.schedule.mixture import Deal, Part, assigned_mixture, turns

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


def mixture(sizes: list[int], weights: list[float]) -> list[Part]:
    return [Part(f"s{at}", size, weight) for at, (size, weight) in enumerate(zip(sizes, weights, strict=True))]


@settings(deadline=None)
@given(WEIGHTS, st.integers(1, 600))
def test_every_prefix_has_the_weights_to_rounding(weights: list[float], count: int) -> None:
    # when
    sources, nth = turns(weights, count)
    # then each source's sequences come one after the other, and none gets much more or less than its part
    assert len(sources) == len(nth) == count
    for source, weight in enumerate(weights):
        part = weight / sum(weights)
        taken = np.cumsum(sources == source)
        assert nth[sources == source].tolist() == list(range(taken[-1]))
        off = np.abs(taken - np.arange(1, count + 1) * part)
        assert off.max() <= 1 + part * len(weights) / 2


def test_a_source_without_weight_has_no_turn() -> None:
    sources, _ = turns([1.0, 0.0, 3.0], 400)

    assert np.bincount(sources).tolist() == [100, 0, 300]


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 99), st.integers(0, 9), st.integers(1, 20), st.data())
def test_a_text_is_dealt_as_before_there_were_mixtures(
    total: int, seed: int, index: int, roster: int, data: st.DataObject
) -> None:
    # given
    slot, count = data.draw(st.integers(0, roster - 1)), data.draw(st.integers(1, 300))
    assume(total >= roster)
    # when
    found = assigned_mixture([Part("", total, 1.0)], Deal(seed, "austen", index, roster), slot, count)
    # then
    assert found.tolist() == assigned_sequences(total, seed, "austen", index, slot, count, roster).tolist()


def test_what_a_text_deals_does_not_change_between_versions() -> None:
    found = assigned_mixture([Part("", 5078, 1.0)], Deal(7, "austen", 3, 4), slot=2, count=6)

    assert found.tolist() == [4759, 1237, 1065, 3166, 2909, 1195]


def test_what_a_mixture_deals_does_not_change_between_versions() -> None:
    parts = [Part("web", 5000, 3.0), Part("code", 700, 1.0)]

    found = assigned_mixture(parts, Deal(7, "austen", 3, 4, block=2), slot=2, count=10)

    assert found.tolist() == [1166, 1167, 5270, 1696, 1697, 2870, 5271, 2871, 1622, 1623]


@settings(deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(1, 8), st.integers(1, 5), st.data())
def test_no_two_slots_meet_and_nothing_comes_twice(
    sizes: list[int], roster: int, block: int, data: st.DataObject
) -> None:
    # given sources that all have something for everyone
    assume(all(size // block >= roster for size in sizes))
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=len(sizes), max_size=len(sizes)))
    deal = Deal(data.draw(st.integers(0, 9)), "run", data.draw(st.integers(1, 9)), roster, block)
    counts = data.draw(st.lists(st.integers(1, 200), min_size=roster, max_size=roster))
    parts = mixture(sizes, weights)
    # when
    dealt = [assigned_mixture(parts, deal, slot, count) for slot, count in enumerate(counts)]
    # then
    everything = np.concatenate(dealt)
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() >= 0 and everything.max() < sum(sizes)
    # and who does less does the beginning of it
    few = assigned_mixture(parts, deal, 0, max(1, counts[0] // 2))
    assert few.tolist() == dealt[0][: len(few)].tolist()
    # and the weights hold
    for slot in dealt:
        where = np.searchsorted(np.cumsum(sizes), slot, side="right")
        for source, weight in enumerate(weights):
            part = weight / sum(weights)
            assert abs((where == source).sum() - len(slot) * part) <= 1 + part * len(sizes) / 2


def test_neighbours_are_dealt_together_in_blocks() -> None:
    # given
    deal = Deal(0, "run", 1, 3, block=10)
    # when
    found = assigned_mixture([Part("a", 1000, 1.0)], deal, slot=1, count=40)
    # then
    blocks = found.reshape(4, 10)
    assert (blocks[:, 0] % 10 == 0).all() and (np.diff(blocks) == 1).all()


def test_a_source_that_is_spent_ends_the_round() -> None:
    # given a small source that is to be every fourth sequence, and 2 of it for each slot
    parts = mixture([1000, 6], [3.0, 1.0])
    # when
    found = assigned_mixture(parts, Deal(0, "run", 1, 3), slot=0, count=100)
    # then
    assert (found >= 1000).sum() == 2 and 8 <= len(found) < 12


@pytest.mark.parametrize("roster", [12, 13, 48])
def test_a_source_without_a_block_for_each_is_left_out_of_the_round(roster: int) -> None:
    # given a source with 12 blocks, and a roster that may have more places
    parts, deal = mixture([10_000, 125], [19.0, 1.0]), Deal(0, "run", 1, roster, block=10)
    # when
    dealt = np.concatenate([assigned_mixture(parts, deal, slot, 160) for slot in range(roster)])
    # then there is a full round for each, of the others, as if it had no weight
    assert len(np.unique(dealt)) == len(dealt) == roster * 160
    assert (dealt >= 10_000).any() == (roster == 12)
    if roster > 12:
        without = assigned_mixture(mixture([10_000, 125], [19.0, 0.0]), deal, 0, 160)
        assert dealt[:160].tolist() == without.tolist()


def test_sources_that_all_have_nothing_for_a_slot_are_an_error_that_names_one() -> None:
    with pytest.raises(ValueError, match="source s0: 2 sequences of text are too few for 3 contributors"):
        assigned_mixture(mixture([2, 1], [100.0, 1.0]), Deal(0, "run", 1, 3), slot=0, count=100)
    with pytest.raises(ValueError, match="slot 3 is not in a roster of 3"):
        assigned_mixture(mixture([1000, 20], [1.0, 1.0]), Deal(0, "run", 1, 3), slot=3, count=10)


def test_sources_of_one_size_are_shuffled_each_in_its_own_way() -> None:
    found = assigned_mixture(mixture([1000, 1000], [1.0, 1.0]), Deal(0, "run", 1, 2), slot=0, count=100)

    first, second = found[found < 1000], found[found >= 1000] - 1000
    assert first.tolist() != second.tolist()


def test_a_phase_has_its_weights_until_the_next() -> None:
    # given
    sources = tuple(
        SourceConfig(name=name, index=name * 64, weight=weight) for name, weight in (("a", 3.0), ("b", 0.0))
    )
    phases = (PhaseConfig(from_round=5, weights={"b": 1.0}), PhaseConfig(from_round=7, weights={"a": 1.0, "b": 1.0}))
    data = DataConfig(sources=sources, phases=phases)
    # when / then
    assert [data.weights(round_) for round_ in (1, 4, 5, 6, 7, 99)] == [
        (3.0, 0.0), (3.0, 0.0), (0.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 1.0),
    ]  # fmt: skip
    assert DataConfig().weights(1) == (1.0,)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(80, 900), st.floats(0.1, 0.49)), min_size=1, max_size=4), st.integers(2, 6))
def test_what_is_held_out_is_never_assigned_and_never_a_target(sources: list[tuple[int, float]], length: int) -> None:
    # given tokens that are their own places, counted on from source to source
    rows, start = [], 0
    for at, (size, held_out) in enumerate(sources):
        rows.append(Source(np.arange(start, start + size), held_out, f"s{at}"))
        start += size
    corpus = Corpus(tuple(rows), tuple(1.0 for _ in rows), None, start)
    # when everything is trained on, and everything held out is looked at
    trained = corpus.cut(np.arange(sum(corpus.sizes(length))), length)
    held_out = corpus.held_out(length, 10_000)
    # then they have no token in common, and lie in one source each
    assert not set(trained.ravel().tolist()) & set(held_out.ravel().tolist())
    ends = np.cumsum([size for size, _ in sources])
    for each in (trained, held_out):
        places = np.searchsorted(ends, each, side="right")
        assert (places == places[:, :1]).all() and (np.diff(each) == 1).all()
    assert [source.num_sequences(length) for source in rows] == [num_train_sequences(*each, length) for each in sources]
    # and each source has its own, which is in the whole
    for source, (size, part) in zip(rows, sources, strict=True):
        own = corpus.held_out(length, 10_000, source.name)
        assert len(own) == (math.ceil(size * part) - 1) // length


def test_held_out_sequences_follow_the_weights() -> None:
    # given
    rows = tuple(Source(np.full(1000, at), 0.2, f"s{at}") for at in range(3))
    corpus = Corpus(rows, (1.0, 0.0, 3.0), None, 3)
    # when
    found = corpus.held_out(length=9, at_most=8)
    # then
    assert np.bincount(found[:, 0], minlength=3).tolist() == [2, 0, 6]
    assert corpus.held_out(9, 5, "s1").tolist() == [[1] * 10] * 5
    with pytest.raises(ValueError, match='no source is called "s9"'):
        corpus.held_out(9, 5, "s9")


def test_a_sequence_that_is_none_is_refused() -> None:
    corpus = Corpus((Source(np.arange(100), 0.1, "a"), Source(np.arange(100), 0.1, "b")), (1.0, 1.0), None, 100)

    assert corpus.sizes(10) == [8, 8]
    assert corpus.cut(np.array([8]), 10)[0, 0] == 0
    for number in (-1, 16):
        with pytest.raises(ValueError, match="outside a text"):
            corpus.cut(np.array([number]), 10)
    with pytest.raises(ValueError, match="source a: 90 training tokens are too few"):
        corpus.sizes(90)
