"""benchmarks/sweep_speed.py: every part of it runs, and compares like with like."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sweep_speed.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep_speed", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweep_speed"] = module  # dataclasses looks for it there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("runs", [1, 2, 4, 8, 16, 64])
def test_the_sweep_has_as_many_runs_as_were_asked_for(bench: ModuleType, runs: int) -> None:
    assert math.prod(map(len, bench.grid(runs).values())) == runs


@pytest.mark.parametrize("runs", [0, 5, 12, 72, -8])
def test_a_sweep_that_is_no_grid_is_refused(bench: ModuleType, runs: int) -> None:
    with pytest.raises(SystemExit, match=f"--runs {runs}"):
        bench.grid(runs)


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 6, 8, 16, 64])
def test_a_grid_has_as_many_runs_as_it_is_asked_for(bench: ModuleType, runs: int) -> None:
    assert math.prod(map(len, bench.grid(runs).values())) == runs


@pytest.mark.slow
def test_both_engines_are_timed_on_the_same_losses_and_taken_apart(bench: ModuleType) -> None:
    setting = bench.Setting("nano", runs=2, facts=20, steps=1, answer_tokens=2, device="cpu", dtype="float32")
    rows = [bench.measure(way, setting, 2, bench.Probe) for way in ("trl-fp32", "batched")]
    trl, batched = bench.compared(rows)
    assert trl["trained_together"] == 1
    assert batched["trained_together"] == 2
    assert [len(losses) for losses in batched["losses"].values()] == [bench.WARMUP + 1 + 2] * 2
    assert batched["agrees"] and batched["apart"] < 1e-5
    assert batched["times_tuned"] == trl["run_step_seconds"] / batched["run_step_seconds"]
    assert 0 < batched["run_step_seconds"] == batched["step_seconds"] / 2
    assert batched["host_reads"] == 0 < trl["host_reads"]
    assert 0 < batched["flops"] < 2 * trl["flops"]  # of two runs, and of one
    assert trl["ms_and_calls_by_op"]["aten::addmm"][1] >= 16


def test_no_ratio_is_given_when_the_losses_differ(bench: ModuleType) -> None:
    rows = [
        {"way": "trl-fp32", "losses": {0: [0.7, 0.5]}, "run_step_seconds": 2.0},
        {"way": "batched", "losses": {0: [0.7, 0.5002]}, "run_step_seconds": 1.0},
    ]
    assert [row["agrees"] for row in bench.compared(rows)] == [True, False]
    assert all("times_tuned" not in row for row in rows)
    rows[1]["losses"] = {0: [0.7, math.nan]}
    assert [row["agrees"] for row in bench.compared(rows)] == [True, False]
    rows[1]["losses"] = {0: [0.7, 0.5]}
    assert bench.compared(rows)[1]["times_tuned"] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "steady --shape nano --runs 2 --steps 1 --sample 1",
        "scaling --over facts --values 16 --shape nano --runs 2",
        "steady --shape nano --runs 2 --steps 1 --sample 1 --ways trl-fp32 batched batched-launched",
        "profile --shape nano --runs 2 --steps 1 --ways batched",
        "crowd --shape nano --processes 2 --steps 1 --ways batched",
        "end-to-end --ways commands batched --at-once --runs 3 --sample 1 split.train=24 split.test=20 dpo.epochs=1",
        "end-to-end --runs 2 --sample 1 split.train=24 split.test=20 dpo.epochs=1 eval.every=never",
    ],
)
def test_a_command_prints_its_table_and_keeps_its_numbers(command: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, *command.split()[:1], "--json", kept, *command.split()[1:]],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "batched" in done.stdout and "torch" in done.stdout
    assert all(row.get("agrees", True) for row in json.loads(kept.read_text())["rows"])
