"""hydra/launcher=batched: the jobs of a sweep are refused together, trained together, and then run one after another.

A cache warmer, not a second pipeline: each job goes, unchanged, to Hydra's `run_job`, and finds its training done. The
results are the same without it, only later; jobs of other Hydra applications run as they do under the basic launcher.

No `from __future__ import annotations` here: a scanned plugin module that has it breaks every start of Hydra.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, env_override, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from factdpo.identity import Run


@dataclass
class BatchedLauncherConf:
    _target_: str = "hydra_plugins.factdpo_launcher.BatchedLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="batched", node=BatchedLauncherConf, provider="factdpo")


class BatchedLauncher(Launcher):
    """Hydra's basic launcher, with a look at all jobs before the first one starts."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What came of each job; a failed one stops no other. Raises ConfigError, and runs none, if one cannot run."""
        assert self.config is not None and self.task_function is not None and self.hydra_context is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = looked_up(self.hydra_context, self.config, job_overrides, initial_job_idx)
        for overrides in job_overrides:
            _looked_up.pop(tuple(overrides), None)
        returns = []
        with _warm([run for job, run in jobs if run is not None and not job.hydra.job.env_set]):
            for job, _ in jobs:
                returns.append(
                    run_job(
                        hydra_context=self.hydra_context,
                        task_function=self.task_function,
                        config=job,
                        job_dir_key="hydra.sweep.dir",
                        job_subdir_key="hydra.sweep.subdir",
                    )
                )
                configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return returns


def _warm(runs: "list[Run]") -> AbstractContextManager[None]:
    if not runs:
        return nullcontext()
    from factdpo import job

    return job.warm(runs)


_looked_up: "dict[tuple[str, ...], tuple[DictConfig, Run | None]]" = {}  # jobs that their launcher has not had yet


def looked_up(
    context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> "list[tuple[DictConfig, Run | None]]":
    """Each job's config and the run that it asks for, numbered from `first`; kept from a sweeper for its launcher.

    The run is None where only the job can know it: in another Hydra application, or with a folder of its own
    (hydra.job.chdir), where paths mean something else. Raises one ConfigError if any of the runs cannot be done.
    """
    from factdpo.config import Config, ConfigError, validate
    from factdpo.identity import look_up
    from factdpo.sweep import refusal

    problems: dict[str, list[int]] = {}  # what is wrong -> numbers of the jobs in which it is
    known: dict[str, Any] = {}
    for number, overrides in enumerate(job_overrides):
        if tuple(overrides) in _looked_up:
            continue
        job = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = first + number
        run = None
        try:
            if OmegaConf.get_type(job) is Config and not job.hydra.job.chdir:
                with _inside(job) as task_config:
                    run = look_up(validate(task_config), known)
        except ConfigError as error:
            for problem in str(error).splitlines():
                problems.setdefault(problem, []).append(number)
        _looked_up[tuple(overrides)] = job, run
    if problems:
        _looked_up.clear()
        raise ConfigError(refusal(problems, [list(filter_overrides(overrides)) for overrides in job_overrides]))
    return [_looked_up[tuple(overrides)] for overrides in job_overrides]


@contextmanager
def _inside(job: DictConfig) -> Iterator[DictConfig]:
    """The config that the job's task will be given; within, what it refers to means what it will mean to the task."""
    hydra_config = HydraConfig.instance()
    before = hydra_config.cfg
    hydra_config.set_config(job)
    try:
        folder = os.path.join(str(job.hydra.sweep.dir), str(job.hydra.sweep.subdir))
        with read_write(job.hydra.runtime), open_dict(job.hydra.runtime):
            job.hydra.runtime.output_dir = os.path.abspath(folder)
        hydra_config.set_config(job)
        task_config = copy.deepcopy(job)
        with read_write(task_config), open_dict(task_config):
            del task_config["hydra"]
        with env_override(job.hydra.job.env_set):
            yield task_config
    finally:
        hydra_config.cfg = before
