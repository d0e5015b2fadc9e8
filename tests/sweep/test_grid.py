"""What a grid is asked for: empty axes, and names that are empty."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import in_process


def factdpo(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "factdpo", "track=none", "split.train=8", "split.test=8", *words]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["-m", "seed=range(0)"], "factdpo: seed=range(0): has no values; give at least one\n"),
        (["out="], "factdpo: out=: empty; name the folder that runs/, sweeps/ and cache/ are made in\n"),
    ],
)
def test_what_is_empty_is_refused(tmp_path: Path, words: list[str], refusal: str) -> None:
    done = factdpo(tmp_path, *words)
    assert (done.stderr, done.stdout, done.returncode, [*tmp_path.iterdir()]) == (refusal, "", 2, [])


def test_an_empty_name_of_a_sweep_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["track=none", "split.train=8", "split.test=8", "dpo.max_steps=1", "dpo.epochs=null"]
    with in_process(tmp_path, monkeypatch) as factdpo:
        assert factdpo("-m", "seed=0,1", "sweep=null", *small) == 0
    assert "seed: 2 FINISHED" in capsys.readouterr().out
    assert len([*tmp_path.glob("outputs/sweeps/seed/*/result.json")]) == 2
