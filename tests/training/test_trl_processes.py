"""One training by TRL in two processes on the CPU (gloo): the same gradients as one process, and nothing lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from factdpo.config.schema import (
    Config,
    ConfigError,
    EngineConfig,
    EngineName,
    Executor,
    ModelSource,
    RayConfig,
    SubmititConfig,
)
from factdpo.config.validate import validate
from factdpo.models import devices
from factdpo.models.base import load_base
from factdpo.models.logps import Diverged
from factdpo.models.scoring import pair_logps
from factdpo.runs.halving import Stopped
from factdpo.runs.identity import config_in_id, look_up
from factdpo.sweep import executors
from factdpo.training import trl_engine, trl_processes
from factdpo.training.engine import Member
from tests.helpers.architectures import tiny_model
from tests.helpers.tiny import tokenizer
from tests.helpers.training import training_pairs

CPU = torch.device("cpu")


def config(processes: int, **dpo: Any) -> Config:
    """16 facts, 4 steps of 4, scored after every second one; no dropout, which two processes draw otherwise."""
    cfg = Config()
    cfg.split.train, cfg.split.test = 16, 16
    cfg.lora.rank, cfg.lora.alpha, cfg.lora.dropout = 4, 8.0, 0.0
    cfg.engine.name, cfg.engine.processes, cfg.eval.every = EngineName.trl, processes, "2"
    for key, value in ({"epochs": None, "max_steps": 4, "batch_size": 4} | dpo).items():
        setattr(cfg.dpo, key, value)
    return validate(cfg)


Asked = Callable[..., None]


def trained(cfg: Config, folder: Path, record: Asked = lambda *rows: None) -> tuple[list[dict[str, Any]], dict]:
    """The history and the adapter of a training."""
    cfg.out = str(folder / "out")
    base = load_base(cfg.model, CPU, folder / "out")
    pairs = training_pairs(cfg, base)
    rows: list[dict[str, Any]] = []

    def keep(*new: dict[str, Any]) -> None:
        rows.extend(new)
        record(*new)

    (folder / "fit").mkdir(parents=True)
    member = Member(
        "0", cfg, pairs, pair_logps(base.model, pairs, 64), {"train": pairs.take(4)},
        lambda scores: {"eval/train/chosen_logp_nats": scores["train"].chosen.mean().item()}, keep,
    )  # fmt: skip
    fit = trl_engine.fit if cfg.engine.processes == 1 else trl_processes.fit
    (((_, ending),),) = fit(base, [member])
    if isinstance(ending, Exception):
        raise ending
    ending.save(folder / "fit")
    return rows, load_file(folder / "fit" / "adapter" / "adapter_model.safetensors")


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    (alone, weights), (shared, of_two) = (trained(config(n), tmp_path / str(n)) for n in (1, 2))
    assert [row["step"] for row in shared] == [row["step"] for row in alone] == [1, 2, 2, 3, 4, 4]
    noise = {"time_seconds", "rewards/accuracies"}  # at the first step all rewards are 0, but for rounding
    for one, two in zip(alone, shared, strict=True):
        assert {k: two[k] for k in one.keys() - noise} == pytest.approx(
            {k: one[k] for k in one.keys() - noise}, abs=1e-4
        )
    for name, tensor in weights.items():
        assert (of_two[name] - tensor).norm() < 1e-3 * tensor.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "dpo",
    [
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2, "max_steps": 2},
        {"retain_weight": 0.1},
        {"bf16": True},
    ],
)
def test_so_they_do_with_what_large_models_need(tmp_path: Path, dpo: dict[str, Any]) -> None:
    (_, weights), (_, of_two) = (trained(config(n, **dpo), tmp_path / str(n)) for n in (1, 2))
    limit = 0.2 if dpo.get("bf16") else 1e-3
    for name, tensor in weights.items():
        assert (of_two[name] - tensor).norm() < limit * tensor.norm(), name


@pytest.mark.slow
def test_so_they_do_where_some_adapters_are_never_called(tmp_path: Path) -> None:
    tiny_model("bart", vocab_size=2048).save_pretrained(tmp_path / "bart")
    tokenizer().save_pretrained(tmp_path / "bart")
    cfgs = [config(1), config(2)]
    for cfg in cfgs:
        cfg.model.source, cfg.model.id = ModelSource.pretrained, str(tmp_path / "bart")
    (_, weights), (_, of_two) = (trained(validate(cfg), tmp_path / str(n)) for n, cfg in enumerate(cfgs))
    for name, tensor in weights.items():
        assert (of_two[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


def of_training(command: int | None = None) -> list[psutil.Process]:
    """The processes that train for a command, by its process; without one, for this test."""
    found = []
    for child in psutil.Process(command).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # zombies too
            found += [child] * ("factdpo.training.trl_processes" in child.cmdline())
    return found


def test_a_process_that_is_killed_ends_the_training_by_name_and_leaves_none(tmp_path: Path) -> None:
    def kill_the_second(*rows: dict[str, Any]) -> None:
        second = next(child for child in of_training() if child.environ()["RANK"] == "1")
        os.kill(second.pid, signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"process 2 of engine.processes=2 is gone"):
        trained(config(2), tmp_path, kill_the_second)
    assert of_training() == []


@pytest.mark.slow
def test_what_the_run_raises_ends_all_of_them(tmp_path: Path) -> None:
    def stop(*rows: dict[str, Any]) -> None:
        raise Stopped("others did better")

    with pytest.raises(Stopped, match="others did better"):
        trained(config(2), tmp_path, stop)
    assert of_training() == []


@pytest.mark.slow
def test_what_diverges_ends_the_run_with_its_rows_and_where_it_was_found(tmp_path: Path) -> None:
    steps: list[int] = []
    with pytest.raises(Diverged, match="not finite") as raised:
        trained(config(2, learning_rate=1e30), tmp_path, lambda *rows: steps.extend(row["step"] for row in rows))
    assert steps == [1]  # scored after the second, before that is logged
    assert "trl_processes.py" in raised.value.__notes__[0]


@pytest.mark.slow
def test_none_outlives_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "factdpo", "engine.processes=2", "split.train=64", "dpo.epochs=200", "track=none"]
    with open(tmp_path / "said", "w") as said:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said)
    while not any(path.stat().st_size for path in tmp_path.glob("outputs/runs/*/history.jsonl")):  # they train
        assert running.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.2)
    started = of_training(running.pid)
    assert len(started) == 2
    for process in started:
        process.suspend()  # so that none notices that the pipe ended
    running.kill()
    running.wait()
    for process in started:
        process.resume()
    gone, alive = psutil.wait_procs(started, timeout=60)
    assert len(gone) == 2 and not alive


# ---------------------------------------------------------------------------------------------------------- the config


def test_processes_are_part_of_the_id_and_need_trl() -> None:
    assert config_in_id(config(1)) != config_in_id(config(2))
    cfg = config(2)
    cfg.engine.name = EngineName.auto
    assert look_up(cfg).engine == "trl (auto: only TRL does engine.processes=2)"
    cfg.engine.name = EngineName.batched
    with pytest.raises(ConfigError, match=r"engine=batched: cannot do engine.processes=2"):
        validate(cfg)


def test_batches_without_equal_shares_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"engine.processes=2: dpo.batch_size=3 has no equal shares; .* multiple of 2"
    ):
        config(2, batch_size=3)
    cfg = config(2, batch_size=6)
    cfg.out = str(tmp_path)
    with pytest.raises(ConfigError, match=r"16 training facts leave a last batch of 4 of dpo.batch_size=6"):
        look_up(cfg)


def test_more_processes_than_a_run_has_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "visible_gpus", lambda engine: ["0", "1"])
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda package: package)
    executors.check(EngineConfig(processes=2))
    with pytest.raises(ConfigError, match=r"engine.processes=3: .* a run has 2 GPUs .* give at most 2"):
        executors.check(EngineConfig(processes=3))
    with pytest.raises(ConfigError, match=r"engine.processes=2: .* a run has 1 GPU .* engine.workers=2"):
        executors.check(EngineConfig(processes=2, workers=2))
    with pytest.raises(ConfigError, match=r"engine.processes=4: .* a run has 2 GPUs with engine.executor=submitit"):
        executors.check(EngineConfig(processes=4, executor=Executor.submitit, submitit=SubmititConfig(gpus=2)))
    with pytest.raises(ConfigError, match=r"engine.processes=2: .* a run has 1 GPU with engine.executor=ray"):
        executors.check(EngineConfig(processes=2, executor=Executor.ray, ray=RayConfig(gpus=0.5)))
    monkeypatch.setattr(devices, "visible_devices", lambda: ["mps", "cpu"])
    with pytest.raises(ConfigError, match=r"torch sees mps, cpu; give at most 1, or engine.device=cpu"):
        devices.check_device(EngineConfig(processes=2))
    devices.check_device(EngineConfig(processes=2, device="cpu"))
