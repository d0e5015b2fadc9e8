"""What a run is: everything that decides its numbers, hashed into an id, and the folder where it lies."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from factdpo.config.engine_choice import choose_engine, with_trl
from factdpo.config.folders import folder_name
from factdpo.config.schema import (
    KEYS,
    Config,
    ConfigError,
    DataConfig,
    DataSource,
    DpoConfig,
    EngineName,
    Keep,
    Template,
    to_dict,
)
from factdpo.data import hub
from factdpo.data.chat import in_template
from factdpo.data.encoder import Encoder
from factdpo.data.facts import Fact, Loaded
from factdpo.data.files import RETAINED, DataFile, data_files, data_name, is_built_in, side_files
from factdpo.data.load import load_facts
from factdpo.data.splits import TRAIN, make_splits
from factdpo.data.tables import ending_decides
from factdpo.data.tokens import Checked, check_tokens, text_tokens
from factdpo.models import weights
from factdpo.models.devices import check_device
from factdpo.models.encoder import load_encoder
from factdpo.runs import verdict
from factdpo.runs.data_shape import shape_of
from factdpo.runs.naming import run_name, usual_name
from factdpo.store import cache, result
from factdpo.store.run_lock import running_or_killed
from factdpo.tracking.trackio_tracker import check_installed
from factdpo.tracking.wandb_settings import check_names

KEPT = 8  # facts, and checks of them, in memory: the runs of a sweep mostly share them


@dataclass(eq=False)
class RunSpec:
    """A run that can be done: everything about it before it starts."""

    cfg: Config  # with the engine that it asks for, or that `auto` stands for: what the id is of
    engine: str  # which engine trains, and why
    asked: dict[str, Any]
    id: str
    name: str
    folder: Path
    sizes: dict[str, int] = field(default_factory=dict)  # split -> facts; empty for a run that is FINISHED
    notes: list[str] = field(default_factory=list)  # on the data, each a sentence; empty for a run that is FINISHED
    is_auto: bool = False  # engine=auto was asked
    kind: str = result.TRAINING  # or EVALUATION
    needs_trl: str | None = None  # why the batched engine of `cfg` cannot compute the base, if it is known that not

    @property
    def trains(self) -> Config:
        """The config with the engine that trains."""
        return with_trl(self.cfg) if self.needs_trl else self.cfg

    def train_with_trl(self, why: str) -> None:
        """TRL trains it, since the base needs that; its id stays. Raises ConfigError under engine=batched."""
        if not self.is_auto:
            raise ConfigError(f"engine=batched: {why}; use engine=auto, or engine=trl")
        self.needs_trl, self.engine = why, f"trl (auto: {why})"

    def state(self) -> str:
        """As its result.json has it; `to do` without one that can be trusted."""
        stored = result.read_result(self.folder).result
        return stored["state"] if stored else result.TO_DO

    def state_now(self) -> str:
        """The same, but for a run that was opened `running` or `killed` instead of `to do`."""
        state = self.state()
        if state == result.TO_DO and (self.folder / "asked.json").exists():
            return running_or_killed(self.folder)
        return state


def look_up(
    cfg: Config, memo: dict[str, Any] | None = None, kept: dict[str, Any] | None = None, here: bool = True
) -> RunSpec:
    """The run that a validated config asks for; raises ConfigError if its data, weights or device cannot be had.

    A finished run needs no weights, and of its data the bytes alone. Runs looked up with the same dict
    `memo` read the weights, and ask the hub, once; with the same `kept` (a session's) they read and check their facts
    once. The device is not looked for if the run will not be done `here`, in this process.
    """
    memo, kept = {} if memo is None else memo, {} if kept is None else kept
    check_installed(cfg.track)
    check_names(cfg)
    where = _once(memo, f"weights of {cfg.model}", lambda: weights.locate(cfg.model))
    is_auto = cfg.engine.name is EngineName.auto
    cfg, why = choose_engine(cfg, weights.are_quantised(where))
    asked, engine = _asked(cfg, where), f"{cfg.engine.name.name} ({why})"
    spec = RunSpec(cfg, engine, asked, run_id(asked), run_name(cfg), run_folder(cfg, asked), is_auto=is_auto)
    if found := verdict.stored_verdict(asked, cfg):
        verdict.apply(found, spec)
    if spec.state() != "FINISHED":
        if here:
            _once(memo, f"device {cfg.engine.name.name} {cfg.engine.device}", lambda: check_device(cfg.engine))
        loaded = loaded_facts(cfg, kept)
        drawn = _once(memo, f"splits of {cfg.data}, {cfg.split}", lambda: _draw(loaded.facts, cfg))
        _once(memo, f"access to {cfg.model}", lambda: weights.check_obtainable(cfg.model, where))
        folder = Path(cfg.out) / "cache"
        if is_chat(cfg.data):
            _once(memo, f"template of {cfg.model}", lambda: weights.fetch_template(where))
        encoder = _once(
            memo, f"tokenizer of {cfg.model}, {is_chat(cfg.data)}", lambda: load_encoder(cfg.model, where, folder)
        )
        checked, notes = usable_facts(cfg, encoder, where.identity, kept)
        if len(checked.facts) < len(loaded.facts):
            of_the_rest = f"splits of {cfg.data}, {cfg.split}, {cfg.model}"
            drawn = _once(memo, of_the_rest, lambda: _draw(checked.facts, cfg))
        spec.sizes, spec.notes = drawn[0], [*notes, *checked.warnings(), *drawn[1]]
        _check_validation(cfg, spec.sizes)
        _check_shares(cfg, spec.sizes)
        if cfg.dpo.retain_weight:
            text, key = retained_text(cfg.dpo), f"dpo.retain_path={cfg.dpo.retain_path}"
            _once(memo, f"tokens of {key}, {cfg.model}", lambda: len(text_tokens(text, encoder, key)))
    return spec


def _check_validation(cfg: Config, sizes: dict[str, int]) -> None:
    """Raises ConfigError where validation facts are to decide and there are none, or no other runs."""
    decides = {
        "eval.keep=best": cfg.eval.keep is Keep.best,
        f"eval.patience={cfg.eval.patience}": cfg.eval.patience is not None,
        f"halving.keep={cfg.halving.keep}": cfg.halving.keep is not None,
    }
    if cfg.halving.keep is not None and cfg.sweep is None:
        raise ConfigError(f"halving.keep={cfg.halving.keep:g}: has no effect in a run alone; leave it out")
    if not sizes.get("validation"):
        for key in [key for key, is_set in decides.items() if is_set]:
            raise ConfigError(f"{key}: decides by validation facts, and there are none; give split.validation=50, say")


def _check_shares(cfg: Config, sizes: dict[str, int]) -> None:
    """Raises ConfigError unless every batch has equal shares for the processes of a run.

    accelerate would fill a short last batch with facts from the beginning, and take another gradient.
    """
    left = sizes["train"] % cfg.dpo.batch_size
    if cfg.engine.processes > 1 and left:
        raise ConfigError(
            f"engine.processes={cfg.engine.processes}: {sizes['train']} training facts leave a last batch of {left} of "
            f"dpo.batch_size={cfg.dpo.batch_size}, which has no equal shares; choose split.train or dpo.batch_size so "
            "that all are full"
        )


def is_chat(cfg: DataConfig) -> bool:
    """Whether the model's chat template may write the facts."""
    return cfg.source is DataSource.preference and cfg.preference.template is Template.chat


def _draw(facts: list[Fact], cfg: Config) -> tuple[dict[str, int], list[str]]:
    """The sizes of the splits, and the notes on them: the splits themselves of each run would be many facts."""
    splits, notes = make_splits(facts, cfg.split)
    return {name: len(split) for name, split in splits.items()}, notes


def usable_facts(
    cfg: Config, encoder: Encoder, model: dict[str, Any], kept: dict[str, Any]
) -> tuple[Checked, list[str]]:
    """The facts of the data that can be used under the tokenizer of the model with this identity; notes on the data.

    Raises ConfigError that names every row that cannot, unless such rows are to be dropped. What was read and checked
    before with the same dict `kept` is not again.
    """
    if cfg.eval.max_new_tokens >= encoder.longest:
        raise ConfigError(
            f"eval.max_new_tokens={cfg.eval.max_new_tokens}: the model takes {encoder.longest} tokens, a prompt "
            f"included; give at most {encoder.longest - 1}"
        )
    loaded = loaded_facts(cfg, kept)
    checked, more = _once(
        kept, f"tokens {_of_data(cfg, model, encoder.template)}", lambda: _checked(loaded, encoder, cfg.data)
    )
    while len(kept) > KEPT:
        del kept[next(iter(kept))]
    return checked, [*loaded.notes, *more]


def _checked(loaded: Loaded, encoder: Encoder, cfg: DataConfig) -> tuple[Checked, list[str]]:
    written = in_template(loaded.facts, encoder.chat, cfg)
    checked = check_tokens(written.facts, encoder, cfg)
    return replace(checked, rows=loaded.dropped | written.dropped), written.notes


def loaded_facts(cfg: Config, kept: dict[str, Any]) -> Loaded:
    """All facts of the data, read once with the same dict `kept`; raises FactError for bad rows."""
    return _once(kept, f"facts {_of_data(cfg)}", lambda: load_facts(cfg.data))


def _of_data(cfg: Config, *more: Any) -> str:
    """A key that stands for the data by its bytes, so that what is kept under it stays right."""
    return cache.signature([to_dict(cfg.data), data_identity(cfg.data), *more])


def _once(memo: dict[str, Any], key: str, make: Callable[[], Any]) -> Any:
    """What `make` returned, or the ConfigError that it raised, when this key was first asked for."""
    if key not in memo:
        try:
            memo[key] = make()
        except ConfigError as error:
            memo[key] = error
    if isinstance(memo[key], ConfigError):
        raise memo[key]
    return memo[key]


def what_is_asked(cfg: Config) -> dict[str, Any]:
    """Everything that decides the numbers: the config less names and places, the data's bytes, the model's bytes."""
    return _asked(cfg, weights.locate(cfg.model))


def _asked(cfg: Config, where: weights.Weights) -> dict[str, Any]:
    config = config_in_id(cfg)
    data = data_identity(cfg.data)
    if cfg.split.train is None and not shape_of(cfg, data).own_splits:
        config["split"]["train"] = TRAIN  # what null stands for
    config["model"]["attention"] = weights.attention_in_id(cfg.model)
    asked = {
        "config": config,
        "data": data,
        "model": where.identity,
        "versions": cache.STAGE_VERSIONS,
    }
    if cfg.dpo.retain_weight:
        asked["retained"] = hashlib.sha256(retained_text(cfg.dpo).encode()).hexdigest()
    template = where.path / weights.TEMPLATE if where.path else None  # a hub model's is in its commit
    if cfg.data.source is DataSource.preference and template and template.is_file():
        asked["chat_template"] = cache.file_sha256(template)
    return asked


def retained_text(cfg: DpoConfig) -> str:
    """What dpo.retain_path holds, or the text in this package; raises ConfigError if it cannot be read."""
    path = Path(cfg.retain_path) if cfg.retain_path else RETAINED
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"dpo.retain_path={path}: cannot be read as UTF-8 text ({error})") from error


def data_identity(cfg: DataConfig) -> Any:
    """The data's bytes, for the id: a file's sha256, or one for each split and file, whatever folder they lie in.

    Of a data set on the hub, the commit and which part of it; nothing of facts that the config alone invents.
    """

    def of(file: DataFile) -> str:  # not the ending, but where the same bytes are read in another way for it
        return cache.file_sha256(file.path) + (" as tsv" if ending_decides(file.path, cfg.delimiter) else "")

    side = [[file.split, file.path.name, of(file)] for file in side_files(cfg)]
    if cfg.hub.id:
        part = {"hub": cfg.hub.id, "config": cfg.hub.config, "split": cfg.hub.split, "commit": hub.commit_of(cfg.hub)}
        return part | {"side": side} if side else part
    files = [*data_files(cfg), *side_files(cfg)]
    if cfg.source is DataSource.triples:  # a file may be named after its relation
        return [[file.split, file.path.name, of(file)] for file in files]
    if side:
        return {"files": [[file.split, of(file)] for file in data_files(cfg)], "side": side}
    if len(files) == 1 and files[0].split is None:
        return of(files[0])
    return [[file.split, of(file)] for file in files]


def config_in_id(cfg: Config) -> dict[str, Any]:
    """The keys of a config that can change a number, nested, as JSON's types: its part of the run's id."""
    nested: dict[str, Any] = {}
    for name, key in KEYS.items():
        value = attrgetter(name)(cfg)
        if not key.in_id or (key.in_id == "changed" and value == key.default):
            continue  # what came after the first runs is left out at its default, so that their ids stay
        *groups, last = name.split(".")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = to_dict(value)
    nested["engine"]["device"] = cfg.engine.device.partition(":")[0]  # one GPU computes as the next
    return nested


def slug(cfg: Config) -> str:
    """The readable half of a folder's name, never a path: in a sweep what is swept, else the run's name."""
    if cfg.label:
        return folder_name(cfg.label)
    built_in = [data_name(cfg.data)] if is_built_in(cfg.data) else []
    order = [cfg.split.orientation.name] if shape_of(cfg, data_identity(cfg.data)).reverses else []
    return folder_name(" ".join([usual_name(cfg), *built_in, *order]))


def run_folder(cfg: Config, asked: dict[str, Any]) -> Path:
    """Where the run lies, in its sweep's folder or in runs/: found by its id, whatever it was called before."""
    home = Path(cfg.out) / "sweeps" / cfg.sweep if cfg.sweep else Path(cfg.out) / "runs"
    name = f"{slug(cfg)}-{run_id(asked)}"
    if not (home / name).is_dir():
        name = next((other.name for other in home.glob(f"*-{run_id(asked)}")), name)
    return home / name


def can_train_together(cfg: Config) -> list[Any]:
    """What runs must agree on to be in one batch: the base and where it is, what a batch has once, how long they speak.

    JSON's types, as `cache.signature` takes them.
    """
    dpo = cfg.dpo
    return [
        to_dict(cfg.model), cfg.engine.device, cfg.out, sorted(cfg.lora.target_modules), dpo.bf16,
        dpo.adam_beta1, dpo.adam_beta2, dpo.adam_epsilon, cfg.eval.max_new_tokens,
    ]  # fmt: skip


def cohorts(specs: list[RunSpec]) -> list[list[RunSpec]]:
    """The runs that one call of an engine trains. Those on one base follow each other, since one is in memory.

    TRL trains one run at a time and changes the base, so its runs come last.
    """
    bases: dict[str, dict[tuple[bool, str], list[RunSpec]]] = {}
    for spec in specs:
        cfg = spec.trains
        base = cache.signature([to_dict(cfg.model), cfg.engine.device, cfg.out])
        with_trl = cfg.engine.name is EngineName.trl
        key = with_trl, spec.id if with_trl else cache.signature(can_train_together(cfg))
        bases.setdefault(base, {}).setdefault(key, []).append(spec)
    return [of_base[key] for of_base in bases.values() for key in sorted(of_base, key=lambda key: key[0])]


def run_id(asked: dict[str, Any]) -> str:
    """12 hex digits that depend on what is asked alone."""
    return cache.signature(asked)[:12]
