"""The jobs of a sweep: composed, checked and looked up once, all before the first one starts, and then launched."""

import contextlib
import io
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, env_override, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from factdpo.config.schema import Config, ConfigError, Executor
from factdpo.config.validate import validate
from factdpo.runs.answer import RunFailed, result_of
from factdpo.runs.attempt import Outcome
from factdpo.runs.identity import RunSpec, look_up
from factdpo.runs.session import Job, Session, current
from factdpo.sweep import executors
from factdpo.sweep.compose import Composer
from factdpo.sweep.parallel import answers
from factdpo.sweep.sweep import refusal

log = logging.getLogger(__name__)

IN_PROCESS = {"BasicLauncher", "BatchedLauncher"}  # launchers whose jobs run in this process


class Planner:
    """Looks up the runs that jobs ask for, and leaves the jobs in the session for the launcher."""

    def __init__(self, context: HydraContext, config: DictConfig, session: Session) -> None:
        self.session, self.composer = session, Composer(context.config_loader, config)
        self.here = config.hydra.launcher._target_.rpartition(".")[2] in IN_PROCESS
        self.specs: dict[tuple[Path, str], RunSpec] = {}  # by where it lies and its id, which other words may ask for

    def plan(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[RunSpec | None]:
        """The run that each job asks for, the jobs numbered from `first`; two jobs may ask for the same one.

        It is None where only the job can know it: with a folder of its own (hydra.job.chdir), paths mean something
        else. Raises one ConfigError, and plans nothing, if any of the runs cannot be done.
        """
        problems: dict[str, list[int]] = {}  # problem -> numbers of the jobs that have it
        memo: dict[str, Any] = {}
        planned: dict[tuple[str, ...], Job] = {}
        with _hydra_config_kept():
            for number, overrides in enumerate(job_overrides):
                if tuple(overrides) in self.session.jobs:
                    continue
                config = self.composer.compose(overrides, first + number)
                planned[tuple(overrides)] = job = Job(pickle.dumps(config, pickle.HIGHEST_PROTOCOL), None)
                if config.hydra.job.chdir:
                    continue
                try:
                    cfg = _task_config(config)
                    executors.check(cfg.engine)
                    spec = look_up(cfg, memo, self.session.facts, self.here and cfg.engine.executor is Executor.local)
                    job.spec = self.specs.setdefault((spec.folder.parent, spec.id), spec)
                except ConfigError as error:
                    for problem in str(error).splitlines():
                        problems.setdefault(problem, []).append(number)
        if problems:
            raise ConfigError(refusal(problems, [_without_ours(overrides) for overrides in job_overrides]))
        self.session.jobs |= planned
        return [self.session.jobs[tuple(overrides)].spec for overrides in job_overrides]


def _without_ours(overrides: Sequence[str]) -> list[str]:
    """A job's overrides without those that our sweeper adds."""
    return [override for override in filter_overrides(overrides) if not override.startswith(("sweep=", "label="))]


@contextlib.contextmanager
def _hydra_config_kept() -> Iterator[None]:
    """Hydra's own global config is as before when this ends."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        if before is not None:
            HydraConfig.instance().set_config(cast(DictConfig, before))


def _task_config(config: DictConfig) -> Config:
    """The validated config of a job; interpolations mean what they will mean when it runs. Changes Hydra's config."""
    folder = os.path.join(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir))
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = os.path.abspath(folder)
    HydraConfig.instance().set_config(config)  # which keeps a copy of the hydra node
    env_set = config.hydra.job.env_set
    with read_write(config), open_dict(config):
        del config["hydra"]
    with env_override(env_set):
        return validate(config)


def run_together(
    context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """What hydra/launcher=batched does: all runs are answered as one list, then each job returns its run's result.

    A run that failed stops no other. Raises ConfigError, and runs none, if one cannot be run. The jobs of another Hydra
    application, and those that set environment variables of their own, run one after the other as usual.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    if OmegaConf.get_type(config) is not Config:
        return _run_foreign(context, config, task_function, job_overrides, first)
    session = current()
    Planner(context, config, session).plan(job_overrides, first)
    jobs = [session.jobs[tuple(overrides)] for overrides in job_overrides]  # two of them may be the same
    for overrides in job_overrides:
        session.jobs.pop(tuple(overrides), None)
    outcomes: dict[Path, Outcome | ConfigError] = {}
    specs = [job.spec for job in jobs if job.spec is not None]
    if specs and not (config.hydra.job.env_set or config.dry_run):
        outcomes = {spec.folder: outcome for spec, outcome in answers(specs, session)}
    returns = []
    for job in jobs:
        task = task_function
        if job.spec is not None and job.spec.folder in outcomes:
            task = partial(_return_result, job.spec, outcomes[job.spec.folder])
        returns.append(_run_job(context, task, pickle.loads(job.config)))
    return returns


def _run_foreign(
    context: HydraContext, config: DictConfig, task: TaskFunction, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """The jobs of another application, one after the other."""
    log.info("Launching %d jobs locally", len(job_overrides))
    returns = []
    for number, overrides in enumerate(job_overrides, first):
        log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        composed = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = number
        returns.append(_run_job(context, task, composed))
    return returns


def _run_job(context: HydraContext, task: TaskFunction, config: DictConfig) -> JobReturn:
    done = run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return done


def _return_result(spec: RunSpec, outcome: Outcome | ConfigError, _: DictConfig) -> dict[str, Any]:
    return result_of(spec, outcome)


def launch(launcher: Launcher, jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
    """Launch the jobs; a run that ended badly says so in its folder, any other exception of a job is raised.

    Raises RunFailed if the launcher lost its jobs: joblib's and submitit's do when a worker is killed.
    """
    name = type(launcher).__name__
    try:
        returns = launcher.launch(jobs, initial_job_idx=first)
    except ConfigError:
        raise
    except Exception as error:
        if name in IN_PROCESS:  # the error is not the launcher's
            raise
        reason = str(error).partition("\n")[0]
        message = f"{name} lost its jobs ({type(error).__name__}: {reason}); rerun the same command to resume"
        raise RunFailed("FAILED", message, 1) from error
    for job in returns:
        if not isinstance(_error_of(job), RunFailed):
            _ = job.return_value  # raises what the job raised, with a line of Hydra's own
    return returns


def _error_of(job: JobReturn) -> Exception | None:
    """What the job raised, read without the line that Hydra prints beside it."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            _ = job.return_value
        except Exception as error:
            return error
    return None
