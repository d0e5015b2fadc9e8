"""A sweep over a grid: refused or planned as a whole before its first job, with a table at its end."""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from factdpo import console
from factdpo.config.folders import conf_folder, folder_name
from factdpo.config.overrides import flat
from factdpo.config.schema import KEYS, Config, ConfigError, to_dict
from factdpo.data.files import data_name
from factdpo.runs.answer import RunFailed
from factdpo.runs.identity import RunSpec
from factdpo.runs.session import current
from factdpo.sweep import question
from factdpo.sweep.dry_run import print_plan
from factdpo.sweep.jobs import Planner, launch
from factdpo.sweep.sweep import Sweep

AT_ONCE = 250  # jobs that a launcher gets: each holds files open
SWEEP_LEVEL_KEYS = {  # cannot be swept
    "out", "sweep", "label", "dry_run", "retries", "retry_diverged", "fail_fast",
    *(name for name in KEYS if re.match(r"halving\.|engine\.(executor|workers|submitit|ray)\b", name)),
}  # fmt: skip


def run(
    context: HydraContext,
    config: DictConfig,
    launcher: Launcher,
    words: list[str],
    metrics: list[str],
    at_once: int | None,
) -> list[Sequence[JobReturn]]:
    """The jobs' returns, a list per launch. Raises ConfigError, and runs none, if one of the jobs cannot run."""
    last_words = parse(context, words)
    for key, override in last_words.items():
        if override.is_interval_sweep():
            raise ConfigError(
                f"{key}={override.get_value_string()}: a grid needs values, as in {key}=1,2; "
                "hydra/sweeper=optuna searches a range"
            )
    axes = {key: list(one.sweep_string_iterator()) for key, one in last_words.items() if one.is_sweep_override()}
    if empty := [key for key, values in axes.items() if not values]:
        raise ConfigError(f"{empty[0]}={last_words[empty[0]].get_value_string()}: has no values; give at least one")
    sweep = new_sweep(config, context, axes)
    sweep.metrics = question.read(metrics)
    jobs = [name_job(job, sweep, list(axes)) for job in product(list(last_words.values()))]
    plan(sweep, Planner(context, config, current()), jobs, 0)
    console.say(sweep.plan())
    for name in question.unanswered(sweep.metrics, list(sweep.runs.values())):
        console.say(f"hydra.sweeper.metrics: no run has a split for {name}: the rest of the question leads", "yellow")
    if config.dry_run:
        print_plan(list(sweep.runs.values()))
        return []
    with under_way(sweep):
        return [launch(launcher, batch, first) for first, batch in batches(jobs, at_once or len(jobs))]


def parse(context: HydraContext, words: list[str]) -> dict[str, Override]:
    """The last override of each key."""
    parser = OverridesParser.create(config_loader=context.config_loader)
    return {override.get_key_element(): override for override in parser.parse_overrides(words)}


def product(overrides: list[Override]) -> list[list[str]]:
    """The overrides of each job: every combination of the swept values."""
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
        for override in overrides
    ]
    return [list(job) for job in itertools.product(*choices)]


def new_sweep(config: DictConfig, context: HydraContext, axes: dict[str, list[str]]) -> Sweep:
    """The sweep that a command asks for: named by `sweep=`, by its file in sweeps/, or by what is swept.

    Raises ConfigError for what cannot be swept, and for folders that Hydra would choose.
    """
    if whole := [key for key in axes if key.lstrip("+") in SWEEP_LEVEL_KEYS]:
        raise ConfigError(f"{whole[0]}={','.join(axes[whole[0]])}: is one for all runs of a sweep; give one value")
    if moved := [one for one in config.hydra.overrides.hydra if re.match(r"\+*hydra\.(sweep|run)\.", one)]:
        raise ConfigError(f"{moved[0]}: no run would lie there; out=... and sweep=... say where they lie")
    choice = config.hydra.runtime.choices.get("sweeps")
    name = config.sweep or folder_name(choice or "+".join(sorted(key.lstrip("+~") for key in axes))) or "multirun"
    asks = _question(context, choice) if choice else None
    shown = {key: [_shown(value) for value in values] for key, values in axes.items()}
    command = current().command
    return Sweep(Path(config.out) / "sweeps" / name, asks, command, shown, [Path("conf"), conf_folder()])


def name_job(job: Sequence[str], sweep: Sweep, axes: list[str]) -> list[str]:
    """The overrides of a job, with its sweep's name and what distinguishes it from the others."""
    pairs = [override.split("=", 1) for override in job]
    label = " ".join(f"{_short(key)}={_shown(value)}" for key, value in pairs if key in axes)
    named = any(key == "sweep" and value not in ("", "null") for key, value in pairs)
    name = [] if named else [f"sweep='{sweep.folder.name}'"]
    return [*job, *name, f"label='{label}'" if label else "label=null"]


def plan(sweep: Sweep, planner: Planner, jobs: list[list[str]], first: int) -> list[RunSpec]:
    """The runs of these jobs, looked up before any of them runs; raises ConfigError if one cannot."""
    specs = [spec for spec in planner.plan(jobs, first) if spec is not None]
    if len(specs) < len(jobs):
        raise ConfigError("hydra.job.chdir=true: a run has its own folder already; leave it at false")
    _check_orientations(specs)
    sweep.add(specs)
    current().requested += specs
    return specs


def _check_orientations(specs: list[RunSpec]) -> None:
    """Raises ConfigError if runs that are to do differ in split.orientation on facts that have one order only."""
    orientations: dict[str, list[RunSpec]] = {}  # by the bytes of the data
    for spec in specs:
        if spec.sizes and not any(name.endswith("_reversed") for name in spec.sizes):
            orientations.setdefault(str(spec.asked["data"]), []).append(spec)
    for of_data in orientations.values():
        if len(swept := list(dict.fromkeys(spec.cfg.split.orientation.name for spec in of_data))) > 1:
            raise ConfigError(
                f"split.orientation={','.join(swept)}: the facts of {data_name(of_data[0].cfg.data)} have no "
                "reverse_prompt, so these runs would train the same; give that column, or leave split.orientation out "
                "of the sweep"
            )


@contextmanager
def under_way(sweep: Sweep) -> Iterator[None]:
    """Write the sweep down, and print at its end how its runs ended; raises RunFailed if not all are finished."""
    sweep.write()
    try:
        yield
    finally:
        unfinished = sweep.close()
    if unfinished:
        raise RunFailed("FAILED", f"{unfinished} of {len(sweep.runs)} runs are not finished; {sweep.remedy()}", 1)


def batches(jobs: list[list[str]], size: int) -> Iterator[tuple[int, list[list[str]]]]:
    """(number of its first job, jobs) of each batch."""
    for start in range(0, len(jobs), size):
        yield start, jobs[start : start + size]


@functools.cache
def _short(key: str) -> str:
    """`dpo.beta` -> `beta`; but `split.seed` as it is, since other keys end like it."""
    key = key.lstrip("+~")
    end = key.rsplit(".", 1)[-1]
    return end if sum(other.rsplit(".", 1)[-1] == end for other in flat(to_dict(Config()))) == 1 else key


def _shown(value: str) -> str:
    """A value as people read it in tables, without what Hydra's grammar needs."""
    return re.sub(r"[\[\]{}'\"\\\n\r]", "", value)


def _question(context: HydraContext, choice: str) -> str | None:
    """The first comment of the sweep's file, less what stands behind two spaces: the number of its runs."""
    for source in context.config_loader.get_sources():
        path = Path(source.path) / f"{choice}.yaml"
        if source.scheme() == "factdpo-sweeps" and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.startswith("#") and "@package" not in line:
                    return re.split(r"\s{2,}", line.lstrip("# "))[0].strip()
    return None
