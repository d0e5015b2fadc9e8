"""Signals that wait while they are held, and end a run at its next safe place."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from factdpo import signals
from factdpo.commands import main


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


def test_a_terminal_that_closes_preempts_once_however_often_it_says_so() -> None:
    """The shell sends SIGHUP to its jobs, and the kernel once more."""
    with pytest.raises(signals.Preempted) as stopped, signals.handled(), signals.held():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert signals.waiting()
    assert (stopped.value.code, stopped.value.why) == (129, "ended by SIGHUP (the terminal was closed)")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_what_nohup_started_goes_on_when_its_terminal_closes() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            signal.raise_signal(signal.SIGHUP)
            assert signals.received() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_that_gets_no_signals_changes_none() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def handle() -> Any:
        with signals.handled():
            return signal.getsignal(signal.SIGTERM)

    assert ThreadPoolExecutor(1).submit(handle).result() is before


def test_a_signal_may_stand_for_another() -> None:
    """Ray ends a task by SIGINT, whatever ended the command."""
    with pytest.raises(signals.Preempted) as stopped, signals.handled(lambda number: signal.SIGTERM):
        signal.raise_signal(signal.SIGINT)
    assert (stopped.value.code, stopped.value.why) == (143, "ended by SIGTERM")


@pytest.mark.parametrize("torn", [False, True], ids=["at once", "by what it tore"])
def test_ctrl_c_ends_every_command_with_130_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], torn: bool
) -> None:
    def command(arguments: list[str]) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if torn:
                raise ImportError("a library, half imported") from None
            raise

    monkeypatch.setattr("factdpo.commands.results.main", command)
    monkeypatch.setattr(sys, "argv", ["factdpo", "results"])
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == 130 and capsys.readouterr().err == "factdpo: interrupted\n"
        pid = os.fork()
        if pid == 0:  # another one while it ends
            signal.raise_signal(signal.SIGINT)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_that_ctrl_c_did_not_cause_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(arguments: list[str]) -> None:
        raise ImportError("a bug")

    monkeypatch.setattr("factdpo.commands.results.main", command)
    monkeypatch.setattr(sys, "argv", ["factdpo", "results"])
    with pytest.raises(ImportError, match="a bug"):
        main.main()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
