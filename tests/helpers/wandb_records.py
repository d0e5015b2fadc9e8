"""W&B's files of offline runs, as W&B itself reads them."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any


def offline_runs(folder: Path) -> list[list[dict[str, Any]]]:
    """What W&B itself reads in each offline run in and below a folder, in the order of their paths."""
    return [_inspected(file) for file in sorted(folder.rglob("offline-run-*/run-*.wandb"))]


def records(folder: Path) -> list[dict[str, Any]]:
    """What W&B itself reads in the one offline run of a run's folder."""
    (found,) = offline_runs(folder / "wandb")
    return found


@cache
def _inspected(file: Path) -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]
