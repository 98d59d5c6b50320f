"""Signals become a flag; the second one is final."""

import signal

import pytest

from elastic.actors.interruption import Interrupted, Interruption

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_told_when_asked_for_and_never_before(number: signal.Signals) -> None:
    with Interruption() as interruption:
        interruption.check()
        # when
        signal.raise_signal(number)
        # then nothing happens until
        with pytest.raises(Interrupted, match=number.name):
            interruption.check()
        # and whichever comes next ends the process, whatever it is waiting for
        assert {signal.getsignal(each) for each in SIGNALS} == {signal.SIG_DFL}


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interruption():
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == before
