"""Who is doing a run: the lock beside its folder, taken by whoever does it and asked by whoever watches."""

import fcntl
import os
from pathlib import Path

from filelock import FileLock, Timeout

from factdpo import console
from factdpo.config.schema import ConfigError
from factdpo.store import result


def lock_file(folder: Path) -> Path:
    """The lock that a process holds while it works on a run: beside the run's folder, named by the run's id alone."""
    return folder.with_name(f".{folder.name.rpartition('-')[2]}.lock")


def lock(folder: Path, wait: bool) -> FileLock:
    """One process per run; a killed holder's lock is free at once. Raises Timeout if it is held and not waited for."""
    held = FileLock(lock_file(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0.05, poll_interval=0.01)  # not 0: `factdpo status` may be asking, for microseconds
    except Timeout:
        if not wait:
            raise
        console.console.print(f"{folder} is being run by another process; waiting for it", highlight=False)
        held.acquire()
    except OSError as error:
        raise ConfigError(f"out: {folder.parent} cannot be written ({error}); give another out=") from None
    return held


def running_or_killed(folder: Path) -> str:
    """`running` if a process holds the lock of a run that was opened and has no result, else `killed`."""
    return result.RUNNING if is_held(lock_file(folder)) else result.KILLED


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock.

    Tested with a shared lock, held for microseconds: whoever takes the lock of a run retries for longer than that.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unreadable: assume that it is held
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # held; or this file system has no locks: there the file is removed with the lock
    finally:
        os.close(descriptor)
    return False
