"""Which folders are runs, where they lie, and who is at work on them."""

import os
from collections.abc import Iterator
from pathlib import Path

from factdpo.config.schema import ConfigError
from factdpo.store import cache, result

PLAN = "plan.json"  # in a run's folder once its training begins: {"steps": its optimizer steps}


def lock_file(folder: Path) -> Path:
    """Beside a run's folder, by its id alone: who does the run holds a lock on it, whatever the folder is called."""
    return folder.with_name(f".{folder.name.rpartition('-')[2]}.lock")


def is_at_work(folder: Path) -> str:
    """`running` if a process holds the lock of a run that was opened and has no result, else `killed`."""
    return result.RUNNING if cache.is_held(lock_file(folder)) else result.KILLED


def is_run(folder: Path | str) -> bool:
    return os.path.exists(f"{folder}/result.json") or os.path.exists(f"{folder}/asked.json")


def homes(folder: Path, deeper: int = 2) -> Iterator[tuple[Path, list[str]]]:
    """(folder that runs lie in, their names): this one, and those up to `deeper` levels below it."""
    try:
        with os.scandir(folder) as entries:
            below = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read ({error})") from None
    runs = [name for name in below if is_run(f"{folder}/{name}")]
    if runs:
        yield folder, runs
    if deeper:
        for name in sorted({*below} - {*runs}):
            yield from homes(folder / name, deeper - 1)
