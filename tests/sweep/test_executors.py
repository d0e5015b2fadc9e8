"""Where workers run: their cores and GPUs, what is asked of Slurm, and what is refused before anything starts."""

import importlib.util
import os
from pathlib import Path

import pytest

from factdpo.config.schema import Cluster, Config, ConfigError, EngineConfig, Executor, SubmititConfig
from factdpo.config.validate import validate
from factdpo.sweep import executors

NO_GPUS: list[str] = []


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_workers_have_their_own_cores_and_as_many_threads() -> None:
    two = executors.places([0, 1, 2, 3, 8], 16, NO_GPUS, 2)
    assert two == [([0, 1], {"OMP_NUM_THREADS": "2"}), ([2, 3], {"OMP_NUM_THREADS": "2"})]


def test_more_workers_than_cores_are_bound_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert executors.places([0, 1], 2, NO_GPUS, 3) == [(None, {"OMP_NUM_THREADS": "1"})] * 3
    assert executors.places(None, 8, NO_GPUS, 2) == [(None, {"OMP_NUM_THREADS": "4"})] * 2  # macOS binds none
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert executors.places([0, 1, 2, 3], 4, NO_GPUS, 2)[0] == ([0, 1], {"OMP_NUM_THREADS": "1"})


def test_each_worker_sees_one_gpu() -> None:
    found = executors.places([0, 1], 2, ["3", "GPU-5f"], 2)
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in found] == ["3", "GPU-5f"]


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "visible_gpus", lambda engine: ["0", "1"])
    executors.check(EngineConfig(workers=2))
    with pytest.raises(ConfigError, match=r"engine.workers=4: .* engine.device=auto has 2 GPUs here; give at most 2"):
        executors.check(EngineConfig(workers=4))


def test_on_a_cpu_no_gpu_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert executors.visible_gpus(EngineConfig(device="cpu")) == []


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_an_executor_that_is_not_installed_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"engine.executor={name}: {name} is not installed; pip install '{name}"):
        executors.check(EngineConfig(executor=Executor[name]))


def test_many_processes_for_one_command_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2: started by `accelerate launch`.*engine.workers=N"):
        executors.check(EngineConfig())
    monkeypatch.setenv("WORLD_SIZE", "1")
    executors.check(EngineConfig())


def test_slurm_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    with pytest.raises(ConfigError, match=r"engine.executor=submitit: no srun on this machine"):
        executors.check(EngineConfig(executor=Executor.submitit))
    executors.check(EngineConfig(executor=Executor.submitit, submitit=SubmititConfig(cluster=Cluster.local)))


def test_no_worker_and_keys_of_another_executor_are_refused() -> None:
    cfg = Config()
    cfg.engine.workers = 0
    cfg.engine.submitit.partition, cfg.engine.ray.address = "gpu", "auto"
    with pytest.raises(ConfigError) as refused:
        validate(cfg)
    assert str(refused.value).splitlines() == [
        "engine.workers=0: must be at least 1, and finite",
        "engine.submitit.partition=gpu: has no effect with engine.executor=local; leave it at None",
        "engine.ray.address=auto: has no effect with engine.executor=local; leave it at None",
    ]


def test_what_slurm_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that sbatch gets, of two jobs as one array; sbatch itself is a script that keeps it."""
    pytest.importorskip("submitit", reason="engine.executor=submitit needs submitit")
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text(f"#!/bin/sh\ncp $1 {tmp_path}/asked\necho Submitted batch job 7\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cfg = SubmititConfig(
        partition="gpu", account="me", minutes=90, gpus=1, cpus=4, memory_gib=20.0, at_once=1,
        setup=["module load cuda"],
    )  # fmt: skip
    shares = [tmp_path / "a", tmp_path / "b"]
    executors.SubmititWorkers(cfg, tmp_path / "jobs").start(shares)
    lines = (tmp_path / "asked").read_text().splitlines()
    flags = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    expected = {
        "partition": "gpu", "account": "me", "time": "90", "gpus-per-node": "1", "cpus-per-task": "4", "mem": "20GB",
        "array": "0-1%1", "signal": "USR2@90", "requeue": "", "job-name": "factdpo", "open-mode": "append",
    }  # fmt: skip
    assert expected.items() <= flags.items()
    assert "qos" not in flags and "module load cuda" in lines
