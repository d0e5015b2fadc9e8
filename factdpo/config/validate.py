"""What of a config cannot be run is refused here, key by key, before anything heavy is imported."""

import dataclasses
import functools
import math
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from factdpo.config.schema import (
    ColumnsConfig,
    Config,
    ConfigError,
    DataSource,
    Divergence,
    Dtype,
    EngineConfig,
    EngineName,
    LoraConfig,
    Loss,
    Method,
    ModelSource,
    Schedule,
    folder_name,
    needs_trl,
    to_dict,
)

SMOOTHED = {Loss.robust, Loss.exo_pair, Loss.aot, Loss.aot_unpaired}
# TRL: the partition function cancels in the reward difference only, so only these take another f-divergence.
F_DIVERGENCE = {
    Loss.sigmoid, Loss.sigmoid_norm, Loss.hinge, Loss.ipo, Loss.exo_pair, Loss.robust, Loss.discopop, Loss.sft,
}  # fmt: skip


def validate(cfg: DictConfig | Config) -> Config:
    """Plain dataclasses of a config that can be run; raises ConfigError with every problem, by key."""
    unknown: list[str] = []
    try:
        if isinstance(cfg, Config):  # from Python: the same type checks that Hydra's overrides get
            unknown = _unknown(cfg)
            cfg = typing.cast(DictConfig, OmegaConf.merge(_schema(), dataclasses.asdict(cfg)))
        plain = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    if not isinstance(plain, Config):
        raise ConfigError(
            f"conf/config.yaml: not built on factdpo's schema ({type(plain).__name__}); one in the current folder "
            "replaces factdpo's own: begin its defaults list with `schema`, as ours does, or start from another folder"
        )
    problems = [*unknown, *_unknown(plain), *_ranges(plain), *_combinations(plain), *_without_effect(plain)]
    if problems:
        raise ConfigError("\n".join(problems))
    return plain


@functools.cache
def _schema() -> DictConfig:
    """OmegaConf takes longer to read the dataclasses than to merge into what it read; `merge` copies it."""
    return typing.cast(DictConfig, OmegaConf.structured(Config))


def from_dict(values: dict[str, Any]) -> Config:
    """The validated config of which `to_dict` made `values`."""
    try:
        merged = OmegaConf.merge(_schema(), values)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    return validate(typing.cast(DictConfig, merged))


def _unknown(node: Any, prefix: str = "") -> list[str]:
    """Keys that the schema does not have: `+lora.rnk=3` adds one, and nothing would read it."""
    known = [f.name for f in dataclasses.fields(node)]
    found = [
        f"{prefix}{key}: no such key; {prefix.rstrip('.') or 'a config'} has {', '.join(known)}"
        for key in vars(node).keys() - set(known)
    ]
    return found + [
        problem
        for name in known
        if dataclasses.is_dataclass(getattr(node, name))
        for problem in _unknown(getattr(node, name), f"{prefix}{name}.")
    ]


def _ranges(cfg: Config) -> list[str]:
    """Values that no run can have, each as `key=found: what is allowed`."""
    inf = math.inf
    bounds: list[tuple[str, float | None, float, float]] = [
        ("split.train", cfg.split.train, 1, inf),
        ("split.test", cfg.split.test, 0, inf),
        ("split.seed", cfg.split.seed, 0, 2**32 - 1),
        ("data.max_length", cfg.data.max_length, 2, inf),
        ("lora.rank", cfg.lora.rank, 1, inf),
        ("lora.dropout", cfg.lora.dropout, 0, 0.999),
        ("dpo.label_smoothing", cfg.dpo.label_smoothing, 0, 0.499999),
        ("dpo.ld_alpha", cfg.dpo.ld_alpha, 0, 1),
        ("dpo.max_steps", cfg.dpo.max_steps, 1, inf),
        ("dpo.batch_size", cfg.dpo.batch_size, 1, inf),
        ("dpo.gradient_accumulation_steps", cfg.dpo.gradient_accumulation_steps, 1, inf),
        ("dpo.warmup_ratio", cfg.dpo.warmup_ratio, 0, 0.999),
        ("dpo.max_grad_norm", cfg.dpo.max_grad_norm, 0, inf),
        ("dpo.weight_decay", cfg.dpo.weight_decay, 0, inf),
        ("dpo.adam_beta1", cfg.dpo.adam_beta1, 0, 0.999999),
        ("dpo.adam_beta2", cfg.dpo.adam_beta2, 0, 0.999999),
        ("dpo.seed", cfg.dpo.seed, 0, 2**32 - 1),
        ("eval.max_facts", cfg.eval.max_facts, 1, inf),
        ("eval.batch_size", cfg.eval.batch_size, 1, inf),
        ("eval.generations", cfg.eval.generations, 0, inf),
        ("eval.max_new_tokens", cfg.eval.max_new_tokens, 1, inf),
        ("engine.max_runs", cfg.engine.max_runs, 1, inf),
        ("engine.max_tokens", cfg.engine.max_tokens, 1, inf),
        ("engine.save_every", cfg.engine.save_every, 1, inf),
        ("track.log_every", cfg.track.log_every, 1, inf),
        ("retries", cfg.retries, 0, inf),
    ]
    above_zero = {
        "lora.alpha": cfg.lora.alpha, "dpo.beta": cfg.dpo.beta, "dpo.epochs": cfg.dpo.epochs,
        "dpo.learning_rate": cfg.dpo.learning_rate, "dpo.adam_epsilon": cfg.dpo.adam_epsilon,
        "dpo.discopop_tau": cfg.dpo.discopop_tau,
    }  # fmt: skip
    # `not low <= x <= high` also catches NaN; an infinite rate or beta is as wrong as a negative one.
    return [
        f"{key}={found}: must be {'at least ' + str(low) if high == inf else f'between {low} and {high}'}, and finite"
        for key, found, low, high in bounds
        if found is not None and not (low <= found <= high and math.isfinite(found))
    ] + [
        f"{key}={found}: must be above 0, and finite"
        for key, found in above_zero.items()
        if found is not None and not (found > 0 and math.isfinite(found))
    ]


def _combinations(cfg: Config) -> list[str]:
    """Values that are fine alone and impossible together."""
    dpo, lora, losses = cfg.dpo, cfg.lora, set(cfg.dpo.loss)
    found = []
    if (dpo.epochs is None) == (dpo.max_steps is None):
        found.append(
            f"dpo.epochs={dpo.epochs}, dpo.max_steps={dpo.max_steps}: give exactly one "
            "(to train by steps: dpo.epochs=null dpo.max_steps=N)"
        )
    if not dpo.loss:
        found.append("dpo.loss=[]: give at least one loss, for instance dpo.loss=[sigmoid]")
    if len(losses) != len(dpo.loss):
        found.append(f"dpo.loss={[x.name for x in dpo.loss]}: a loss stands in it twice; give each once, with a weight")
    if dpo.loss_weights is not None and len(dpo.loss_weights) != len(dpo.loss):
        found.append(f"dpo.loss_weights={dpo.loss_weights}: give one weight for each of the {len(dpo.loss)} losses")
    if Loss.exo_pair in losses and dpo.label_smoothing == 0:
        found.append("dpo.label_smoothing=0.0: exo_pair needs it above 0 (its paper takes 0.001)")
    if dpo.f_divergence is not Divergence.reverse_kl and not losses <= F_DIVERGENCE:
        wrong = ", ".join(sorted(x.name for x in losses - F_DIVERGENCE))
        found.append(f"dpo.f_divergence={dpo.f_divergence.name}: not defined for dpo.loss={wrong}; use reverse_kl")
    if dpo.wpo and losses & {Loss.aot, Loss.aot_unpaired}:
        found.append("dpo.wpo=true: aot sorts the pairs, which would misalign their weights; leave one of them out")
    if dpo.ld_alpha is not None and lora.method is Method.full:
        found.append(
            f"dpo.ld_alpha={dpo.ld_alpha}: not with lora=none; LD-DPO's reference is the base under the adapter"
        )
    if dpo.wpo and Loss.sft in losses:
        found.append("dpo.wpo=true: weighs pairs, and sft has one loss for the whole batch; leave one of them out")
    if dpo.bf16 and cfg.model.dtype is Dtype.float16:
        found.append("dpo.bf16=true: not on float16 weights; use model.dtype=float32 or bfloat16")
    if dpo.loss_weights is not None and not (all(map(math.isfinite, dpo.loss_weights)) and any(dpo.loss_weights)):
        found.append(f"dpo.loss_weights={dpo.loss_weights}: must be finite, and not all 0")
    if not math.isfinite(dpo.f_alpha):
        found.append(f"dpo.f_alpha={dpo.f_alpha}: must be finite")
    if not lora.target_modules:
        found.append("lora.target_modules=[]: nothing would be trained; the default is [all-linear]")
    if "all-linear" in lora.target_modules and len(lora.target_modules) > 1:
        found.append(f"lora.target_modules={lora.target_modules}: all-linear stands alone or not at all")
    if cfg.eval.every not in ("epoch", "never") and not (cfg.eval.every.isdigit() and int(cfg.eval.every) > 0):
        found.append(f"eval.every={cfg.eval.every}: must be epoch, never, or a number of optimizer steps above 0")
    if cfg.engine.name is EngineName.batched and (alone := needs_trl(cfg)):
        found.append(f"engine=batched: cannot do {', '.join(alone)}; use engine=trl, or engine=auto, which chooses")
    if cfg.sweep is not None and cfg.sweep != folder_name(cfg.sweep):
        found.append(f"sweep={cfg.sweep}: names a folder; letters, digits and . _ = + - only, and at most 80 of them")
    if cfg.model.source is ModelSource.pretrained and not cfg.model.id:
        found.append("model.id: missing; give a folder or a hub id, for instance model.id=EleutherAI/pythia-70m")
    if cfg.data.source is DataSource.pairs and not cfg.data.path:
        found.append("data.path: missing; data=pairs needs a CSV, JSONL or Parquet file with prompt, chosen, rejected")
    return found


def _without_effect(cfg: Config) -> list[str]:
    """Keys that were changed and that nothing would read (D4: a sweep over them would measure nothing)."""
    dpo, default, losses = cfg.dpo, Config(), set(cfg.dpo.loss)
    found = []

    def refuse(key: str, value: Any, usual: Any, why: str) -> None:
        if value != usual:
            found.append(f"{key}={to_dict(value)}: has no effect {why}; leave it at {to_dict(usual)}")

    if cfg.lora.method is Method.full:
        for f in dataclasses.fields(LoraConfig):
            if f.name != "method":
                refuse(
                    f"lora.{f.name}", getattr(cfg.lora, f.name), getattr(default.lora, f.name), "in full fine-tuning"
                )
    if not losses & SMOOTHED:
        refuse("dpo.label_smoothing", dpo.label_smoothing, 0.0, f"with dpo.loss={[x.name for x in dpo.loss]}")
    if Loss.discopop not in losses:
        refuse("dpo.discopop_tau", dpo.discopop_tau, default.dpo.discopop_tau, "without dpo.loss=[discopop]")
    if dpo.f_divergence is not Divergence.alpha_divergence:
        refuse("dpo.f_alpha", dpo.f_alpha, default.dpo.f_alpha, "without dpo.f_divergence=alpha_divergence")
    if losses == {Loss.sft}:
        for key in ("beta", "f_divergence", "ld_alpha"):
            refuse(f"dpo.{key}", getattr(dpo, key), getattr(default.dpo, key), "with dpo.loss=[sft]")
    if dpo.lr_scheduler is Schedule.constant:
        refuse("dpo.warmup_ratio", dpo.warmup_ratio, 0.0, "with dpo.lr_scheduler=constant (use constant_with_warmup)")
    if cfg.eval.every == "never":
        refuse("eval.max_facts", cfg.eval.max_facts, default.eval.max_facts, "with eval.every=never")
    if cfg.model.source is not ModelSource.pretrained:
        for key in ("id", "revision"):
            refuse(f"model.{key}", getattr(cfg.model, key), None, f"with model.source={cfg.model.source.name}")
    if cfg.data.source is not DataSource.pairs:
        for f in dataclasses.fields(ColumnsConfig):
            key = f"data.columns.{f.name}"
            refuse(key, getattr(cfg.data.columns, f.name), f.default, f"with data.source={cfg.data.source.name}")
    if cfg.engine.name is EngineName.trl:
        for f in dataclasses.fields(EngineConfig):
            if f.name not in ("name", "device"):
                refuse(f"engine.{f.name}", getattr(cfg.engine, f.name), f.default, "with engine=trl")
    if not cfg.track.wandb:
        unread = ["mode", "entity", "job_type", "tags", "log_adapter"]
        for key in unread if cfg.track.trackio else [*unread, "project", "group"]:
            refuse(f"track.{key}", getattr(cfg.track, key), getattr(default.track, key), "with track.wandb=false")
    return found
