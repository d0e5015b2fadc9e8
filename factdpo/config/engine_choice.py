"""Which engine trains a run: the batched one where it computes everything that the config sets, TRL elsewhere."""

import dataclasses
from enum import Enum
from operator import attrgetter
from typing import Any

from factdpo.config.schema import ENGINE_TRL, KEYS, Config, EngineName, MethodName


def choose_engine(cfg: Config, quantised: bool = False) -> tuple[Config, str]:
    """The config with an engine in place of `auto`, and why in a few words; by what the config says, and not the base.

    A base that the batched engine cannot compute is found out later (runs/verdict.py). `quantised`: the base's weights
    are, which their files say and not the config.
    """
    if cfg.engine.name is not EngineName.auto:
        return cfg, "as asked"
    if alone := needs_trl(cfg) + ["quantised bases"] * quantised:
        return with_trl(cfg), f"auto: only TRL does {', '.join(alone)}"
    return dataclasses.replace(cfg, engine=dataclasses.replace(cfg.engine, name=EngineName.batched)), "auto"


def with_trl(cfg: Config) -> Config:
    """The same with TRL as its engine, and the batched engine's own keys at their defaults."""
    of_batched = {name.rpartition(".")[2]: key.default for name, key in KEYS.items() if key.dead is ENGINE_TRL}
    return dataclasses.replace(cfg, engine=dataclasses.replace(cfg.engine, name=EngineName.trl, **of_batched))


def needs_trl(cfg: Config) -> list[str]:
    """The settings that the batched engine cannot compute, as `key=value`; empty where it computes all."""
    settings = []
    for name, key in KEYS.items():
        if key.batched is None:
            continue
        value = attrgetter(name)(cfg)
        if isinstance(value, list):
            if others := [_typed(item) for item in value if item not in key.batched]:
                settings.append(f"{name}=[{', '.join(others)}]")
        elif value not in key.batched:
            settings.append(f"{name}={_typed(value)}")
    if cfg.method.name is MethodName.sft_dpo and cfg.lora.dropout > 0:
        settings.append(f"lora.dropout={cfg.lora.dropout:g} with method=sft_dpo")  # the frozen adapter has none
    return settings


def _typed(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
