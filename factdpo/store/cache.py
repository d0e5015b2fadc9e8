"""Content-addressed artefacts: request -> signature -> folder, made once and whole or not at all."""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

log = logging.getLogger("factdpo")

# Bumped by hand when a stage computes other numbers from the same inputs: old artefacts and runs are then not reused.
STAGE_VERSIONS = {"facts": 1, "splits": 1, "pairs": 1, "logps": 1, "train": 1, "evaluate": 1}

SETTLED_NS = 2 * 10**9  # a file that was changed more recently than this is read again each time
MANIFEST = "manifest.json"  # file name -> sha256, and OF; written last, so a folder with a manifest is whole
OF = "signature"  # key of a manifest: the name of the folder it belongs to (entries of before have none)


def signature(request: Any) -> str:
    """16 hex digits that depend on the value alone: not on key order, process or platform. Raises on NaN."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """A file's hash, computed once per process while the file is unchanged: weights can have gigabytes."""
    status = path.stat()
    if time.time_ns() - status.st_ctime_ns < SETTLED_NS:  # the next write may leave the same time
        return _sha256(path)
    return _cached_sha256(path, status.st_ino, status.st_size, status.st_ctime_ns)


def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_cached_sha256 = lru_cache(maxsize=2**16)(_sha256)


def folder_sha256(folder: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file below a folder, in name order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in files}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises errors of the disk as an OSError that names the file, which most libraries do not.

    If `path` is a folder, the file is the one in it that was changed last.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        match = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
        if number is None or getattr(error, "filename", None) is not None:
            raise
        files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
        name = max(files, key=lambda p: p.stat().st_mtime_ns, default=path)
        raise OSError(number, os.strerror(number), str(name)) from error


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, even after a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def fetch(folder: Path, make: Callable[[Path], None]) -> bool:
    """Make `folder` by `make` unless it exists undamaged; True if it did.

    `make` gets an empty folder beside the final one, which is renamed once it is whole. Two processes that want the
    same folder compute it once (the lock dies with its holder). A folder that is damaged, or gone, is reported and made
    again. All of it is on the disk before it has its name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, problem = folder.with_name(folder.name + ".lock"), None
    was_begun = lock.exists()
    with FileLock(lock):
        if folder.exists():
            if (problem := damage(folder)) is None:
                return True
            log.warning("%s is not whole (%s): it is made again", folder, problem)
            _remove(folder)
        temporary = folder.with_name(f".{folder.name}.part")  # ours by the lock; a kill may have left one
        if was_begun and problem is None and not temporary.exists():
            log.info("%s is gone, or was never finished: it is made again", folder)
        _remove(temporary)
        temporary.mkdir()
        try:
            with writing(temporary):
                make(temporary)
                hashes = folder_sha256(temporary)
                _fsync_below(temporary)
            write_atomic(temporary / MANIFEST, json.dumps({OF: folder.name, **hashes}, indent=1))
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _fsync(folder.parent)
        return False


def damaged_files(folder: Path, expected: dict[str, str]) -> list[str]:
    """Names of the files that are missing from a folder or whose bytes differ from the given sha256."""
    return [
        name for name, sha in expected.items() if not (folder / name).is_file() or file_sha256(folder / name) != sha
    ]


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `fetch` made; None if every file is as it was written."""
    try:
        expected = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        if (of := expected.pop(OF, folder.name)) != folder.name:
            return f"it is {of}"
        wrong = damaged_files(folder, expected)
    except (OSError, ValueError, TypeError) as error:
        return f"manifest: {error}"
    return f"missing or changed: {', '.join(wrong)}" if wrong else None


def _remove(path: Path) -> None:
    """Remove a folder, or what lies in its place; no error if nothing does."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync_below(folder: Path) -> None:
    """Have all files and folders below a folder on the disk."""
    for where, _, names in os.walk(folder):
        for path in (*(Path(where, name) for name in names), Path(where)):
            _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
