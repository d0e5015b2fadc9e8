"""The command line: `factdpo [key=value ...]` and its commands, which `main` names; the rest is Hydra's."""

import gc
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from factdpo.config import help as explain
from factdpo.config.schema import Config, ConfigError, validate
from hydra_plugins.factdpo_searchpath import conf_folder

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
        from factdpo.runs import execute as job
        from factdpo.runs import identity
        from factdpo.sweep import dry_run as plan  # only now: what cannot run is refused before anything is imported

        run = identity.look_up(asked)
        if asked.dry_run:
            plan.print_plan([run])
        else:
            job.answer(run)

    if HydraConfig.get().mode is RunMode.MULTIRUN:
        execute()  # the other runs go on; Hydra raises the first error when all are done
    else:
        _or_refuse(execute)  # here, since Hydra would first print a line of its own


def _eval() -> None:
    arguments = {key: value for key, _, value in (a.partition("=") for a in sys.argv[2:])}
    if list(arguments) != ["run"] or not arguments["run"]:
        sys.exit(_say("eval: give one finished run's folder, as in: factdpo eval run=outputs/runs/<run>", USAGE))
    from factdpo.runs import execute as job

    _or_refuse(lambda: job.re_evaluate(Path(arguments["run"])))


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
        message = str(error) if exit_code else _refusal(error)
        if TRACEBACK_WANTED or not message:
            raise
        sys.exit(_say(message, exit_code or USAGE))


def _refusal(error: Exception) -> str:
    """What to tell the user about an error of theirs; empty for any other error."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return explain.unknown_option(*error.missing_cfg_file.rsplit("/", 1), options=error.options)
    if isinstance(error, OverrideParseException):
        return explain.unreadable(error.override, str(error.message))
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _composition(error)
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {error}"
    return str(error) if isinstance(error, ValueError) and _raised_in(error).startswith("hydra.") else ""


def _composition(error: Exception) -> str:
    """What Hydra and OmegaConf say about a key or a value: on the command line, or in an option's file."""
    said = f"{error}\n{error.__cause__ or ''}"
    if several := re.match("Ambiguous value for argument '(.*)'", said):
        return explain.several_values(several[1])
    if searched := re.match("Sweep parameters '(.*)' requires --multirun", said):
        return explain.many_runs(searched[1])
    key = re.search(r"full_key: (\S+)", said)
    problem = re.search(r"^(Key|Value|Invalid|field) .*|.*deletion$", said, re.MULTILINE)
    if not (key and problem):
        return str(error)
    override = re.search(r"Could not override '(.*)'|Error merging override ([^=\n]*)=?(.*)", said)
    file = re.search(r"^In '(.*)':", said)
    place = f" (in {file[1]}.yaml)" if file else ""
    if problem[0].startswith("Key ") and file and key[1] == file[1].split("/")[0]:
        return f"{file[1]}.yaml: sets keys outside its group; its first line must be: # @package _global_"
    if problem[0].startswith("Key "):
        groups = [p.name for p in conf_folder().iterdir() if p.is_dir() and p.name != "hydra"]
        return explain.unknown_key(override[1] if override and override[1] else key[1], [*groups, "sweeps"]) + place
    return explain.wrong_value(key[1], override[3] if override and override[3] else "", problem[0]) + place


def _raised_in(error: Exception) -> str:
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return str(frame.tb_frame.f_globals.get("__name__", "")) if frame else ""


def _say(message: str, code: int) -> int:
    if message:
        print(f"factdpo: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
