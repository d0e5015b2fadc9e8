"""Sweeps of the real command line that are killed, stopped, and started twice at once; minutes, so marked slow."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.runs import WEIGHTS

pytestmark = pytest.mark.slow

KILLS = 10
TINY = ["track=none", "split.train=20", "split.test=8", "dpo.epochs=1", "eval.every=never", "eval.generations=0"]


def command(out: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "factdpo", "-m", f"out={out}", "sweep=s", *TINY, *overrides]


def start(out: Path, *overrides: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(out, *overrides), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its exit code and all that it printed."""
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def results(out: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """id -> folder and result.json of the runs that have one."""
    read = [(path.parent, json.loads(path.read_text())) for path in (out / "sweeps/s").glob("*/result.json")]
    return {result["id"]: (folder, result) for folder, result in read}


def test_a_sweep_killed_ten_times_comes_to_the_same_end(tmp_path: Path) -> None:
    """SIGKILL at random moments; FINISHED runs never change again; weights and scores as left in peace.

    Weights to the bit; log-probs within float32's rounding, for a run killed between its training and its scoring is
    scored alone, and not together with the others of its batch.
    """
    axes = [
        "seed=0,1,2,3", "dpo.beta=0.1,0.5", "split.train=60", "dpo.epochs=30", "lora.dropout=0.1", "eval.every=20",
        "engine.max_runs=3", "engine.save_every=10",
    ]  # fmt: skip
    began = time.monotonic()
    code, said = end(start(tmp_path / "peace", *axes))
    seconds = time.monotonic() - began
    assert code == 0, said
    rng, finished = random.Random(0), {}
    told: list[str] = []
    for _ in range(KILLS):
        process = start(tmp_path / "killed", *axes)
        time.sleep(rng.uniform(0.08, 0.22) * seconds)  # starting up takes the first of it
        os.killpg(process.pid, signal.SIGKILL)
        code, said = end(process)
        assert code == -signal.SIGKILL, "it was done before; a longer sweep is needed"
        told.append(said)
        now = results(tmp_path / "killed")
        for id, (folder, _) in now.items():
            stamp = (folder / "result.json").stat()
            assert finished.setdefault(id, (stamp.st_mtime_ns, stamp.st_ino)) == (stamp.st_mtime_ns, stamp.st_ino)
        assert set(finished) == now.keys(), "a finished run was lost"
    code, said = end(start(tmp_path / "killed", *axes))
    assert code == 0, said
    peace, killed = results(tmp_path / "peace"), results(tmp_path / "killed")
    assert peace.keys() == killed.keys() and len(peace) == 8
    for id, (folder, result) in killed.items():
        assert (folder / WEIGHTS).read_bytes() == (peace[id][0] / WEIGHTS).read_bytes()
        for key in ("state", "base", "baselines", "canaries"):
            assert result[key] == peace[id][1][key], (id, key)
        for split, scores in result["trained"].items():
            there = peace[id][1]["trained"][split]
            assert scores.pop("answer_shares") == there.pop("answer_shares")
            assert scores == pytest.approx(there, abs=1e-4), (id, split)
    assert not list((tmp_path / "killed/cache/batches").iterdir()), "a checkpoint that nobody wants any more"
    print(f"{seconds:.0f} s in peace; going on from a checkpoint {''.join(told).count('going on from step')} times")


def test_two_commands_with_the_same_runs_in_another_order_share_them(tmp_path: Path) -> None:
    one, other = start(tmp_path, "seed=0,1,2", "engine.max_runs=1"), start(tmp_path, "seed=2,1,0", "engine.max_runs=1")
    ends = [end(one), end(other)]
    assert [code for code, _ in ends] == [0, 0], ends
    assert len(results(tmp_path)) == 3
    lines = [line for _, said in ends for line in said.splitlines() if line.startswith("FINISHED")]
    assert sorted(line.split()[1] for line in lines) == ["seed=0", "seed=1", "seed=2"], "each was done once"


def test_runs_of_a_killed_command_go_to_the_one_that_waits(tmp_path: Path) -> None:
    asked = ["seed=0,1", "dpo.epochs=300", "engine.save_every=20"]
    killed = start(tmp_path, *asked)
    while not list((tmp_path / "sweeps/s").glob("*/history.jsonl")):
        assert killed.poll() is None, end(killed)
        time.sleep(0.05)
    waiting = start(tmp_path, *asked)
    assert waiting.stdout is not None
    while "is being run by another process; waiting for it" not in (line := waiting.stdout.readline()):
        assert line, "it ended"
    os.killpg(killed.pid, signal.SIGKILL)
    assert end(killed)[0] == -signal.SIGKILL
    code, said = end(waiting)
    assert code == 0, said
    assert [result["state"] for _, result in results(tmp_path).values()] == ["FINISHED"] * 2
    log = next((tmp_path / "sweeps/s").glob("seed=0*/run.log")).read_text()
    assert "going on from step" in log


def test_of_eight_runs_one_raises_one_diverges_and_one_is_killed(tmp_path: Path) -> None:
    """Each in a process of its own; the table names the three states, and the same command does what can be done."""
    rates = ["0.001", "0.002", "0.003", "0.004", "0.005", "0.006", "0.007", "1e+30"]
    asked = [f"dpo.learning_rate={','.join(rates)}", "dpo.max_grad_norm=0", "dpo.epochs=2"]
    _, plan = end(start(tmp_path, *asked, "dry_run=true"))
    ids = {line.split("learning_rate=")[1]: line.split()[0] for line in plan.splitlines() if "learning_rate=" in line}
    raises, killed = (tmp_path / f"sweeps/s/learning_rate={rate}-{ids[rate]}" for rate in ("0.006", "0.007"))
    (raises / "history.jsonl").mkdir(parents=True)  # where a file is to be
    sweep = start(tmp_path, *asked, "hydra/launcher=submitit_local")
    while not (workers := [child for child in children(sweep.pid) if has_open(child, killed / "run.log")]):
        assert sweep.poll() is None, end(sweep)
        time.sleep(0.01)
    workers[0].kill()
    code, said = end(sweep)
    assert code == 1 and "LocalLauncher lost its jobs (UncompletedJobError: " in said, said
    table = dict(re.findall(r"^(\S+) +1 \(1 (\w+)\) +-", said, re.MULTILINE))
    assert table == {"0.006": "FAILED", "0.007": "killed", "1e+30": "DIVERGED"}, said
    assert "\ns: 5 FINISHED, 1 FAILED, 1 DIVERGED, 1 killed; " in said
    assert "Traceback" in (raises / "run.log").read_text()
    (raises / "history.jsonl").rmdir()
    code, said = end(start(tmp_path, *asked))
    assert code == 1 and "s: 8 runs: 5 FINISHED, 1 FAILED, 1 DIVERGED, 1 to do" in said
    assert "\ns: 7 FINISHED, 1 DIVERGED; " in said


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def has_open(process: psutil.Process, path: Path) -> bool:
    try:
        return any(file.path == str(path) for file in process.open_files())
    except psutil.Error:  # it is gone
        return False


@pytest.mark.parametrize("launcher", ["batched", "basic"])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_stopped_says_so_and_exits_with_the_signals_code(
    tmp_path: Path, launcher: str, number: int, exit_code: int
) -> None:
    process = start(tmp_path, "seed=0,1", "dpo.epochs=2000", f"hydra/launcher={launcher}")
    while not any(path.stat().st_size for path in (tmp_path / "sweeps/s").glob("*/history.jsonl")):
        assert process.poll() is None, end(process)
        time.sleep(0.05)
    process.send_signal(number)
    code, said = end(process)
    assert code == exit_code, said
    assert "2 PREEMPTED" in said if launcher == "batched" else "1 PREEMPTED, 1 to do" in said
    assert list((tmp_path / "cache/batches").glob("*/[0-9]*/state.json")), "a checkpoint"
