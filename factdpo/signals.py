"""Ctrl-C, SIGTERM and SIGHUP: they end a command once nothing is lost by it; a second one ends it at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

WATCH_SECONDS = 1.0  # between two looks at whether a parent is still there
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Preempted(SystemExit):
    """The runs under way are to stop through no fault of their own: no Exception, so that nothing goes on with others.

    `why` stands in their records; unless it is caught the process ends with exit code `code`.
    """

    def __init__(self, code: int, why: str):
        super().__init__(code)
        self.why = why

    def __reduce__(self) -> tuple[type, tuple[object, str]]:  # it may come from a launcher's worker
        return type(self), (self.code, self.why)


@dataclass
class _State:
    handled: bool = False
    meant: Callable[[int], int] = int
    held: bool = False
    waiting: BaseException | None = None
    received: list[int] = field(default_factory=list)
    interrupted: bool = False


_now = _State()  # signals come to the process, wherever it is


@contextmanager
def noted() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt, as without it, and `interrupted` knows."""
    _now.interrupted = False
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where Ctrl-C is to be ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, before)


def interrupted() -> bool:
    """Whether Ctrl-C came since `noted` began: any error after it may be its doing, as that of a torn import."""
    return _now.interrupted


def end_with(parent: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal once `parent`, the process that started it, is gone, however that ended.

    Its number comes from that process itself: by the time one could ask for it here, it may be gone already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def end_at_once(code: int) -> None:
    """From now on Ctrl-C ends the process with this code and without a word: it is ending already."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _now.interrupted = True
    raise KeyboardInterrupt


@contextmanager
def handled(meant: Callable[[int], int] = int) -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise Preempted, as Ctrl-C raises KeyboardInterrupt: at once, or later if `held`.

    Inside of another one it changes nothing. A signal that the process was started to ignore stays ignored,
    as `nohup` has it for SIGHUP. `meant` says which signal one stands for, where others can only send that one.
    """
    if _now.handled or threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _receive) for number in ours}
    _now.handled, _now.meant, _now.received = True, meant, []
    try:
        yield
        raise_waiting()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _now.handled, _now.waiting = False, None


@contextmanager
def held() -> Iterator[None]:
    """Within it a first signal waits until `raise_waiting`; a second one raises at once."""
    before, _now.held = _now.held, True
    try:
        yield
    finally:
        _now.held = before


@contextmanager
def released() -> Iterator[None]:
    """Inside of `held` a part in which a signal need not wait; raises the one that waits."""
    raise_waiting()
    before, _now.held = _now.held, False
    try:
        yield
    finally:
        _now.held = before


def waiting() -> bool:
    return _now.waiting is not None


def raise_waiting() -> None:
    """Raise what a signal would have raised when it came, if one waits."""
    error, _now.waiting = _now.waiting, None
    if error is not None:
        raise error


def received() -> int | None:
    """The first signal since `handled` began: any error after it is its doing, for compiled code makes it its own."""
    return _now.received[0] if _now.received else None


def stop(number: int) -> BaseException:
    """What a signal raises."""
    if number == signal.SIGINT:
        return KeyboardInterrupt()
    why = "ended by SIGHUP (the terminal was closed)" if number == signal.SIGHUP else "ended by SIGTERM"
    return Preempted(128 + number, why)


def _receive(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP and _now.received:
        return  # a terminal that closes sends it twice, by its shell and by the kernel: nobody is in a hurry
    number = _now.meant(number)
    _now.received.append(number)
    _now.interrupted = _now.interrupted or number == signal.SIGINT
    if _now.held and len(_now.received) == 1:
        _now.waiting = stop(number)
        return
    _now.waiting = None
    raise stop(number)
