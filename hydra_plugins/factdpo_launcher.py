"""hydra/launcher=batched: the jobs of a sweep are refused together, trained together, and then run one after another.

A cache warmer, not a second pipeline: each job goes, unchanged, to Hydra's `run_job`, and finds its training done. The
results are the same without it, only later; jobs of other Hydra applications run as they do under the basic launcher.

No `from __future__ import annotations` here: a scanned plugin module that has it breaks every start of Hydra.
"""

import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from factdpo.config import Config

log = logging.getLogger(__name__)


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
        labels = [list(filter_overrides(overrides)) for overrides in job_overrides]
        jobs = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            job = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(job):
                job.hydra.job.id = job.hydra.job.num = number
            jobs.append(job)
        asked = _validated(jobs, labels)
        log.info(f"Launching {len(jobs)} jobs locally")
        returns = []
        with _warm(asked):
            for job, label in zip(jobs, labels, strict=True):
                log.info(f"\t#{job.hydra.job.num} : {' '.join(label)}")
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


def _warm(asked: "list[Config]") -> AbstractContextManager[None]:
    if not asked:
        return nullcontext()
    from factdpo import job

    return job.warm(asked)


def _validated(jobs: list[DictConfig], labels: list[list[str]]) -> "list[Config]":
    """The configs of those jobs that are runs of factdpo; raises one ConfigError if any of them cannot be run.

    A job with a folder or an environment of its own (hydra.job.chdir, env_set) is left to itself: its paths mean
    something else there.
    """
    from factdpo.config import Config, ConfigError, validate

    ours = [
        number
        for number, job in enumerate(jobs)
        if OmegaConf.get_type(job) is Config and not job.hydra.job.chdir and not job.hydra.job.env_set
    ]
    if not ours:
        return []
    check = _check_of_data_and_weights()
    asked: list[Config] = []
    problems: dict[str, list[int]] = {}  # what is wrong -> numbers of the jobs in which it is
    for number in ours:
        try:
            with _inside(jobs[number]) as task_config:
                cfg = validate(task_config)
            check(cfg)
            asked.append(cfg)
        except ConfigError as error:
            for problem in str(error).splitlines():
                problems.setdefault(problem, []).append(number)
    if problems:
        raise ConfigError(_refusal(problems, labels))
    return asked


@contextmanager
def _inside(job: DictConfig) -> Iterator[DictConfig]:
    """The config that the job's task will be given; within, `${hydra:...}` means what it will mean to the task."""
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
        yield task_config
    finally:
        hydra_config.cfg = before


def _check_of_data_and_weights() -> "Callable[[Config], None]":
    """What job.execute does before it trains, and with it what it refuses; each file is read once, not once per job."""
    from factdpo import job, record, weights
    from factdpo.config import ConfigError, choose_engine
    from factdpo.facts import load_facts
    from factdpo.splits import make_splits

    facts = _once(load_facts)
    splits = _once(lambda data, split: make_splits(facts(data), split))
    obtainable = _once(lambda model: weights.check_obtainable(model, weights.locate(model)))

    def check(cfg: "Config") -> None:
        splits(cfg.data, cfg.split)
        try:
            obtainable(cfg.model)
        except ConfigError:
            cfg, _ = choose_engine(cfg)
            stored = record.read_result(job.run_folder(cfg, job.what_is_asked(cfg))).result
            if stored is None or stored["state"] != "FINISHED":  # a finished run needs no weights any more
                raise

    return check


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called once per value of its arguments; what it gave, or the ConfigError it raised, is kept."""
    from factdpo.config import ConfigError

    answers: dict[str, Any] = {}

    def ask(*arguments: Any) -> Any:
        key = repr(arguments)
        if key not in answers:
            try:
                answers[key] = function(*arguments)
            except ConfigError as error:
                answers[key] = error
        if isinstance(answers[key], ConfigError):
            raise answers[key]
        return answers[key]

    return ask


def _refusal(problems: dict[str, list[int]], labels: list[list[str]]) -> str:
    """Each problem once, with the jobs it is in; only the problems if all jobs have them all."""
    if all(len(numbers) == len(labels) for numbers in problems.values()):
        return "\n".join(problems)
    wrong = {number for numbers in problems.values() for number in numbers}
    lines = [f"{len(wrong)} of these {len(labels)} jobs cannot be run, so none of them was started:"]
    for problem, numbers in problems.items():
        lines += [f"  {problem}", *(f"    in {which}" for which in _names(numbers, labels))]
    return "\n".join(lines)


def _names(numbers: list[int], labels: list[list[str]]) -> list[str]:
    """Jobs by their overrides, without those that every job of the sweep has; by what they share if that says which."""
    everywhere = set.intersection(*map(set, labels))
    telling = [[override for override in label if override not in everywhere] for label in labels]
    shared = [override for override in telling[numbers[0]] if all(override in telling[n] for n in numbers)]
    if numbers == [n for n, label in enumerate(telling) if set(shared) <= set(label)]:
        which = " ".join(shared)
        return [f"each of the {len(numbers)} jobs with {which}" if len(numbers) > 1 and which else which or "every job"]
    return [" ".join(telling[n]) or "the job without overrides" for n in numbers]
