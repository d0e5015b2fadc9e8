"""Runs of seconds on the embedded model, and where they lie."""

from pathlib import Path
from typing import Any

from factdpo.config.schema import Config
from factdpo.config.validate import validate
from factdpo.runs.identity import RunSpec, look_up
from factdpo.runs.session import Session

FACTS: dict[str, Any] = {}  # read and checked, by any test of the process
WEIGHTS = "adapter/adapter_model.safetensors"


def small(out: Path, **changes: Any) -> Config:
    """A run of seconds: 16 facts, 12 steps; `changes` by key, as in split_train=8."""
    cfg = Config(out=str(out))
    cfg.split.train, cfg.split.test = 16, 12
    cfg.dpo.epochs, cfg.dpo.max_steps, cfg.dpo.batch_size = None, 12, 4
    cfg.eval.every, cfg.eval.generations = "6", 1
    cfg.track.wandb = False
    for key, value in changes.items():
        group, _, name = key.partition("_")
        setattr(getattr(cfg, group), name, value)
    return cfg


def spec_of(cfg: Config) -> RunSpec:
    """The run that a config asks for; its facts are read and checked once for all tests of the process."""
    return look_up(validate(cfg), kept=FACTS)


def new_session() -> Session:
    """A session that knows the facts and nothing else."""
    return Session(facts=FACTS)


def folder_of(out: Path, result: dict[str, Any]) -> Path:
    return next((out / "runs").glob(f"*-{result['id']}"))
