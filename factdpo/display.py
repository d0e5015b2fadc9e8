"""What a run says in the terminal while it runs: few lines, one progress bar, and no storms from libraries."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Row = dict[str, Any]
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


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Everything logged in here, warnings of all libraries included, goes to `path`; ours also to the terminal."""
    root = logging.getLogger()
    to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = _Terminal()
    others = root.handlers[:]
    root.handlers[:] = [to_file]  # Hydra's own handler would print every library's warnings
    log.addHandler(to_terminal)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = others
        log.removeHandler(to_terminal)
        to_file.close()


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


class Bar:
    """A progress bar of optimizer steps with loss and reward accuracy; a line per evaluation. Call it with each row."""

    def __init__(self, total_steps: int, enabled: bool):
        self.total = total_steps
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=True,
        )
        self.task = self.progress.add_task("training", total=total_steps, numbers="")

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, row: Row) -> None:
        if "loss" in row:
            numbers = f"loss {row['loss']:.3f}  reward accuracy {row['rewards/accuracies']:.2f}"
            self.progress.update(self.task, completed=row["step"], numbers=numbers)
            return
        accuracies = [f"{key.split('/')[1]} {value:.2f}" for key, value in row.items() if key.endswith("/accuracy")]
        self.progress.console.print(
            f"  {row['step']:>{len(str(self.total))}}/{self.total}  {'  '.join(accuracies)}", highlight=False
        )


console = Console()
