"""Tab completion: what the words of a command line may become, and a real bash that completes them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from factdpo.commands.completion import candidates
from factdpo.commands.table import NAMES
from factdpo.config.schema import Loss


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep, a run, a file of facts and an option of its own."""
    monkeypatch.chdir(tmp_path)
    for folder in ("outputs/sweeps/beta", "outputs/runs/one", "conf/model", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "my.csv").touch()
    (tmp_path / "conf/model/mine.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["resu"], ["results"]),
        (["da"], ["dashboard", "data.", "data="]),
        (["lora.ra"], ["lora.rank="]),
        (["dpo.l"], [f"dpo.{end}=" for end in (
            "label_smoothing", "ld_alpha", "learning_rate", "loss", "loss_weights", "lr", "lr_scheduler"
        )]),
        (["data.c"], ["data.columns."]),
        (["data.columns.p"], ["data.columns.prompt="]),
        (["l"], ["label=", "lora.", "lora=", "loss=", "lr="]),
        (["seed=1", "fa"], ["fail_fast="]),  # a command stands first
        (["model=mi"], ["model=mine"]),
        (["-m", "model=nano,smo"], ["model=nano,smollm2_135m"]),
        (["dpo.loss=ap"], ["dpo.loss=apo_down", "dpo.loss=apo_zero"]),
        (["dpo.loss=[ipo,ap"], ["dpo.loss=[ipo,apo_down", "dpo.loss=[ipo,apo_zero"]),
        (["loss=hi"], ["loss=hinge"]),
        (["+lora.dora="], ["+lora.dora=false", "+lora.dora=true"]),
        (["seed="], []),
        (["sweep="], ["sweep=beta"]),
        (["data.path="], ["data.path=conf/", "data.path=my.csv", "data.path=outputs/"]),
        (["out=o"], ["out=outputs/"]),
        (["--cfg", ""], ["all", "hydra", "job"]),
        (["--mu"], ["--multirun"]),
        (["status", ""], ["conf/", "outputs/", "outputs/sweeps/beta/"]),
        (["eval", "outputs/runs/"], ["outputs/runs/one/"]),
        (["status", ".h"], [".hidden/"]),
        (["results", "--p"], ["--parquet"]),
        (["clean", "--fa"], ["--failed"]),
        (["help", "lora.ra"], ["lora.rank"]),
        (["--help", "spl"], ["split", "split.orientation", "split.seed", "split.test", "split.train",
             "split.validation"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
    ],
    ids=lambda value: " ".join(value),
)  # fmt: skip
def test_the_last_word_becomes(words: list[str], found: list[str]):
    assert candidates(words) == found


def test_the_first_word_can_be_every_command_and_group():
    first = candidates([""])
    assert {*NAMES, "model=", "sweeps=", "dpo.", "seed="} <= {*first}


def test_enums_complete_by_name():
    assert candidates(["dpo.loss="]) == sorted(f"dpo.loss={loss.name}" for loss in Loss)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("factdpo resu", ["results "]),
        ("factdpo lora.ra", ["lora.rank="]),
        ("factdpo -m model=nano,smo", ["nano,smollm2_135m "]),  # for bash a word begins after `=`
        ("factdpo dpo.loss=ap", ["apo_down ", "apo_zero "]),
        ("factdpo eval outputs/ru", ["outputs/runs/"]),
        ("factdpo results --csv my", []),  # bash then completes files by itself
    ],
)
def test_bash_completes(here: Path, line: str, replies: list[str]):
    code = (
        'source <(factdpo completion bash); COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDS=($1); '
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _factdpo; printf "[%s]\\n" "${COMPREPLY[@]}"; complete -p factdpo'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", code, "bash", line], capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[:-1] == [f"[{reply}]" for reply in replies or [""]]
    assert done.stdout.endswith(" -F _factdpo factdpo\n")
