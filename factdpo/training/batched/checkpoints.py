"""Checkpoints of batches that train: written whole or not at all, and used only if every byte is as it was written."""

import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from factdpo.store import cache

log = logging.getLogger("factdpo")

KEPT = 2  # the newest ones of a batch: if one turns out damaged, there is another


class Home:
    """The folder of one batch's checkpoints: ours alone until it is released, or until the process dies."""

    def __init__(self, folder: Path):
        """Raises Timeout if another process, or another batch of this one, has it."""
        self.folder = folder
        self._lock = FileLock(folder / "lock")  # in a folder that is nobody's later: its name is never used again
        self._lock.acquire(timeout=0)

    @classmethod
    def new(cls, folder: Path, keys: list[str]) -> "Home":
        """An empty one below `folder` for a batch of these runs."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(Path(tempfile.mkdtemp(prefix=f"{cache.signature(keys)}-", dir=folder)))

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint; the older ones go once it is whole."""

        def make(target: Path) -> None:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "tensors.safetensors")
            (target / "state.json").write_text(json.dumps(state), encoding="utf-8")

        cache.fetch(self.folder / f"{state['step']:08d}", make)
        for old in self.steps()[:-KEPT]:
            shutil.rmtree(old)

    def steps(self) -> list[Path]:
        """Its checkpoints, the oldest first."""
        return sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def release(self) -> None:
        self._lock.release()

    def forget(self) -> None:
        """Remove it with all that is in it: its batch came to its end."""
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
    """The newest sound checkpoint of each batch with wanted runs, no such run in two of them; those furthest on first.

    Batches that another process trains are left to it.
    """
    newest = []
    for path in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []:
        try:
            home = Home(path)
        except Timeout:
            continue
        if not home.steps():  # it was killed before its first checkpoint
            home.forget()
        elif (checkpoint := _newest(home)) is None:
            home.release()
        else:
            newest.append(checkpoint)
    found, left = [], set(wanted)
    for checkpoint in sorted(newest, key=lambda one: -one.state["step"]):
        if ours := left.intersection(checkpoint.state["keys"]):
            found.append(checkpoint)
            left -= ours
        else:
            checkpoint.home.release()
    return found


def _newest(home: Home) -> Checkpoint | None:
    for path in reversed(home.steps()):
        if (damage := cache.damage(path)) is None:
            return Checkpoint(home, json.loads((path / "state.json").read_text(encoding="utf-8")), path)
        log.warning("%s is not whole (%s): an older checkpoint, or the beginning, is taken", path, damage)
    return None
