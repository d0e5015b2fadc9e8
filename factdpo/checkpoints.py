"""Checkpoints of batches that train: written whole or not at all, and used only if every byte is as it was written."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from factdpo import cache

log = logging.getLogger("factdpo")

KEPT = 2  # the newest ones of a batch: if one turns out damaged, there is another


class Checkpoint(NamedTuple):
    home: Path
    state: dict[str, Any]  # `keys` names the runs, `step` is the optimizer steps made
    tensors: dict[str, Tensor]  # on the CPU


def home(folder: Path, keys: list[str]) -> Path:
    """Where the checkpoints of a batch of these runs lie."""
    return folder / cache.signature(keys)


def save(home: Path, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint; the older ones go once it is whole."""

    def make(target: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "tensors.safetensors")
        (target / "state.json").write_text(json.dumps(state), encoding="utf-8")

    cache.fetch(home / f"{state['step']:08d}", make)
    for old in _steps(home)[:-KEPT]:
        shutil.rmtree(old)


def find(folder: Path, wanted: set[str]) -> list[Checkpoint]:
    """The newest sound checkpoint of each batch whose runs are all wanted; no run is in two of them."""
    found, left = [], set(wanted)
    for batch in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []:
        for step in reversed(_steps(batch)):
            if damage := cache.damage(step):
                log.warning("%s is not whole (%s): an older checkpoint, or the beginning, is taken", step, damage)
                continue
            state = json.loads((step / "state.json").read_text(encoding="utf-8"))
            if set(state["keys"]) <= left:
                found.append(Checkpoint(batch, state, load_file(step / "tensors.safetensors")))
                left -= set(state["keys"])
            break
    return found


def forget(home: Path) -> None:
    """Remove the checkpoints of a batch that came to its end."""
    shutil.rmtree(home, ignore_errors=True)


def _steps(home: Path) -> list[Path]:
    return sorted(p for p in home.iterdir() if p.is_dir() and p.name.isdigit()) if home.is_dir() else []
