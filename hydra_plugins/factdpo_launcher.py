"""hydra/launcher=batched: the jobs of a sweep are refused together, trained together, and then run one after another.

A cache warmer, not a second pipeline: each job goes, unchanged, to Hydra's `run_job`, and finds its training done. The
results are the same without it, only later; another Hydra application runs as under the basic launcher.

No `from __future__ import annotations` here: a scanned plugin module that has it breaks every start of Hydra.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, env_override, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from factdpo.runs.identity import Run


@dataclass
class BatchedLauncherConf:
    _target_: str = "hydra_plugins.factdpo_launcher.BatchedLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="batched", node=BatchedLauncherConf, provider="factdpo")


class BatchedLauncher(BasicLauncher):
    """Hydra's basic launcher, with a look at all jobs before the first one starts."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What came of each job; a failed one stops no other. Raises ConfigError, and runs none, if one cannot run."""
        from factdpo.config.schema import Config
        from hydra_plugins._factdpo_compose import compose

        assert self.config is not None and self.task_function is not None and self.hydra_context is not None
        if OmegaConf.get_type(self.config) is not Config:  # another application
            return super().launch(job_overrides, initial_job_idx)
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        runs = looked_up(self.hydra_context, self.config, job_overrides, initial_job_idx)
        for overrides in job_overrides:
            _looked_up.pop(tuple(overrides), None)  # taken
        alone = self.config.hydra.job.env_set or self.config.dry_run
        together = [] if alone else [run for run in runs if run is not None]
        returns = []
        with _warm(together):
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                returns.append(
                    run_job(
                        hydra_context=self.hydra_context,
                        task_function=self.task_function,
                        config=compose(self.hydra_context, self.config, overrides, number),
                        job_dir_key="hydra.sweep.dir",
                        job_subdir_key="hydra.sweep.subdir",
                    )
                )
                configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return returns


def _warm(runs: "list[Run]") -> AbstractContextManager[None]:
    if not runs:
        return nullcontext()
    from factdpo.runs import execute as job

    return job.warm(runs)


_looked_up: "dict[tuple[str, ...], Run | None]" = {}  # by their overrides: what a sweeper knows and its launcher wants


def looked_up(
    context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> "list[Run | None]":
    """The run that each job asks for, the jobs numbered from `first`; kept from a sweeper for its launcher.

    It is None where only the job can know it: with a folder of its own (hydra.job.chdir), paths mean something else.
    Raises one ConfigError if any of the runs cannot be done.
    """
    from factdpo.config.schema import ConfigError
    from factdpo.config.validate import validate
    from factdpo.runs.identity import look_up
    from factdpo.sweep.sweep import refusal
    from hydra_plugins._factdpo_compose import compose

    problems: dict[str, list[int]] = {}  # what is wrong -> numbers of the jobs in which it is
    known: dict[str, Any] = {}
    runs: dict[tuple[Path, str], Run] = {}  # some jobs may ask for the same run, in other words
    for number, overrides in enumerate(job_overrides):
        if tuple(overrides) in _looked_up:
            continue
        job = compose(context, config, overrides, first + number)
        run = None
        try:
            if not job.hydra.job.chdir:
                with _inside(job) as task_config:
                    run = look_up(validate(task_config), known)
                    run = runs.setdefault((run.folder.parent, run.id), run)
        except ConfigError as error:
            for problem in str(error).splitlines():
                problems.setdefault(problem, []).append(number)
        _looked_up[tuple(overrides)] = run
    if problems:
        _looked_up.clear()
        raise ConfigError(refusal(problems, [_as_asked(overrides) for overrides in job_overrides]))
    return [_looked_up[tuple(overrides)] for overrides in job_overrides]


def _as_asked(overrides: Sequence[str]) -> list[str]:
    """A job's overrides without those that our sweeper adds."""
    return [override for override in filter_overrides(overrides) if not override.startswith(("sweep=", "label="))]


@contextmanager
def _inside(job: DictConfig) -> Iterator[DictConfig]:
    """What is left of the job's config is what its task will be given; within, it means what it will mean there."""
    hydra_config, env_set = HydraConfig.instance(), job.hydra.job.env_set
    before = hydra_config.cfg
    hydra_config.cfg = job  # type: ignore  # as set_config leaves it: typed as its hydra node alone
    try:
        folder = os.path.join(str(job.hydra.sweep.dir), str(job.hydra.sweep.subdir))
        with read_write(job.hydra.runtime), open_dict(job.hydra.runtime):
            job.hydra.runtime.output_dir = os.path.abspath(folder)
        hydra_config.set_config(job)  # which keeps a copy of the hydra node
        with read_write(job), open_dict(job):
            del job["hydra"]
        with env_override(env_set):
            yield job
    finally:
        hydra_config.cfg = before
