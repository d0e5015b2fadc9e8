"""What of a config cannot be run is refused here, key by key, before anything heavy is imported."""

import dataclasses
import functools
import math
import re
import typing
from operator import attrgetter
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from factdpo.config import secrets
from factdpo.config.engine_choice import needs_trl
from factdpo.config.folders import folder_name
from factdpo.config.schema import (
    KEYS,
    Config,
    ConfigError,
    DataSource,
    Divergence,
    Dtype,
    EngineName,
    Loss,
    Method,
    MethodName,
    ModelSource,
    Quantization,
    to_dict,
)  # fmt: skip

FOLLOWS_SEED = "${seed}"  # default of keys that take the value of `seed`

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
            cfg = _merged(dataclasses.asdict(cfg))
        plain = OmegaConf.to_object(cfg)
    except InterpolationKeyError as error:
        raise _dangling(cfg, error) from None
    except OmegaConfBaseException as error:
        raise _refusal(error) from None
    if not isinstance(plain, Config):
        raise ConfigError(
            f"conf/config.yaml: not built on factdpo's schema ({type(plain).__name__}); one in the current folder "
            "replaces factdpo's own: begin its defaults list with `schema`, as ours does, or start from another folder"
        )
    problems = [*unknown, *_unknown(plain), *_ranges(plain), *_combinations(plain), *_without_effect(plain)]
    problems += secrets.problems({name: attrgetter(name)(plain) for name in KEYS})
    if problems:
        raise ConfigError("\n".join(problems))
    # A line break and a tab as they are typed, whichever way they came: one meaning has one id.
    plain.data.separator = plain.data.separator.replace("\n", "\\n").replace("\t", "\\t")
    return plain


@functools.cache
def _schema() -> DictConfig:
    """OmegaConf takes longer to read the dataclasses than to merge into what it read; `merge` copies it."""
    return typing.cast(DictConfig, OmegaConf.structured(Config))


def from_dict(values: dict[str, Any]) -> Config:
    """The validated config of which `to_dict` made `values`."""
    try:
        return validate(_merged(values))
    except OmegaConfBaseException as error:
        raise _refusal(error) from None


def _merged(values: dict[str, Any]) -> DictConfig:
    return typing.cast(DictConfig, OmegaConf.merge(_schema(), values))


def _refusal(error: OmegaConfBaseException) -> ConfigError:
    return ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}")


def _dangling(cfg: Any, error: InterpolationKeyError) -> ConfigError:
    """The refusal of a value that names a key that is not there, by the key that names it and not one that follows."""
    missing = str(error).split("'")[1]
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    for name in KEYS:
        value = functools.reduce(lambda node, part: node.get(part, {}), name.split("."), tree)
        if f"${{{missing}}}" in str(value):
            return ConfigError(f"{name}={value}: there is no key {missing}; write a value, or the name of another key")
    return _refusal(error)


def _unknown(node: Any, prefix: str = "") -> list[str]:
    """Keys that the schema does not have: `+lora.rnk=3` adds one, and nothing would read it."""
    names = [f.name for f in dataclasses.fields(node)]
    there_are = f"{prefix.rstrip('.') or 'a config'} has {', '.join(names)}"
    problems = [f"{prefix}{key}: no such key; {there_are}" for key in vars(node).keys() - set(names)]
    for name, value in ((name, getattr(node, name)) for name in names):
        if dataclasses.is_dataclass(value):
            problems += _unknown(value, f"{prefix}{name}.")
    return problems


def _ranges(cfg: Config) -> list[str]:
    """Values that no run can have, each as `key=value: what is allowed`."""
    values = {name: attrgetter(name)(cfg) for name in KEYS}
    return [
        f"{name}={values[name]}: must be {key.bounds + ', and finite' if key.bounds else 'finite'}"
        for name, key in KEYS.items()
        if isinstance(values[name], int | float)
        and not key.allows(values[name])
        and not (key.default == FOLLOWS_SEED and values[name] == cfg.seed)  # of which `seed` says it already
    ]


def _combinations(cfg: Config) -> list[str]:
    """Values that are fine alone and impossible together."""
    dpo, lora, losses = cfg.dpo, cfg.lora, set(cfg.dpo.loss)
    wrong: list[str] = []
    if not cfg.out:
        wrong.append("out=: empty; name the folder that runs/, sweeps/ and cache/ are made in")
    if (dpo.epochs is None) == (dpo.max_steps is None):
        wrong.append(
            f"dpo.epochs={dpo.epochs}, dpo.max_steps={dpo.max_steps}: give exactly one "
            "(to train by steps: dpo.epochs=null dpo.max_steps=N)"
        )
    if cfg.engine.processes > 1 and dpo.batch_size % cfg.engine.processes:
        wrong.append(
            f"engine.processes={cfg.engine.processes}: dpo.batch_size={dpo.batch_size} has no equal shares; make it a "
            f"multiple of {cfg.engine.processes}"
        )
    if cfg.method.name is MethodName.sft_dpo and (cfg.method.sft_epochs is None) == (cfg.method.sft_max_steps is None):
        wrong.append(
            f"method.sft_epochs={cfg.method.sft_epochs}, method.sft_max_steps={cfg.method.sft_max_steps}: give exactly "
            "one (to train by steps: method.sft_epochs=null method.sft_max_steps=N)"
        )
    if cfg.method.name is MethodName.sft_dpo and lora.dora:
        wrong.append(
            "lora.dora=true: not with method=sft_dpo, since two DoRA adapters do not add up; use lora.dora=false"
        )
    if cfg.method.name is MethodName.sft_dpo and dpo.ld_alpha is not None:
        wrong.append(f"dpo.ld_alpha={dpo.ld_alpha}: not with method=sft_dpo; LD-DPO's reference is the base")
    if cfg.model.quantization is not Quantization.none and lora.method is Method.full:
        wrong.append(f"model.quantization={cfg.model.quantization.name}: not with lora=none; packed weights are frozen")
    halving = cfg.halving
    if halving.keep is not None and halving.keep >= 1:
        wrong.append(f"halving.keep={halving.keep:g}: a share below 1; 0.5 halves the settings at each rung")
    rungs = halving.rungs
    if not rungs or not all(0 < rung < 1 for rung in rungs) or sorted(set(rungs)) != rungs:
        wrong.append(f"halving.rungs={rungs}: shares of the steps, between 0 and 1 and rising; give at least one")
    if halving.keep is not None and cfg.eval.every == "never":
        wrong.append("eval.every=never: halving.keep decides by the scores on the way; leave it at epoch")
    if not dpo.loss:
        wrong.append("dpo.loss=[]: give at least one loss, for instance dpo.loss=[sigmoid]")
    if len(losses) != len(dpo.loss):
        wrong.append(f"dpo.loss={[x.name for x in dpo.loss]}: a loss stands in it twice; give each once, with a weight")
    if dpo.loss_weights is not None and len(dpo.loss_weights) != len(dpo.loss):
        wrong.append(f"dpo.loss_weights={dpo.loss_weights}: give one weight for each of the {len(dpo.loss)} losses")
    if Loss.exo_pair in losses and dpo.label_smoothing == 0:
        wrong.append("dpo.label_smoothing=0.0: exo_pair needs it above 0 (its paper takes 0.001)")
    if dpo.f_divergence is not Divergence.reverse_kl and not losses <= F_DIVERGENCE:
        others = ", ".join(sorted(x.name for x in losses - F_DIVERGENCE))
        wrong.append(f"dpo.f_divergence={dpo.f_divergence.name}: not defined for dpo.loss={others}; use reverse_kl")
    if dpo.wpo and losses & {Loss.aot, Loss.aot_unpaired}:
        wrong.append("dpo.wpo=true: aot sorts the pairs, which would misalign their weights; leave one of them out")
    if dpo.ld_alpha is not None and lora.method is Method.full:
        wrong.append(
            f"dpo.ld_alpha={dpo.ld_alpha}: not with lora=none; LD-DPO's reference is the base under the adapter"
        )
    if dpo.wpo and Loss.sft in losses:
        wrong.append("dpo.wpo=true: weighs pairs, and sft has one loss for the whole batch; leave one of them out")
    if dpo.bf16 and cfg.model.dtype is Dtype.float16:
        wrong.append("dpo.bf16=true: not on float16 weights; use model.dtype=float32 or bfloat16")
    if dpo.loss_weights is not None and not (all(map(math.isfinite, dpo.loss_weights)) and any(dpo.loss_weights)):
        wrong.append(f"dpo.loss_weights={dpo.loss_weights}: must be finite, and not all 0")
    if not lora.target_modules:
        wrong.append("lora.target_modules=[]: nothing would be trained; the default is [all-linear]")
    if "all-linear" in lora.target_modules and len(lora.target_modules) > 1:
        wrong.append(f"lora.target_modules={lora.target_modules}: all-linear stands alone or not at all")
    if cfg.eval.every not in ("epoch", "never") and not (cfg.eval.every.isdigit() and int(cfg.eval.every) > 0):
        wrong.append(f"eval.every={cfg.eval.every}: must be epoch, never, or a number of optimizer steps above 0")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:(0|[1-9]\d*))?", cfg.engine.device):
        wrong.append(f"engine.device={cfg.engine.device}: must be one of auto, cpu, mps, cuda, or cuda:1 for one GPU")
    if cfg.engine.name is EngineName.batched and (alone := needs_trl(cfg)):
        wrong.append(f"engine=batched: cannot do {', '.join(alone)}; use engine=trl, or engine=auto, which chooses")
    if cfg.sweep is not None and cfg.sweep != folder_name(cfg.sweep):
        wrong.append(f"sweep={cfg.sweep}: names a folder; letters, digits and . _ = + - only, and at most 80 of them")
    if cfg.model.source is ModelSource.pretrained and not cfg.model.id:
        wrong.append("model.id: missing; give a folder or a hub id, for instance model.id=EleutherAI/pythia-70m")
    places = {"data.path": cfg.data.path, "data.files": cfg.data.files, "data.hub.id": cfg.data.hub.id}
    given = [name for name, value in places.items() if value]
    if cfg.data.source is DataSource.synthetic and given:
        wrong.append(
            f"{given[0]}={places[given[0]]}: has no effect with data=synthetic, which reads no file; leave it out"
        )
    if cfg.data.source not in (DataSource.harry_potter, DataSource.synthetic) and not given:
        wrong.append(
            f"data.path: missing; data={cfg.data.source.name} needs a file, folder or glob (or data.files.train=..., "
            "data.files.test=...; or data.hub.id=owner/name)"
        )
    if len(given) > 1:
        wrong.append(f"{given[0]}={places[given[0]]}: not beside {given[1]}; give one of them")
    if cfg.data.hub.id and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", cfg.data.hub.id):
        wrong.append(f"data.hub.id={cfg.data.hub.id}: no id of a data set (owner/name); a file goes to data.path")
    if cfg.data.files and "train" not in cfg.data.files:
        wrong.append(f"data.files: {', '.join(cfg.data.files)}, and none is named train; add data.files.train=...")
    if cfg.data.source is DataSource.triples and not cfg.data.triples.templates and not cfg.data.triples.templates_path:
        wrong.append(
            "data.triples.templates: missing; give a sentence per relation, as in "
            "'data.triples.templates.P19=[\"[X] was born in [Y]\"]', or a file: data.triples.templates_path=..."
        )
    if len(cfg.data.graph.answers) not in (0, 2):
        wrong.append(f"data.graph.answers={cfg.data.graph.answers}: give two, for same side and for different sides")
    for name in ("train", "validation", "test"):
        size = getattr(cfg.split, name)
        if isinstance(size, float) and size > 1:
            wrong.append(f"split.{name}={size}: a share is at most 1.0; for a number of facts write {int(size)}")
    return wrong


def _without_effect(cfg: Config) -> list[str]:
    """Keys that were changed and that nothing would read (D4: a sweep over them would measure nothing)."""
    changed = {name: attrgetter(name)(cfg) for name, key in KEYS.items() if key.dead}
    return [
        f"{name}={to_dict(value)}: has no effect {dead.words.format(**to_dict(cfg))}; "
        f"leave it at {to_dict(KEYS[name].default)}"
        for name, value in changed.items()
        if value != KEYS[name].default and (dead := KEYS[name].dead) and dead.holds(cfg)
    ]
