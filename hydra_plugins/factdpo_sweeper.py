"""hydra/sweeper=factdpo: Hydra's grid, refused or planned as a whole before its first job, with a table at its end.

No `from __future__ import annotations` here: a scanned plugin module that has it breaks every start of Hydra.
"""

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

if TYPE_CHECKING:
    from factdpo.runs.identity import Run
    from factdpo.sweep.sweep import Sweep

AT_ONCE = 250  # jobs that a launcher gets: each holds files open
OF_THE_WHOLE = {"out", "sweep", "label", "dry_run", "retries", "fail_fast"}  # keys that are no axis


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.factdpo_sweeper.Sweeper"
    max_batch_size: int | None = AT_ONCE
    params: dict[str, str] | None = field(default_factory=dict)  # what is swept, as on the command line


ConfigStore.instance().store(group="hydra/sweeper", name="factdpo", node=SweeperConf, provider="factdpo")


class Sweeper(BasicSweeper):
    """Hydra's basic sweeper; each job is told the sweep's name and what tells it from the others."""

    def sweep(self, arguments: list[str]) -> Any:
        """The jobs' returns, a list per batch. Raises ConfigError, and runs none, if one of the jobs cannot run."""
        from factdpo import console
        from factdpo.config.schema import ConfigError
        from factdpo.sweep.dry_run import print_plan

        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*self._parse_config(), *arguments])
        asked = {override.get_key_element(): override for override in parsed}  # the last word on each key
        for key, one in asked.items():
            if one.is_interval_sweep():
                value = f"{key}={one.get_value_string()}"
                raise ConfigError(
                    f"{value}: a grid needs values, as in {key}=1,2; hydra/sweeper=optuna searches a range"
                )
        axes = {key: list(one.sweep_string_iterator()) for key, one in asked.items() if one.is_sweep_override()}
        (jobs,) = self.split_arguments(list(asked.values()), None)
        sweep = new_sweep(self.config, self.hydra_context, axes)
        jobs = [named(job, sweep, list(axes)) for job in jobs]
        plan(sweep, self.hydra_context, self.config, jobs, 0)
        console.console.print(sweep.plan(), highlight=False, soft_wrap=True)
        if self.config.dry_run:
            print_plan(list(sweep.runs.values()))
            return []
        with under_way(sweep):
            return [
                launch(self.launcher, batch, initial)
                for initial, batch in batches(jobs, self.max_batch_size or len(jobs))
            ]


def new_sweep(config: DictConfig, context: HydraContext, axes: dict[str, list[str]]) -> "Sweep":
    """The sweep that a command asks for: named by `sweep=`, by its file in sweeps/, or by what is swept.

    Raises ConfigError for what a sweep as a whole cannot be told.
    """
    from factdpo.config.folders import conf_folder
    from factdpo.config.schema import ConfigError, folder_name
    from factdpo.sweep.sweep import Sweep

    if whole := [key for key in axes if key.lstrip("+") in OF_THE_WHOLE]:
        raise ConfigError(f"{whole[0]}={','.join(axes[whole[0]])}: is one for all runs of a sweep; give one value")
    if moved := [one for one in config.hydra.overrides.hydra if re.match(r"\+*hydra\.(sweep|run)\.", one)]:
        raise ConfigError(f"{moved[0]}: no run would lie there; out=... and sweep=... say where they lie")
    choice = config.hydra.runtime.choices.get("sweeps")
    name = config.sweep or folder_name(choice or "+".join(sorted(key.lstrip("+~") for key in axes))) or "multirun"
    question = _question(context, choice) if choice else None
    shown = {key: [_shown(value) for value in values] for key, values in axes.items()}
    command = ["factdpo", *sys.argv[1:]]
    return Sweep(Path(config.out) / "sweeps" / name, question, command, shown, [Path("conf"), conf_folder()])


def named(job: Sequence[str], sweep: "Sweep", axes: list[str]) -> list[str]:
    """The overrides of a job, which is told whose it is and what tells it from the others."""
    pairs = [override.split("=", 1) for override in job]
    label = " ".join(f"{_short(key)}={_shown(value)}" for key, value in pairs if key in axes)
    name = [] if any(key == "sweep" for key, _ in pairs) else [f"sweep='{sweep.folder.name}'"]
    return [*job, *name, f"label='{label}'" if label else "label=null"]


def plan(sweep: "Sweep", context: HydraContext, config: DictConfig, jobs: list[list[str]], first: int) -> "list[Run]":
    """The runs of these jobs, looked up before any of them runs; raises ConfigError if one cannot."""
    from factdpo.config.schema import ConfigError
    from hydra_plugins.factdpo_launcher import looked_up

    runs = [run for run in looked_up(context, config, jobs, first) if run is not None]
    if len(runs) < len(jobs):
        raise ConfigError("hydra.job.chdir=true: a run has its own folder already; leave it at false")
    sweep.add(runs)
    return runs


@contextmanager
def under_way(sweep: "Sweep") -> Iterator[None]:
    """Write the sweep down, and tell at its end what came of the runs; raises RunFailed if not all are finished."""
    from factdpo.runs.execute import RunFailed

    sweep.write()
    try:
        yield
    finally:
        unfinished = sweep.close()
    if unfinished:
        what = f"{unfinished} of {len(sweep.runs)} runs are not finished; the same command does them again"
        raise RunFailed("FAILED", what, 1)


def launch(launcher: Launcher, jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
    """Launch the jobs; a run that ended badly says so in its folder, any other exception of a job is raised.

    Raises RunFailed if the launcher lost its jobs: joblib's and submitit's do when a worker is killed.
    """
    from factdpo.config.schema import ConfigError
    from factdpo.runs.execute import RunFailed

    try:
        returns = launcher.launch(jobs, initial_job_idx=first)
    except ConfigError:
        raise
    except Exception as error:
        if isinstance(launcher, BasicLauncher):  # whose jobs run in this process: not theirs, but ours
            raise
        said = str(error).partition("\n")[0]
        what = f"{type(launcher).__name__} lost its jobs ({type(error).__name__}: {said})"
        raise RunFailed("FAILED", f"{what}; the same command goes on with them", 1) from error
    for one in returns:
        if not (one.status is JobStatus.FAILED and isinstance(one._return_value, RunFailed)):
            _ = one.return_value  # raises what the job raised, with a line of Hydra's own
    return returns


def batches(jobs: list[list[str]], size: int) -> Iterator[tuple[int, list[list[str]]]]:
    """(number of its first job, jobs) of each batch."""
    for start in range(0, len(jobs), size):
        yield start, jobs[start : start + size]


@functools.cache
def _short(key: str) -> str:
    """`dpo.beta` -> `beta`; but `split.seed` as it is, since other keys end like it."""
    from factdpo.config.overrides import flat
    from factdpo.config.schema import Config, to_dict

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
