"""W&B's file of an offline run: whole, broken off, and on a disk without room."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from factdpo.tracking.wandb_offline import BLOCK, is_whole

RUN = """
import resource, sys
from pathlib import Path
from factdpo.config.schema import Config, TrackConfig, TrackMode
from factdpo.tracking.wandb_tracker import WandbTracker
import logging

if sys.argv[2] != "0":  # largest file in bytes, also for W&B's own process
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
tracker = WandbTracker(Config(track=TrackConfig(mode=TrackMode.offline)), "abc", "nano a", Path(sys.argv[1]))
tracker.log(*({"step": step, "loss": 1 / step} for step in range(1, 601)))
tracker.finish({"state": "FINISHED"}, [], [], Path(sys.argv[1]))
"""


def run(folder: Path, largest: int) -> tuple[Path, str]:
    """The file of an offline run of 600 rows, and what was said on the way."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, "-c", RUN, str(folder), str(largest)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("wandb/offline-run-*/run-abc.wandb")
    return file, done.stdout + done.stderr


def test_a_file_is_whole_to_its_end_and_nowhere_before(tmp_path: Path) -> None:
    file, said = run(tmp_path, 0)
    assert is_whole(file) and not said, said
    data = file.read_bytes()
    assert len(data) > 2 * BLOCK  # records go across blocks
    for kept in [0, 3, BLOCK, 2 * BLOCK - 1, *range(0, len(data) - 600, 3001)]:
        file.write_bytes(data[:kept])
        assert not is_whole(file), kept
    assert not is_whole(tmp_path / "gone.wandb")


@pytest.mark.parametrize("largest", [4096, pytest.param(40_000, marks=pytest.mark.slow)])
def test_rows_that_wandb_loses_without_a_word_cost_one_warning(tmp_path: Path, largest: int) -> None:
    file, said = run(tmp_path, largest)
    assert file.stat().st_size <= largest
    assert said.count("\n") == 1 and said.startswith("WARNING W&B lost a part of its copy of the run"), said
