"""N runs are N runs in W&B with every row of their histories, whoever launched and trained them, as W&B reads them."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from factdpo.store.history import read_history
from factdpo.tracking.wandb_views import STEP, row_of
from tests.helpers.wandb_records import offline_runs

TINY = ["split.train=20", "split.test=8", "dpo.epochs=1", "eval.generations=1"]
CANARY = "canary-5f0c1d"

# Several command lines in one process: torch takes seconds to import.
COMMANDS = """
import json, sys
from factdpo.commands.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
"""


def factdpo(out: Path, *commands: list[str]) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"WANDB_API_KEY": f"{CANARY:x<40}", "WANDB_MODE": "offline", "CANARY_TOKEN": CANARY}
    asked = [[*command, *TINY, f"out={out}"] for command in commands]
    script = [sys.executable, "-c", COMMANDS, json.dumps(asked)]
    done = subprocess.run(script, cwd=out, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "warning" not in done.stdout, done.stdout + done.stderr


def about(records: list[dict[str, Any]]) -> dict[str, Any]:
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    return run


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def told(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary at the end of the run."""
    found: dict[str, Any] = {}
    for record in records:
        found |= record["summary"].get("update", {}) if record["type"] == "summary" else {}
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single run, a sweep under our launcher and one under Hydra's own."""
    out = tmp_path_factory.mktemp("out")
    factdpo(
        out,
        ["seed=3", "track.tags=[tiny]", "track.log_adapter=true"],
        ["-m", "dpo.beta=0.1,0.4", "lora.alpha=8", "sweep=ours", "track.log_adapter=true"],
        ["-m", "dpo.loss=[hinge],[sigmoid]", "sweep=basic", "hydra/launcher=basic"],
    )
    return out


@pytest.mark.parametrize(("place", "runs"), [("runs", 1), ("sweeps/ours", 2), ("sweeps/basic", 2)])
def test_every_run_is_one_run_in_wandb_with_all_its_rows(out: Path, place: str, runs: int) -> None:
    folders = [path.parent for path in sorted((out / place).glob("*/result.json"))]
    assert len(folders) == runs
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        (records,) = offline_runs(folder)
        run, local = about(records), read_history(folder / "history.jsonl")
        assert (run["run_id"], run["display_name"], run["job_type"]) == (result["id"], result["name"], "run")
        assert run.get("run_group") == (None if place == "runs" else Path(place).name)
        first = row_of(local[0])
        assert {"train/loss", "train/global_step", "train/rewards/margins", "train/learning_rate"} <= first.keys()
        logged = [{key: row.get(key) for key in first if key in row} for row in rows(records)]
        assert [row[STEP] for row in logged[:-1]] == [row["step"] for row in local]  # the last has tables and figures
        assert logged[0] == pytest.approx(first)
        scores = told(records)
        assert scores["accuracy/test"] == result["trained"]["test"]["accuracy"]
        metrics = [record["metric"] for record in records if record["type"] == "metric"]
        peaks = {one["name"] for one in metrics if one.get("summary") == {"last": True, "max": True}}
        splits = [f"eval/{split}/accuracy" for split in result["trained"]]
        assert peaks == {"train/rewards/accuracies", *splits}
        assert {one.get("step_metric") for one in metrics} == {None, STEP}
        numbers = [
            key for key in scores if key[0] != "_" and "." not in key
        ]  # with a dot: parts of tables and pictures
        assert "balanced_accuracy/test" not in scores and len(numbers) < 40 and scores["scores.nrows"] > 80


def test_runs_are_named_by_what_differs(out: Path) -> None:
    names = {about(records)["display_name"] for records in offline_runs(out / "sweeps" / "basic")}
    assert names == {"nano b=0.2 r=32 s=0 loss=hinge", "nano b=0.2 r=32 s=0 loss=sigmoid", "basic"}
    ours = {about(records)["display_name"] for records in offline_runs(out / "sweeps" / "ours")}
    assert ours == {"nano b=0.1 r=32 s=0", "nano b=0.4 r=32 s=0", "ours"}


def test_a_sweep_ends_with_a_run_that_says_what_came_of_it(out: Path) -> None:
    folder = out / "sweeps" / "basic"
    (records,) = offline_runs(folder / "wandb")
    run, scores = about(records), told(records)
    assert run["run_id"] == json.loads((folder / "sweep.json").read_text())["id"]
    assert (run["display_name"], run["run_group"], run["job_type"]) == ("basic", "basic", "sweep")
    assert (scores["runs"], scores["runs/FINISHED"], scores["runs.nrows"]) == (2, 2, 2)
    accuracies = [json.loads(path.read_text())["trained"]["test"]["accuracy"] for path in folder.glob("*/result.json")]
    assert scores["best/accuracy/test"] == max(accuracies)
    figures = {key.removesuffix(".format") for key in scores if key.endswith(".format")}
    assert figures == {"accuracy_by/dpo.loss"}
    assert [record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit"] == [0]


def test_adapters_are_versions_of_one_artifact_per_sweep_and_its_best_is_named_so(out: Path) -> None:
    found = [
        (record["artifact"]["name"], alias, record["artifact"]["digest"])
        for records in offline_runs(out)
        for record in records
        if record["type"] == "artifact" and record["artifact"]["type"] == "adapter"
        for alias in record["artifact"]["aliases"]
        if alias != "latest"
    ]
    assert Counter(name for name, _, _ in found) == {"adapter-nano": 1, "adapter-ours": 3}
    (best,) = [digest for _, alias, digest in found if alias == "best"]
    assert [digest for _, _, digest in found].count(best) == 2  # the same files: W&B gives its version both names


def test_no_secret_reaches_what_wandb_is_told(out: Path) -> None:
    (run,) = offline_runs(out / "runs")
    assert about(run)["tags"] == ["tiny"]
    for path in out.rglob("wandb/**/*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_sweep_that_is_answered_leaves_its_run_as_it_is_and_a_grown_one_replaces_it(out: Path) -> None:
    (before,) = (out / "sweeps" / "ours" / "wandb").glob("offline-run-*")
    ours = ["-m", "lora.alpha=8", "sweep=ours", "track.log_adapter=true"]
    factdpo(out, [*ours, "dpo.beta=0.1,0.4"])
    assert [*before.parent.glob("offline-run-*")] == [before]
    factdpo(out, [*ours, "dpo.beta=0.1,0.2"])
    (after,) = (out / "sweeps" / "ours" / "wandb").glob("offline-run-*")
    assert after != before and after.name[-12:] == before.name[-12:]
    (records,) = offline_runs(after.parent)
    assert told(records)["runs"] == 3


@pytest.mark.slow
def test_trl_gives_a_run_in_wandb_for_each_of_its_own(tmp_path: Path) -> None:
    factdpo(tmp_path, ["-m", "seed=0,1", "engine=trl", "sweep=trl"], ["-m", "seed=0,1", "sweep=trl", "engine=trl"])
    assert len(offline_runs(tmp_path)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_with_processes_of_their_own_give_each_run_its_own(tmp_path: Path, launcher: str) -> None:
    factdpo(tmp_path, ["-m", "seed=0,1", f"hydra/launcher={launcher}", "sweep=theirs"])
    folders = [path.parent for path in (tmp_path / "sweeps" / "theirs").glob("*/result.json")]
    assert len(folders) == 2 and len(offline_runs(tmp_path)) == 3  # and the sweep's
    for folder in folders:
        (records,) = offline_runs(folder)
        assert (about(records)["run_id"], about(records)["run_group"]) == (folder.name.rpartition("-")[2], "theirs")
        assert len(rows(records)) == len(read_history(folder / "history.jsonl")) + 1  # tables and figures
