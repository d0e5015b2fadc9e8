"""The file of a search's study in the sweep's folder: locked, read, and repaired where a kill tore it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection

from factdpo.config.schema import ConfigError
from factdpo.store import cache

FILE = "study.journal"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the study of a folder for this process; raises ConfigError if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{FILE}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder}: another process is on this search; wait for it, or give another name, sweep=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


def load_study(folder: Path, direction: str, read_only: bool) -> optuna.Study:
    """The study of a folder, or a new one; raises ConfigError if it cannot be read. `read_only` writes no file."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = (folder / FILE).absolute()  # Optuna's own lock is a link, which a relative path would lead astray
    if not read_only:
        _cut_torn_line(path)
    try:
        in_memory = read_only and not path.exists()
        storage = InMemoryStorage() if in_memory else JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            storage=storage,
            study_name=folder.name,
            direction=StudyDirection[direction.upper()],
            load_if_exists=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); move it away and rerun the command, which rebuilds it from the runs"
        ) from None


def _cut_torn_line(path: Path) -> None:
    """Remove a last line without its end, as a kill leaves it: Optuna would append to it and lose both lines."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            cache.write_atomic(path, data[: data.rfind(b"\n") + 1].decode())
