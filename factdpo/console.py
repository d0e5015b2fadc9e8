"""What a run says in the terminal while it runs: few lines, one progress bar, and no storms from libraries."""

import importlib.util
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.errors import LiveError
from rich.segment import Segment
from rich.text import Text

from factdpo import output

log = logging.getLogger("factdpo")

# What moves the cursor, sets a title or the clipboard, or turns text around: C0 but for line ends and tabs, C1, bidi.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SILENT_SECONDS = 2.0  # a stage that is over by then is not shown


def printable(text: str) -> str:
    """Text that may come from anybody, with its control characters as escapes (`\\x1b`): a terminal would obey them."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


class SafeConsole(Console):
    """A console of rich in which no text reaches the terminal with control characters, whoever prints it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or not CONTROL.search(text) else Segment(printable(text), style)


def quiet_libraries() -> None:
    """Before they are imported: libraries keep their progress bars and advice to themselves; warnings go to the log.

    Output is guarded as well: each process that does runs comes by here, those of other launchers included.
    """
    output.guard()
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
def stage(title: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """Shows that a stage is under way once it takes longer than two seconds; call what it gives with what was done.

    On a terminal that is a bar of `total`, which goes when the stage ends, within a training below the training's own;
    elsewhere a line, and one with the duration at its end.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    numbers = [MofNCompleteColumn()] if total else []
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), *numbers, TimeElapsedColumn()]
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=total)
    began, lines, shown = time.monotonic(), not console.is_interactive, threading.Event()

    def show() -> None:
        shown.set()
        if lines:
            say(f"{title} ...")
            return
        with suppress(LiveError):  # rich 14.0 shows one at a time
            bar.start()

    timer = threading.Timer(SILENT_SECONDS, show)
    timer.daemon = True
    timer.start()
    try:
        yield lambda count: bar.advance(task, count)
    finally:
        timer.cancel()
        timer.join()  # it may be showing right now
        if bar.live.is_started:
            bar.stop()
    if lines and shown.is_set():
        say(f"{title}: {duration(time.monotonic() - began)}")


class LogFile(logging.FileHandler):
    """A log in a file. It never raises: the first error of writing it is kept in `error` and shown once."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8")
        self.error: Exception | None = None
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if self.error is None and isinstance(error, Exception):
            self.error = error
            _warn(f"{self.baseFilename}: {error}")

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
        if not record.exc_info:  # a traceback belongs into the file
            (_warn if record.levelno >= logging.WARNING else say)(record.getMessage())


def in_notebook(screen: Console) -> bool:
    """Whether bars can be shown in a notebook, for which rich needs ipywidgets."""
    return screen.is_jupyter and importlib.util.find_spec("ipywidgets") is not None


def say(text: str, style: str = "", screen: Console | None = None) -> None:
    """Prints a line as it is: no markup is read in it, and it is never wrapped, so that paths stay whole."""
    (screen or console).print(Text(text, style), soft_wrap=True)


def _warn(text: str) -> None:
    console.print(Text.assemble(("warning:", "yellow"), f" {text}"), soft_wrap=True)


def first_line(error: Exception) -> str:
    """The first line of an error's message, else its type: W&B and trackio write many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


console = SafeConsole()
