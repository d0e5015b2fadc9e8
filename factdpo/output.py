"""Standard output never ends a run, whatever becomes of the terminal, the pipe or the disk behind it."""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

READER_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal: nobody is left who could be told


def guard() -> None:
    """From now on writing to this process's stdout and stderr never raises, by whichever way it is done.

    When a write fails (closed pipe, terminal gone, disk full) this stream is silent for the rest of the process. A
    character that its encoding lacks is replaced. A stream that somebody has put in place of the process's own, as a
    notebook does, is left alone. Call it again at will.
    """
    sys.stdout = _guarded(sys.stdout, sys.__stdout__)
    sys.stderr = _guarded(sys.stderr, sys.__stderr__)


def error() -> OSError | None:
    """Why stdout has not got all that was printed, if it has not; a reader who had enough (`| head`) is no error."""
    sys.stdout.flush()
    stream = getattr(sys.stdout, "buffer", None)
    failure = stream.failure if isinstance(stream, _Output) else None
    return None if failure is None or failure.errno in READER_GONE else failure


class _Output(io.FileIO):
    """A standard stream's file descriptor. The first error leads the descriptor to /dev/null, and is kept.

    It stands under the text stream without a buffer between: what Ctrl-C interrupts there would be written twice.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        try:
            while left:
                written = super().write(left)
                if written is None:  # a pipe that does not block, and is full
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError as error:
            self.failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for what libraries written in C print, too
            os.close(nowhere)
            if error.errno not in READER_GONE:
                name = "stdout" if self.fileno() == 1 else "stderr"
                said = f"factdpo: {name} cannot be written ({error.strerror}); nothing more is shown there\n"
                with suppress(OSError):
                    os.write(2, said.encode())
        return len(data)


def _guarded(stream: Any, own: Any) -> Any:
    if stream is None:  # closed by who started us, as with `>&-`
        return open(os.devnull, "w", encoding="utf-8")
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        _Output(stream.fileno(), "w", closefd=False),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors="replace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
