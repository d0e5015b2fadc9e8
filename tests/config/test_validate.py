"""The schema, what validate() refuses, the files in conf/ and sweeps/, and what makes two runs the same run."""

import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from factdpo.config.help import schema_keys
from factdpo.config.overrides import flat
from factdpo.config.schema import KEYS, Config, ConfigError, Dtype, Loss, Orientation, TrackConfig, to_dict
from factdpo.config.validate import from_dict, validate
from factdpo.runs.identity import config_in_id

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
OPTIONS = sorted(p for p in CONF.rglob("*.yaml") if p.parent != CONF and "hydra" not in p.parts)
Compose = Callable[..., Config]

# The overrides, and words that the refusal must hold: the key with what was found, and what to do.
REFUSED = [
    (["split.train=0"], ["split.train=0", "above 0"]),
    (["split.test=-1"], ["split.test=-1", "at least 0"]),
    (["split.seed=-1"], ["split.seed=-1", "between 0"]),
    (["data.max_length=1"], ["data.max_length=1", "at least 2"]),
    (["lora.rank=0"], ["lora.rank=0", "at least 1"]),
    (["lora.alpha=0"], ["lora.alpha=0.0", "above 0"]),
    (["lora.dropout=1"], ["lora.dropout=1.0", "between 0"]),
    (["lora.target_modules=[]"], ["lora.target_modules=[]", "all-linear"]),
    (["lora.target_modules=[all-linear,dense]"], ["lora.target_modules", "alone"]),
    (["dpo.beta=-0.1"], ["dpo.beta=-0.1", "above 0"]),
    (["dpo.beta=nan"], ["dpo.beta=nan", "finite"]),
    (["dpo.learning_rate=inf"], ["dpo.learning_rate=inf", "finite"]),
    (["dpo.epochs=0"], ["dpo.epochs=0.0", "above 0"]),
    (["dpo.epochs=null"], ["dpo.epochs=None", "exactly one"]),
    (["dpo.max_steps=5"], ["dpo.max_steps=5", "dpo.epochs=null"]),
    (["dpo.epochs=null", "dpo.max_steps=0"], ["dpo.max_steps=0", "at least 1"]),
    (["dpo.batch_size=0"], ["dpo.batch_size=0", "at least 1"]),
    (["dpo.gradient_accumulation_steps=0"], ["dpo.gradient_accumulation_steps=0", "at least 1"]),
    (["dpo.warmup_ratio=1.5"], ["dpo.warmup_ratio=1.5", "between 0"]),
    (["dpo.max_grad_norm=-1"], ["dpo.max_grad_norm=-1.0", "at least 0"]),
    (["dpo.weight_decay=-1"], ["dpo.weight_decay=-1.0", "at least 0"]),
    (["dpo.adam_beta1=1"], ["dpo.adam_beta1=1.0", "between 0"]),
    (["dpo.adam_beta2=1"], ["dpo.adam_beta2=1.0", "between 0"]),
    (["dpo.adam_epsilon=0"], ["dpo.adam_epsilon=0.0", "above 0"]),
    (["dpo.seed=-1"], ["dpo.seed=-1", "between 0"]),
    (["dpo.loss=[]"], ["dpo.loss=[]", "[sigmoid]"]),
    (["dpo.loss=[sigmoid,sigmoid]"], ["dpo.loss", "twice"]),
    (["dpo.loss_weights=[1,2]"], ["dpo.loss_weights", "one weight for each of the 1"]),
    (["dpo.loss=[exo_pair]"], ["dpo.label_smoothing=0.0", "exo_pair"]),
    (["dpo.loss=[robust]", "dpo.label_smoothing=0.5"], ["dpo.label_smoothing=0.5", "between 0"]),
    (["dpo.loss=[apo_zero]", "dpo.f_divergence=js_divergence"], ["dpo.f_divergence=js_divergence", "apo_zero"]),
    (["dpo.loss=[aot]", "dpo.wpo=true"], ["dpo.wpo=true", "aot"]),
    (["dpo.ld_alpha=2"], ["dpo.ld_alpha=2.0", "between 0 and 1"]),
    (["eval.every=often"], ["eval.every=often", "epoch, never"]),
    (["eval.every=0"], ["eval.every=0", "epoch, never"]),
    (["eval.max_facts=0"], ["eval.max_facts=0", "at least 1"]),
    (["eval.batch_size=0"], ["eval.batch_size=0", "at least 1"]),
    (["eval.generations=-1"], ["eval.generations=-1", "at least 0"]),
    (["eval.max_new_tokens=0"], ["eval.max_new_tokens=0", "at least 1"]),
    (["track.log_every=0"], ["track.log_every=0", "at least 1"]),
    (["model=custom"], ["model.id", "missing"]),
    (["data=pairs"], ["data.path", "missing"]),
    # Without effect: a sweep over them would measure nothing (D4).
    (["lora=none", "lora.rank=4"], ["lora.rank=4", "no effect", "full fine-tuning"]),
    (["lora=none", "lora.dropout=0.1"], ["lora.dropout=0.1", "no effect"]),
    (
        ["dpo.loss=[sigmoid,ipo]", "dpo.label_smoothing=0.1"],
        ["dpo.label_smoothing=0.1: has no effect with dpo.loss=['sigmoid', 'ipo']; leave it at 0.0"],
    ),
    (["dpo.f_divergence=alpha_divergence", "dpo.f_alpha=nan"], ["dpo.f_alpha=nan: must be finite"]),
    (["seed=-1"], ["seed=-1: must be between 0 and 4294967295, and finite"]),
    (["engine=trl", "engine.max_runs=2"], ["engine.max_runs=2: has no effect with engine=trl; leave it at None"]),
    (["eval.every=never", "eval.max_facts=9"], ["eval.max_facts=9: has no effect with eval.every=never"]),
    (["track=trackio", "track.entity=me"], ["track.entity=me: has no effect with track.wandb=false"]),
    (["dpo.label_smoothing=0.1"], ["dpo.label_smoothing=0.1", "no effect"]),
    (["dpo.discopop_tau=0.1"], ["dpo.discopop_tau=0.1", "no effect", "discopop"]),
    (["dpo.f_alpha=0.1"], ["dpo.f_alpha=0.1", "no effect", "alpha_divergence"]),
    (["dpo.loss=[sft]", "dpo.beta=0.3"], ["dpo.beta=0.3", "no effect", "sft"]),
    (["dpo.lr_scheduler=constant", "dpo.warmup_ratio=0.1"], ["dpo.warmup_ratio=0.1", "constant_with_warmup"]),
    (["model.id=gpt2"], ["model.id=gpt2", "no effect", "model.source=nano"]),
    (["model.revision=main"], ["model.revision=main", "no effect"]),
    (["data.columns.prompt=p"], ["data.columns.prompt=p", "no effect", "harry_potter"]),
    (["track=none", "track.project=x"], ["track.project=x", "no effect", "track.wandb=false"]),
    # Added with a plus, which Hydra lets through.
    (["+lora.rnk=3"], ["lora.rnk", "no such key", "rank"]),
    (["+foo=1"], ["foo", "no such key"]),
    (["out=${oc.env:NOT_SET_ANYWHERE}"], ["out", "NOT_SET_ANYWHERE"]),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=[" ".join(o) for o, _ in REFUSED])
def test_what_no_run_can_have_is_refused_by_key(compose: Compose, overrides: list[str], words: list[str]):
    with pytest.raises(ConfigError) as refusal:
        compose(*overrides)
    assert [word for word in words if word not in str(refusal.value)] == []


def test_all_problems_are_told_at_once(compose: Compose):
    with pytest.raises(ConfigError) as refusal:
        compose("lora.rank=0", "dpo.beta=0", "model=custom")
    assert [line.partition(":")[0] for line in str(refusal.value).splitlines()] == [
        "lora.rank=0",
        "dpo.beta=0.0",
        "model.id",
    ]


def test_from_python_the_same_is_refused():
    wrong = Config()
    wrong.lora.rank = "many"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"lora\.rank.*many"):
        validate(wrong)
    misspelt = Config()
    misspelt.lora.rnk = 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"lora\.rnk: no such key"):
        validate(misspelt)
    with pytest.raises(ConfigError, match="rnk"):
        from_dict({"lora": {"rnk": 3}})
    with pytest.raises(ConfigError, match="schema"):
        validate(OmegaConf.create({"model": {"name": "x"}}))


def test_after_validation_everything_is_plain(compose: Compose):
    cfg = compose("dpo.loss=[sigmoid,sft]", "dpo.loss_weights=[1,0.5]", "seed=3")
    assert type(cfg) is Config and type(cfg.dpo.loss) is list and cfg.dpo.loss == [Loss.sigmoid, Loss.sft]
    assert cfg.split.seed == cfg.dpo.seed == 3
    assert validate(cfg) == cfg
    assert from_dict(json.loads(json.dumps(to_dict(cfg), allow_nan=False))) == cfg


def test_the_default_run_is_the_schema(compose: Compose):
    assert compose() == validate(Config())


@pytest.mark.parametrize("path", OPTIONS, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_every_option_composes(compose: Compose, path: Path):
    needed = {
        "model=custom": ["model.id=a/b"],
        "data=pairs": ["data.path=a.csv"],
        "data=graph": ["data.path=a.csv"],
        "data=edits": ["data.path=a.json"],
        "data=preference": ["data.path=a.jsonl"],
        "data=hub": ["data.hub.id=a/b"],
        "data=triples": ["data.path=a.csv", "data.triples.templates_path=b.csv"],
    }
    choice = f"{path.parent.name}={path.stem}"
    compose(choice, *needed.get(choice, []))


@pytest.mark.parametrize(
    "path", [p for p in OPTIONS if p.parent.name != "experiment"], ids=lambda p: f"{p.parent.name}={p.stem}"
)
def test_options_hold_only_what_differs_from_the_schema(path: Path):
    default = to_dict(getattr(validate(Config()), path.parent.name))
    values: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
    assert [key for key, value in values.items() if default[key] == value] == []


def test_the_seed_experiment_is_the_notebook(compose: Compose):
    cfg = compose("experiment=seed", "model=pythia_160m")
    assert (cfg.split.train, cfg.lora.rank, cfg.lora.alpha, cfg.dpo.beta) == (300, 256, 128, 0.2)
    assert (cfg.dpo.learning_rate, cfg.dpo.epochs, cfg.dpo.batch_size) == (5e-5, 4, 8)
    assert (cfg.dpo.warmup_ratio, cfg.dpo.max_grad_norm) == (0.1, 0.3)
    assert cfg.model.id == "EleutherAI/pythia-160m"


def test_as_published_differs_from_seed_in_the_three_mistakes_only(compose: Compose):
    right, published = to_dict(compose("experiment=seed")), to_dict(compose("experiment=seed_as_published"))
    differences = {
        f"{group}.{key}"
        for group, key in itertools.product(right, right["data"] | right["split"])
        if isinstance(right[group], dict) and right[group].get(key) != published[group].get(key)
    }
    assert differences == {"data.boundary", "data.eos", "split.orientation"}
    assert {k: v for k, v in right.items() if k not in ("data", "split")} == {
        k: v for k, v in published.items() if k not in ("data", "split")
    }


def test_every_pythia_is_pinned(compose: Compose):
    sizes = ["14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]
    for size in sizes:
        model = compose(f"model=pythia_{size}").model
        assert model.id == f"EleutherAI/pythia-{size}" and model.name == f"pythia_{size}"
        assert model.revision == "step143000" if size == "12b" else len(model.revision or "") == 40
    assert compose("model=pythia_70m", "model.revision=step1000").model.revision == "step1000"


def test_every_key_says_what_it_is():
    assert [name for name, key in schema_keys().items() if not key.comment] == []


# What cannot change a number, or stands in the id by its bytes; of these, what a command that repeats a run must say.
NOT_IN_ID = {
    "out", "sweep", "label", "dry_run", "retries", "retry_diverged", "fail_fast", "seed", "model.name", "model.id",
    "model.revision", "data.path", "data.files", "data.triples.templates_path", "data.graph.nodes", "engine.max_runs",
    "engine.max_tokens", "engine.save_every", "data.hub.id", "data.hub.config", "data.hub.split", "data.hub.revision",
    "data.preference.draw_rejected", "dpo.retain_path", "eval.figures", "halving.keep", "halving.rungs",
    "engine.executor", "engine.workers",
    *(key for key in KEYS if key.startswith(("engine.submitit.", "engine.ray."))),
    *(f"track.{f.name}" for f in dataclasses.fields(TrackConfig)),
}  # fmt: skip
LOCATES = {
    "seed", "model.name", "model.id", "model.revision", "data.path", "data.files", "data.triples.templates_path",
    "data.graph.nodes", "data.hub.id", "data.hub.config", "data.hub.split", "data.hub.revision",
    "data.preference.draw_rejected", "dpo.retain_path",
}  # fmt: skip


def test_identity_depends_on_every_key_that_can_change_a_number():
    before = config_in_id(Config())
    for name in KEYS:
        changed = Config()
        group, last = _field_of(changed, name)
        setattr(group, last, _another(getattr(group, last)))
        assert (config_in_id(changed) == before) == (name in NOT_IN_ID), name
    assert {name for name, key in KEYS.items() if key.locates} == LOCATES


def test_every_number_has_a_unit_or_bounds():
    def is_number(name: str) -> bool:
        group, last = _field_of(Config(), name)
        kind = typing.get_type_hints(type(group))[last]
        return bool({int, float} & {kind, *typing.get_args(kind)})

    numbers = [name for name in KEYS if is_number(name)]
    assert "dpo.beta" in numbers and "dpo.seed" in numbers and "dpo.max_steps" in numbers
    assert [name for name in numbers if not (KEYS[name].unit or KEYS[name].bounds)] == []
    assert [name for name, key in KEYS.items() if key.bounds and name not in numbers] == []


def test_every_default_is_within_its_own_bounds_and_the_bounds_are_told_in_help():
    numbers = {name: key for name, key in KEYS.items() if key.bounds}
    assert [
        name for name, key in numbers.items() if isinstance(key.default, float) and not key.allows(key.default)
    ] == []
    assert [name for name, key in numbers.items() if key.bounds not in schema_keys()[name].comment] == []


def test_the_schema_is_declared_by_keys_and_groups_alone():
    defaults = {name: to_dict(key.default) for name, key in KEYS.items() if key.default != {}}  # flat has what is in it
    assert list(defaults.items()) == list(flat(to_dict(Config())).items())


def test_identity_is_the_same_in_any_process_and_key_order():
    overrides = ["lora.rank=4", "dpo.beta=0.3", "split.train=50", "dpo.loss=[sigmoid,sft]"]
    code = (
        "import sys, hydra, factdpo.commands.run\n"
        "from factdpo.store.cache import signature\n"
        "from factdpo.config.folders import conf_folder\n"
        "from factdpo.config.validate import validate\n"
        "from factdpo.runs.identity import config_in_id\n"
        "with hydra.initialize_config_dir(str(conf_folder()), version_base='1.3'):\n"
        "    print(signature(config_in_id(validate(hydra.compose('config', overrides=sys.argv[1:])))))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, *order],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, order in enumerate([overrides, overrides[::-1]])
    }
    assert len(found) == 1 and len(found.pop().strip()) == 16


def test_no_schema_dataclass_is_shared_between_configs():
    one, other = Config(), Config()
    one.dpo.loss.append(Loss.sft)
    one.model.dtype = Dtype.bfloat16
    one.split.orientation = Orientation.both
    assert other == Config() and dataclasses.is_dataclass(other)


def _field_of(cfg: Config, name: str) -> tuple[Any, str]:
    """The group that holds a dotted key, and the key's last name."""
    *groups, last = name.split(".")
    return functools.reduce(getattr, groups, cfg), last


def _another(value: Any) -> Any:
    """A value of the same kind that is not the same."""
    if isinstance(value, list):
        return [*value, "x"]
    if isinstance(value, dict):
        return {**value, "x": "y"}
    if isinstance(value, bool):
        return not value
    if value is None or isinstance(value, str):
        return "another"
    if isinstance(value, int | float):
        return value + 1
    return next((e for e in type(value) if e is not value), "another")  # EngineName has one member, for now


@pytest.mark.parametrize("key", ["label", "model_name", "track_entity", "track_tags", "data_path", "out"])
def test_a_secret_of_the_environment_is_refused_and_not_told(monkeypatch: pytest.MonkeyPatch, key: str):
    secret = "hf_canary0123456789"
    monkeypatch.setenv("HF_TOKEN", secret)
    cfg = Config()
    group, _, name = key.partition("_")
    setattr(getattr(cfg, group) if name else cfg, name or key, [secret] if name == "tags" else f"my {secret}")
    with pytest.raises(ConfigError, match=rf"{key.replace('_', '.')}: holds the value of \$HF_TOKEN, and ") as refused:
        validate(cfg)
    assert secret not in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", "short")
    validate(Config(label="a short label"))
