"""Errors that the user can put right, each as one message."""

import os
import re
import sys
from collections.abc import Callable

from factdpo.commands.table import NAMES
from factdpo.config import help as explain
from factdpo.config.folders import options
from factdpo.config.schema import ConfigError

USAGE = 2  # exit code of what cannot be done as asked
TRACEBACK_WANTED = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's own switch, as its user set it


def or_refuse(command: Callable[[], object]) -> None:
    """Runs a command; an error that its user can put right becomes one message, any other, a bug, its traceback."""
    try:
        command()
    except Exception as error:
        exit_code: int | None = getattr(error, "exit_code", None)  # of runs.answer.RunFailed, which is not imported yet
        message = str(error) if exit_code else refusal(error)
        if TRACEBACK_WANTED or not message:
            raise
        from factdpo.console import printable  # only now: it imports rich

        print(f"factdpo: {printable(message)}", file=sys.stderr)
        sys.exit(exit_code or USAGE)


def refusal(error: Exception) -> str:
    """What to tell the user about an error of theirs; empty for any other error."""
    if isinstance(error, ConfigError):
        return str(error)
    import yaml  # only now: what is in order does not pay for Hydra
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return explain.unknown_option(*error.missing_cfg_file.rsplit("/", 1), options=error.options)
    if isinstance(error, OverrideParseException):
        return explain.unreadable(error.override, str(error.message), NAMES)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _composition(error)
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {error}"
    return str(error) if isinstance(error, ValueError) and _raised_in(error).startswith("hydra.") else ""


def _composition(error: Exception) -> str:
    """The message for an error of Hydra or OmegaConf in a key or value: on the command line, or in an option's file."""
    text = f"{error}\n{error.__cause__ or ''}"
    if several := re.match("Ambiguous value for argument '(.*)'", text):
        return explain.several_values(several[1])
    if searched := re.match("Sweep parameters '(.*)' requires --multirun", text):
        return explain.many_runs(searched[1])
    key = re.search(r"full_key: (\S+)", text)
    problem = re.search(r"^(Key|Value|Invalid|field) .*|.*deletion$", text, re.MULTILINE)
    if group := re.search(r"override \+*(\S+?)=([^\n]*)\n.*(Cannot assign|is not a subclass)", text, re.DOTALL):
        return explain.group_given_a_value(group[1], group[2])
    if not (key and problem):
        merged = re.match(r"Error merging override \+*(.*)\n(.+)", text)
        return f"{merged[1]}: {merged[2]}" if merged else str(error)
    override = re.search(r"Could not override '(.*)'|Error merging override ([^=\n]*)=?(.*)", text)
    file = re.search(r"^In '(.*)':", text)
    place = f" (in {file[1]}.yaml)" if file else ""
    if problem[0].startswith("Key ") and file and key[1] == file[1].split("/")[0]:
        return f"{file[1]}.yaml: sets keys outside its group; its first line must be: # @package _global_"
    if problem[0].startswith("Key "):
        return explain.unknown_key(override[1] if override and override[1] else key[1], options()) + place
    return explain.wrong_value(key[1], override[3] if override and override[3] else "", problem[0]) + place


def _raised_in(error: Exception) -> str:
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return str(frame.tb_frame.f_globals.get("__name__", "")) if frame else ""
