"""Workers in processes, jobs and tasks of their own, killed and stopped; minutes, so marked slow."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.runs import WEIGHTS

pytestmark = pytest.mark.slow

# Two cohorts of two runs, in one process as with two workers: so the bytes are the same. Checkpoints come early.
SWEEP = [
    "sweep=s", "track=none", "split.train=60", "split.test=20", "dpo.epochs=40", "eval.every=never", "seed=0,1,2,3",
    "eval.generations=0", "engine.max_runs=2", "engine.save_every=20",
]  # fmt: skip
SUBMITIT = ["engine.executor=submitit", "engine.submitit.cluster=local"]
LOST = "a worker was lost with 2 runs to do; another one goes on from their last checkpoint\n"


def start(out: Path, *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "factdpo", "-m", f"out={out}", *SWEEP, *overrides]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its exit code and all that it printed."""
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def training(out: Path, process: "subprocess.Popen[str]") -> psutil.Process:
    """A process, of all on this machine, that is at work on the runs of a cohort that has a checkpoint."""
    while True:
        for state in (out / "cache/batches").glob("*/[0-9]*/state.json"):
            lock = state.parents[1] / "lock"
            if found := [each for each in psutil.process_iter() if has_open(each, lock)]:
                return found[0]
        assert process.poll() is None, end(process)
        time.sleep(0.05)


def has_open(process: psutil.Process, path: Path) -> bool:
    try:
        return any(file.path == str(path) for file in process.open_files())
    except psutil.Error:  # it is gone, or another user's
        return False


def runs(out: Path) -> dict[str, dict[str, Any]]:
    """Folder -> what decides of a run, and its weights."""
    kept: dict[str, dict[str, Any]] = {}
    for path in (out / "sweeps/s").glob("*/result.json"):
        result = json.loads(path.read_text())
        kept[path.parent.name] = {key: result.get(key) for key in ("id", "state", "base", "trained", "across")}
        if result["state"] == "FINISHED":
            kept[path.parent.name]["weights"] = (path.parent / WEIGHTS).read_bytes()
    return kept


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The runs as one process does them."""
    out = tmp_path_factory.mktemp("peace")
    code, said = end(start(out))
    assert code == 0, said
    return runs(out)


def finished_as_in_peace(process: "subprocess.Popen[str]", out: Path, peace: dict[str, dict[str, Any]]) -> str:
    code, said = end(process)
    assert code == 0, said
    assert runs(out) == peace and len(peace) == 4
    assert sorted(re.findall(r"^FINISHED  (\S+)", said, re.MULTILINE)) == [f"seed={seed}" for seed in range(4)]
    return said


@pytest.mark.parametrize("executor", [[], SUBMITIT], ids=["local", "submitit"])
def test_a_killed_worker_costs_no_run_and_changes_no_byte(
    tmp_path: Path, peace: dict[str, dict[str, Any]], executor: list[str]
) -> None:
    process = start(tmp_path, "engine.workers=2", *executor)
    training(tmp_path, process).kill()
    assert LOST in finished_as_in_peace(process, tmp_path, peace)


def test_a_job_that_slurm_is_about_to_end_makes_a_checkpoint_and_is_requeued(
    tmp_path: Path, peace: dict[str, dict[str, Any]]
) -> None:
    process = start(tmp_path, "engine.workers=2", "engine.save_every=1000", *SUBMITIT)
    while not (begun := [path.parent for path in tmp_path.glob("sweeps/s/*/history.jsonl") if path.stat().st_size]):
        assert process.poll() is None, end(process)
        time.sleep(0.05)
    (worker,) = [each for each in psutil.process_iter() if has_open(each, begun[0] / "history.jsonl")]
    worker.send_signal(signal.SIGUSR2)
    said = finished_as_in_peace(process, tmp_path, peace)
    assert "going on from step " in said and LOST not in said


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_workers_with_a_checkpoint(
    tmp_path: Path, peace: dict[str, dict[str, Any]], number: int, exit_code: int
) -> None:
    process = start(tmp_path, "engine.workers=2")
    training(tmp_path, process)
    process.send_signal(number)
    code, said = end(process)
    assert code == exit_code, said
    assert "4 runs were interrupted; rerun the same command to resume\n" in said
    assert [run["state"] for run in runs(tmp_path).values()] == ["PREEMPTED"] * 4
    assert not any((tmp_path / "cache/shares").iterdir())
    finished_as_in_peace(start(tmp_path), tmp_path, peace)  # by one process, which finds the workers' checkpoints


def test_workers_of_a_killed_command_end_themselves_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, "engine.workers=2")
    worker = training(tmp_path, process)
    process.kill()
    end(process)
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()
    assert {run["state"] for run in runs(tmp_path).values()} == {"PREEMPTED"}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of three nodes, one core each, all on this machine."""
    pytest.importorskip("ray", reason="engine.executor=ray needs ray[default]")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    for _ in range(2):
        nodes.add_node(**node)
    yield nodes
    nodes.shutdown()


def test_a_killed_node_of_a_ray_cluster_costs_no_run_and_changes_no_byte(
    tmp_path: Path, peace: dict[str, dict[str, Any]], cluster: Any
) -> None:
    address = f"engine.ray.address={cluster.address}"
    process = start(tmp_path, "engine.workers=2", "engine.executor=ray", address)
    head = cluster.head_node.all_processes["raylet"][0].process.pid
    while (node := training(tmp_path, process).ppid()) == head:  # through which the command speaks with Ray
        time.sleep(0.05)
    raylet = psutil.Process(node)
    for lost in [raylet, *raylet.children(recursive=True)]:  # all that ran on the node
        lost.kill()
    said = finished_as_in_peace(process, tmp_path, peace)
    assert LOST in said and "raylet" not in said
