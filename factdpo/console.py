"""What a run says in the terminal while it runs: few lines, one progress bar, and no storms from libraries."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

log = logging.getLogger("factdpo")


def quiet_libraries() -> None:
    """Before they are imported: libraries keep their progress bars and advice to themselves; warnings go to the log."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.captureWarnings(True)
    for name in ("httpx", "httpx2"):  # the hub client's, which tell every request
        logging.getLogger(name).setLevel(logging.WARNING)


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `1 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def piped() -> Iterator[None]:
    """What is printed in here may be read only in part, as by `| head`: that ends it, and is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would complain at its exit


class LogFile(logging.FileHandler):
    """A log in a file. It never raises: what keeps it from being written is in `error`, and said once."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8")
        self.error: Exception | None = None
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if self.error is None and isinstance(error, Exception):
            self.error = error
            console.print(f"[yellow]warning:[/] {escape(self.baseFilename)}: {escape(str(error))}", soft_wrap=True)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # what could not be written before is tried once more
            self.error = self.error or error


@contextmanager
def logging_to(files: list[logging.Handler], quiet: bool = False) -> Iterator[None]:
    """What is logged in here, warnings of all libraries included, goes to these files; ours also to the terminal.

    The list, never empty, may grow and shrink while this lasts. With `quiet` only our warnings go to the terminal.
    """
    root = logging.getLogger()
    before = root.handlers, log.handlers, log.level
    root.handlers = files  # Hydra's own handler would print every library's warnings
    log.handlers = [_Terminal(logging.WARNING if quiet else logging.INFO)]
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, log.handlers = before[:2]
        log.setLevel(before[2])


class _Terminal(logging.Handler):
    """factdpo's own log lines, as a person reads them: warnings marked, the rest plain."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:  # a traceback belongs into the file
            return
        text = escape(record.getMessage())
        console.print(
            f"[yellow]warning:[/] {text}" if record.levelno >= logging.WARNING else text,
            highlight=False,
            soft_wrap=True,
        )


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


console = Console()
