"""Ids that every peer computes alike, and what peers tell each other of their spans."""

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from elastic.trace_ids import (
    CONTEXT_BYTES,
    fine_trace_id,
    pack_context,
    round_trace_id,
    sampled,
    span_id,
    unpack_context,
)

runs, rounds = st.text(min_size=1, max_size=20), st.integers(0, 2**40)
traces, spans = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)


@settings(deadline=None)
@given(runs, rounds)
def test_ids_follow_from_run_and_round_alone(run: str, round_: int) -> None:
    assert round_trace_id(run, round_) == round_trace_id(run, round_)
    assert 0 < round_trace_id(run, round_) < 2**128
    assert 0 < span_id(run, round_, "root") < 2**64
    assert round_trace_id(run, round_) != round_trace_id(run, round_ + 1) != round_trace_id(run + "x", round_ + 1)
    assert span_id(run, round_, "root") != span_id(run, round_ + 1, "root")


def test_ids_are_those_that_they_have_always_been() -> None:
    """Peers of two versions meet in one trace."""
    assert f"{round_trace_id('demo', 7):032x}" == "8934af1c3e0c1ee6b8ba170392cd0f98"
    assert f"{span_id('demo', 7, 'root'):016x}" == "c582adb2db05ce2e"


def test_ids_need_no_opentelemetry() -> None:
    code = "import sys, elastic.trace_ids, elastic.tracing.rounds; assert 'opentelemetry' not in ' '.join(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(deadline=None)
@given(traces, st.floats(0, 1))
def test_what_is_kept_is_what_opentelemetry_keeps(trace: int, rate: float) -> None:
    theirs = TraceIdRatioBased(rate).should_sample(None, trace, "any").decision is Decision.RECORD_AND_SAMPLE
    assert sampled(trace, rate) == theirs


@settings(deadline=None)
@given(traces, st.floats(0, 1), st.floats(0, 1))
def test_who_keeps_more_keeps_what_others_keep(trace: int, one: float, other: float) -> None:
    assert not sampled(trace, min(one, other)) or sampled(trace, max(one, other))


def test_all_or_nothing() -> None:
    kept = [sampled(round_trace_id("demo", round_), 0.25) for round_ in range(2000)]
    assert 400 < sum(kept) < 600
    assert sampled(2**128 - 1, 1.0) and not sampled(2**64, 0.0)


@settings(deadline=None)
@given(traces, spans, st.floats(0, 1))
def test_a_peers_own_trace_is_kept_with_the_round(trace: int, span: int, rate: float) -> None:
    own = fine_trace_id(trace, span)
    assert own != trace and 0 < own < 2**128
    assert sampled(own, rate) == sampled(trace, rate)


@settings(deadline=None)
@given(traces, spans)
def test_a_context_comes_back(trace: int, span: int) -> None:
    packed = pack_context(trace, span)
    assert len(packed) == CONTEXT_BYTES == 26
    assert unpack_context(packed) == (trace, span)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_anything_else_is_none_or_one(data: bytes) -> None:
    found = unpack_context(data)
    assert found is None or (len(data) == CONTEXT_BYTES and all(found))


def test_what_no_context_is() -> None:
    good = pack_context(1, 2)
    for bad in (
        b"",
        good[:-1],
        good + b"0",
        b"\1" + good[1:],
        good[:-1] + b"\0",
        pack_context(0, 2),
        pack_context(1, 0),
    ):
        assert unpack_context(bad) is None
