"""Checkpoints of cohorts: written whole or not at all, and used only if every byte is as it was written."""

import json
import logging
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from factdpo.store import cache, shapes

log = logging.getLogger("factdpo")

KEPT = 2  # the newest ones of a cohort: if one is damaged, the other is used
WAIT_SECONDS = 30.0  # for another worker that reads the same checkpoint for other runs of it
FORMAT = 2  # of what a checkpoint holds; one of another format is as good as none


class Home:
    """The folder of one cohort's checkpoints, held by this process until it is released or the process dies."""

    def __init__(self, folder: Path, wait: float = 0.0):
        """Raises Timeout if another process, or another cohort of this one, holds it for so many seconds."""
        self.folder = folder
        self._lock = FileLock(folder / "lock")  # the folder's name is never used again, so the lock can go with it
        self._lock.acquire(timeout=wait)

    @classmethod
    def new(cls, folder: Path, keys: list[str]) -> "Home":
        """A new empty folder below `folder` for a cohort of these runs."""
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f"{cache.signature(keys)}-", dir=folder))
        return cls(path, wait=WAIT_SECONDS)  # another may have taken it for one that a kill left: see `clear`

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint; once it is whole, remove all but the newest KEPT."""

        def make(target: Path) -> None:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "tensors.safetensors")
            (target / "state.json").write_text(json.dumps(state | {"format": FORMAT}), encoding="utf-8")

        cache.fetch(self.folder / f"{state['step']:08d}", make)
        for old in self.steps()[:-KEPT]:
            shutil.rmtree(old)
            old.with_name(f"{old.name}.lock").unlink(missing_ok=True)  # of `cache.fetch`; the folder is ours alone

    def steps(self) -> list[Path]:
        """The folders of its checkpoints, the oldest first."""
        return sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def release(self) -> None:
        """Let others have it; without any checkpoint it goes."""
        if self._lock.is_locked and self.folder.is_dir() and not self.steps():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def forget(self) -> None:
        """Remove the folder when its cohort has ended, and release it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


@dataclass
class Checkpoint:
    home: Home
    state: dict[str, Any]  # `keys` names the runs, `step` is the optimizer steps made
    path: Path

    def tensors(self) -> dict[str, Tensor]:
        """On the CPU."""
        return load_file(self.path / "tensors.safetensors")


def find(folder: Path, wanted: set[str]) -> list[Checkpoint]:
    """The newest undamaged checkpoint of each cohort with wanted runs, the most steps first; each run is in one only.

    Cohorts that another process trains are left out, and those without a wanted run, which others may want.
    """
    newest = []
    for path in sorted(p for p in folder.glob("*") if p.is_dir()):
        keys: set[str] = set()  # not known, where one cannot be read
        with suppress(OSError, shapes.DamagedFile):
            keys = _keys(path)
        if keys and not keys & wanted:
            continue
        try:
            home = Home(path, wait=WAIT_SECONDS if keys else 0.0)
        except Timeout:
            continue
        except OSError as error:
            log.warning("%s: cannot be used (%s); remove it while nothing runs", path, error)
            continue
        if not home.steps():  # it was killed before its first checkpoint
            home.forget()
        elif (checkpoint := _newest(home)) is None:
            home.release()
        else:
            newest.append(checkpoint)
    used, remaining = [], set(wanted)
    for checkpoint in sorted(newest, key=lambda checkpoint: -checkpoint.state["step"]):
        if runs := remaining.intersection(checkpoint.state["keys"]):
            used.append(checkpoint)
            remaining -= runs
        else:
            checkpoint.home.release()
    return used


def clear(folder: Path, adapters: Path) -> None:
    """Remove what a kill may leave: checkpoints of cohorts whose weights are all below `adapters`, and empty folders.

    Locks only what it removes, since who looks for a checkpoint passes a locked one over.
    """
    for path in sorted(p for p in folder.glob("*") if p.is_dir()):
        try:
            keys = _keys(path)
            is_empty = not any(step.is_dir() for step in path.glob("[0-9]*"))
            if is_empty or (keys and all((adapters / key / cache.MANIFEST).is_file() for key in keys)):
                Home(path).forget()
        except (OSError, Timeout, shapes.DamagedFile):
            continue


def _keys(path: Path) -> set[str]:
    """The runs that the checkpoints in a cohort's folder hold; raises OSError or DamagedFile if one cannot be read."""
    states = [shapes.read(file, shapes.CheckpointShape, "it is left") for file in path.glob("[0-9]*/state.json")]
    return {key for state in states for key in state["keys"]}


def _newest(home: Home) -> Checkpoint | None:
    for path in reversed(home.steps()):
        try:
            if (damage := cache.damage(path)) is None:
                state = shapes.read(path / "state.json", shapes.CheckpointShape, "it is left")
                if state.get("format") == FORMAT:
                    return Checkpoint(home, state, path)
                damage = "it was written by another version"
        except shapes.DamagedFile as error:
            damage = str(error)
        log.warning("%s is not whole (%s): resuming from an older checkpoint, or from the start", path, damage)
    return None
