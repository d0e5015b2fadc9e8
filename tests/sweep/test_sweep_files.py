"""sweeps/: what a file says of itself is true, and all its runs can be run; a new file is covered by itself.

Hydra takes 40 ms to compose a job. So each choice of options is composed once, and the keys that a file sweeps are then
set in it, as Hydra does; one job of each file is composed whole, which shows that the two are the same.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

import factdpo.commands.run  # noqa: F401  (registers the schema)
from factdpo.config.folders import conf_folder
from factdpo.config.help import schema_keys
from factdpo.config.schema import Config, ConfigError
from factdpo.config.validate import validate
from factdpo.runs.identity import config_in_id
from factdpo.store.result import summary
from factdpo.sweep import question

ROOT = Path(__file__).parents[2]
WANDB = ROOT / "sweeps" / "wandb_sweep.yaml"
FILES = sorted(set((ROOT / "sweeps").glob("*.yaml")) - {WANDB})
HEADER = re.compile(
    r"# @package _global_\n"
    r"# (?P<question>\S.*\?)  +(?P<axes>.+) = (?P<runs>\d+) runs\n"
    r"#   factdpo sweeps=(?P<name>\w+)  +(?P<time>\S.+); result: (?P<result>.*LOG\.md.*)\n"
)

KEYS = set(schema_keys())

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def config_dir() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def header(path: Path) -> re.Match[str]:
    found = HEADER.match(path.read_text())
    assert found, f"{path.name}: its first three lines are not as in sweeps/orientation.yaml"
    return found


@cache
def sweeper(path: Path) -> DictConfig:
    """What chooses the runs of `factdpo sweeps=<file>`."""
    cfg = compose("config", overrides=[f"sweeps={path.stem}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    return cfg.hydra.sweeper


def grid(path: Path) -> tuple[list[Override], list[list[str]]]:
    """The axes of a file, and the overrides of each of its jobs."""
    axes = [parsed(f"{key}={values}") for key, values in sweeper(path).params.items()]
    (jobs,) = BasicSweeper.split_arguments(axes, None)
    return axes, [[f"sweeps={path.stem}", *job] for job in jobs]


def composed(jobs: list[list[str]]) -> Iterator[Config]:
    """The validated config of each job; all of them set the same keys."""
    chosen: dict[tuple[str, ...], DictConfig] = {}
    for job in jobs:
        choices = tuple(override for override in job if override.partition("=")[0] not in KEYS)
        if choices not in chosen:
            chosen[choices] = compose("config", overrides=list(choices))
        for override in job:
            if override not in choices:
                OmegaConf.update(chosen[choices], parsed(override).key_or_group, parsed(override).value())
        yield validate(chosen[choices])


@cache
def parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def asked(cfg: Config) -> str:
    """What tells runs apart without looking at weights, which may be on the hub."""
    return json.dumps([config_in_id(cfg), cfg.model.source.name, cfg.model.id, cfg.model.revision], sort_keys=True)


def test_there_are_sweeps() -> None:
    assert {"beta", "facts", "loss", "orientation", "pythia_sizes"} <= {path.stem for path in FILES}


@each_file
def test_a_file_is_short_and_says_what_it_asks_how_long_it_takes_and_where_the_answer_stands(path: Path) -> None:
    said = header(path)
    assert said["name"] == path.stem and len(path.read_text().splitlines()) < 16
    log = (ROOT / "LOG.md").read_text()
    assert all(f"\n## {date}" in log for date in re.findall(r"\d{4}-\d{2}-\d{2}", said["result"]))


@each_file
def test_it_says_which_numbers_it_asks_about_and_runs_measure_them(path: Path) -> None:
    assert question.read(sweeper(path).metrics)


@each_file
def test_it_has_as_many_runs_as_it_says(path: Path) -> None:
    said = header(path)
    if trials := sweeper(path).get("n_trials"):
        seeds = [values for key, values in sweeper(path).params.items() if key.endswith("seed")]
        assert int(said["runs"]) == trials * prod(len(values.split(",")) for values in seeds)
        return
    axes, jobs = grid(path)
    lengths = [len(list(axis.sweep_iterator())) for axis in axes]
    assert [int(number) for number in re.findall(r"(\d+) \w+", said["axes"])] == lengths
    assert int(said["runs"]) == len(jobs)


@each_file
def test_every_run_of_it_can_be_run_and_no_two_are_the_same(path: Path) -> None:
    if "n_trials" in sweeper(path):
        return  # its trials are drawn while it runs
    _, jobs = grid(path)
    configs = list(composed(jobs))
    assert len({asked(cfg) for cfg in configs}) == len(jobs)
    assert validate(compose("config", overrides=jobs[-1])) == configs[-1]


# ---------------------------------------------------------------------------------------------------- Weights & Biases


def test_the_wandb_sweep_is_one_by_wandbs_own_rules_and_each_of_its_commands_can_be_run() -> None:
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    loaded = load_sweep_config(str(WANDB))
    assert loaded is not None and _validate_config_and_fill_distribution(loaded) == loaded
    assert (loaded["method"], loaded["program"]) == ("bayes", "factdpo")
    assert loaded["project"] == Config().track.project
    assert create_sweep_command(loaded["command"]) == ["${env}", "${program}", "${args_no_hyphens}"]
    measured = summary({"state": "FINISHED", "trained": {"test": {"accuracy": 1.0}}})
    assert loaded["metric"] == {"name": "accuracy/test", "goal": "maximize"} and "accuracy/test" in measured

    for end in ("min", "max"):
        drawn = {name: {"value": drawn_at(end, **parameter)} for name, parameter in loaded["parameters"].items()}
        validate(compose("config", overrides=create_sweep_command_args({"args": drawn})["args_no_hyphens"]))


def drawn_at(end: str, **parameter: Any) -> Any:
    """The least or the greatest that a parameter of a W&B sweep can be."""
    if "value" in parameter:
        return parameter["value"]
    return {"min": min, "max": max}[end](parameter.get("values") or [parameter["min"], parameter["max"]])


def test_the_wandb_sweep_is_not_an_option_and_says_what_it_is_for() -> None:
    told = r"sweeps=wandb_sweep: is for Weights & Biases, .*`wandb sweep \S+/sweeps/wandb_sweep\.yaml`, then .*"
    with pytest.raises(ConfigError, match=told):
        compose("config", overrides=["sweeps=wandb_sweep"])
    with pytest.raises(MissingConfigException) as missing:
        compose("config", overrides=["sweeps=wandb_swep"])
    assert "beta" in (missing.value.options or []) and "wandb_sweep" not in (missing.value.options or [])
