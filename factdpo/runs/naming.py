"""What people call a run: in tables, in W&B, and in the readable half of its folder's name. No name is in an id."""

import re
from functools import lru_cache
from typing import Any

from factdpo.config.overrides import flat, typed
from factdpo.config.schema import KEYS, Config, MethodName, to_dict
from factdpo.config.validate import validate
from factdpo.data.files import data_name, is_built_in

IN_THE_NAME = {"dpo.beta", "lora.rank", "lora.method", "dpo.seed", "split.seed", "seed", "method.name"}


def run_name(cfg: Config) -> str:
    """How people call the run in tables and in W&B: the settings that most sweeps vary, then what else its own does.

    A run alone says what it has other than the default. Facts of one's own are named after their file.
    """
    alone = _not_default(cfg) if cfg.label is None and cfg.sweep is None else []
    return " ".join([usual_name(cfg), *alone])


def usual_name(cfg: Config) -> str:
    """The settings that most sweeps vary, and what its sweep varies: `nano b=0.2 r=32 s=0`."""
    lora = f"r={cfg.lora.rank}" if cfg.lora.method.name == "lora" else "full"
    said = {
        "model": cfg.model.name, "method": cfg.method.name.name, "beta": f"{cfg.dpo.beta:g}",
        "rank": str(cfg.lora.rank), "seed": str(cfg.dpo.seed),
    }  # fmt: skip
    swept = [pair.split("=", 1) for pair in re.split(r" (?=\S+=)", cfg.label or "") if "=" in pair]
    more = [f"{key}={value}" for key, value in swept if said.get(key.rsplit(".", 1)[-1]) != value]
    own = [] if is_built_in(cfg.data) else [data_name(cfg.data)]
    method = [] if cfg.method.name is MethodName.dpo else [cfg.method.name.name]
    beta = [] if cfg.method.name is MethodName.sft else [f"b={cfg.dpo.beta:g}"]
    return " ".join([cfg.model.name, *method, *beta, lora, f"s={cfg.dpo.seed}", *own, *more])


def _not_default(cfg: Config) -> list[str]:
    """`train=150 epochs=4`: what a run alone has other than the default, beyond what its name says already."""
    default, own = _default(), flat(to_dict(cfg))
    decisive = [key for key in own if key in KEYS and KEYS[key].in_id and key not in IN_THE_NAME]
    keys = [key for key in decisive if not key.startswith(("data.", "model.", "engine."))]
    differing = [key for key in keys if _typed(own[key]) != _typed(default[key])]
    return [f"{key.rpartition('.')[2]}={_typed(own[key])}" for key in differing]


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else typed(value)


@lru_cache(maxsize=1)
def _default() -> dict[str, Any]:
    return flat(to_dict(validate(Config())))
