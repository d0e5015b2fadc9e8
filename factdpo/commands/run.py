"""`factdpo [KEY=VALUE ...]`: composes a run, or with -m many, and does what it was asked to; the rest is Hydra's."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from factdpo import console
from factdpo.config import overrides
from factdpo.config.folders import conf_folder
from factdpo.config.schema import Config, ConfigError, Executor
from factdpo.config.validate import validate
from factdpo.runs import session

ConfigStore.instance().store(name="schema", node=Config)


def main(arguments: list[str], ours: "session.Session | None" = None) -> None:
    """Composes and runs, in a session if one is given; raises ConfigError for what cannot be done as asked."""
    console.quiet_libraries()  # some are imported as runs are looked up
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands us its errors instead of printing them itself
    gc.set_threshold(20_000, 20)  # not 700: of 500 composed jobs, millions of small objects, none is garbage
    for_hydra, notes = overrides.for_hydra(arguments)
    for line in notes:
        print(f"factdpo: {console.printable(line)}", file=sys.stderr)
    before, sys.argv = sys.argv, [sys.argv[0], *for_hydra]  # the only place where Hydra reads arguments from
    try:
        with session.opened(ours) as ours:
            ours.command = ["factdpo", *arguments]
            _run()
            if ours.error is not None:
                raise ours.error
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


@hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    def execute() -> None:
        config = validate(cfg)
        if config.sweep and HydraConfig.get().mode is not RunMode.MULTIRUN:
            raise ConfigError(
                f"sweep={config.sweep}: names the folder of many runs, and this is one; sweeps=<option> starts the "
                "runs of a file in sweeps/, -m those of several values"
            )
        from factdpo.runs import answer, identity
        from factdpo.sweep import dry_run, executors, parallel  # only now: refused is what cannot run before all that

        executors.check(config.engine)
        here = config.engine.executor is Executor.local
        spec = identity.look_up(config, kept=session.current().facts, here=here)
        session.current().requested.append(spec)
        if config.dry_run:
            dry_run.print_plan([spec])
        else:
            ((_, outcome),) = parallel.answers([spec], session.current())
            answer.result_of(spec, outcome)

    if HydraConfig.get().mode is RunMode.MULTIRUN:
        execute()  # the other runs go on; Hydra raises the first error when all are done
    else:
        try:
            execute()
        except Exception as error:  # which `main` raises: Hydra would print a line of its own first
            session.current().error = error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hydra's own state, and the logging that it sets up for every job, are as before when this ends."""
    root, state = logging.getLogger(), GlobalHydra.instance()
    handlers, level, before = [*root.handlers], root.level, state.hydra
    state.clear()
    try:
        yield
    finally:
        state.clear()
        state.hydra = before
        root.handlers[:] = handlers
        root.setLevel(level)
