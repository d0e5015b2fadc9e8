"""The command line: `factdpo [key=value ...]` and its commands, which `main` names; the rest is Hydra's."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from factdpo.commands import refusals
from factdpo.config import help as explain
from factdpo.config.folders import conf_folder
from factdpo.config.schema import Config, ConfigError
from factdpo.config.validate import validate

USAGE, INTERRUPTED = 2, 130  # exit codes
TRACEBACK_WANTED = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's own switch, as its user set it

ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("factdpo_keys", explain.help_keys, replace=True)


def main() -> None:
    """Runs one command; exits 0 when done, 1 when the run failed, 2 when it cannot be done as asked, 130 on Ctrl-C."""
    commands = {
        "doctor": _doctor,
        "eval": _eval,
        "results": _results,
        "report": _report,
        "dashboard": _dashboard,
        "status": _status,
        "clean": _clean,
        "sync": _sync,
    }
    command = commands.get("".join(sys.argv[1:2]), _compose_and_run)
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _compose_and_run() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands us its errors instead of printing them itself
    gc.set_threshold(20_000, 20)  # not 700: of 500 composed jobs, millions of small objects, none is garbage
    _or_refuse(_run)


@hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    def execute() -> None:
        asked = validate(cfg)
        if asked.sweep and HydraConfig.get().mode is not RunMode.MULTIRUN:
            raise ConfigError(
                f"sweep={asked.sweep}: names the folder of many runs, and this is one; sweeps=<option> starts the runs "
                "of a file in sweeps/, -m those of several values"
            )
        from factdpo.runs import answer, identity, session
        from factdpo.sweep import dry_run  # only now: what cannot run is refused before anything is imported

        spec = identity.look_up(asked)
        if asked.dry_run:
            dry_run.print_plan([spec])
        else:
            answer.answer(spec, session.current())

    if HydraConfig.get().mode is RunMode.MULTIRUN:
        execute()  # the other runs go on; Hydra raises the first error when all are done
    else:
        _or_refuse(execute)  # here, since Hydra would first print a line of its own


def _eval() -> None:
    arguments = {key: value for key, _, value in (a.partition("=") for a in sys.argv[2:])}
    if list(arguments) != ["run"] or not arguments["run"]:
        sys.exit(_say("eval: give one finished run's folder, as in: factdpo eval run=outputs/runs/<run>", USAGE))

    _or_refuse(lambda: eval.re_evaluate(Path(arguments["run"])))


def _doctor() -> None:
    from factdpo.commands import doctor

    doctor.main(conf_folder())


def _results() -> None:
    from factdpo.commands import results as table

    _or_refuse(lambda: table.main(sys.argv[2:], [Path("conf"), conf_folder()]))


def _report() -> None:
    from factdpo.commands import report as command

    _or_refuse(lambda: command.main(sys.argv[2:], [Path("conf"), conf_folder()]))


def _dashboard() -> None:
    from factdpo.commands import dashboard as command

    _or_refuse(lambda: command.main(sys.argv[2:], [Path("conf"), conf_folder()]))


def _status() -> None:
    from factdpo.commands import status

    _or_refuse(lambda: status.main(sys.argv[2:]))


def _clean() -> None:
    from factdpo.commands import clean

    _or_refuse(lambda: clean.main(sys.argv[2:]))


def _sync() -> None:
    from factdpo.commands import sync

    _or_refuse(lambda: sync.main(sys.argv[2:]))


def _or_refuse(command: Callable[[], object]) -> None:
    """Runs the command; what its user can put right is said in one message, any other error is a bug: its traceback."""
    try:
        command()
    except Exception as error:
        exit_code: int | None = getattr(error, "exit_code", None)  # of job.RunFailed, which is not imported yet
        message = str(error) if exit_code else refusals.refusal(error)
        if TRACEBACK_WANTED or not message:
            raise
        sys.exit(_say(message, exit_code or USAGE))


def _say(message: str, code: int) -> int:
    if message:
        print(f"factdpo: {message}", file=sys.stderr)
    return code
