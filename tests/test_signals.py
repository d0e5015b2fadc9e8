"""Signals that wait while they are held, and end a run at its next safe place."""

import signal

import pytest

from factdpo import signals


def test_a_signal_that_is_held_waits_and_a_second_one_does_not() -> None:
    with pytest.raises(KeyboardInterrupt), signals.handled(), signals.held():
        signal.raise_signal(signal.SIGTERM)
        assert signals.waiting()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one waits too")
    with pytest.raises(signals.Preempted) as stopped, signals.handled(), signals.held():
        signal.raise_signal(signal.SIGTERM)
        with signals.released():
            pytest.fail("it still waits")
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_nobody_asked_for_is_raised_at_the_end_and_an_ignored_one_stays_ignored() -> None:
    with pytest.raises(KeyboardInterrupt), signals.handled(), signals.held():
        signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what runs in its background
    try:
        with signals.handled():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
