"""The one table of commands, which dispatch, help, completion and `did you mean` read."""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple


class Command(NamedTuple):
    """A command; its module, which has the same name, has `main(arguments)` and `make_parser()`."""

    name: str
    line: str  # what it does, for the help

    def load(self) -> ModuleType:
        """Its module, imported only now: a command costs what it needs itself."""
        return import_module(f"factdpo.commands.{self.name}")


HELP = Command("help", "this text; help COMMAND, help GROUP or help KEY tells more")
VERSION = Command("version", "the version of factdpo")
COMMANDS = (
    Command("status", "how runs and sweeps stand, live"),
    Command("results", "many runs as one table, or two side by side"),
    Command("report", "a sweep or a run as one HTML file"),
    Command("dashboard", "sweeps and runs in the browser, live"),
    Command("ask", "what the base and the trained model say, side by side"),
    Command("eval", "score trained weights again, or on other facts"),
    Command("export", "a trained model for transformers, PEFT and the hub"),
    Command("sync", "upload to Weights & Biases what ran offline"),
    Command("clean", "remove runs by their state, and leftovers of the cache"),
    Command("doctor", "what this machine has, reaches and can run"),
    Command("completion", "tab completion for bash, zsh or fish"),
    HELP,
    VERSION,
)
NAMES = [command.name for command in COMMANDS]


def find(name: str) -> Command | None:
    """The command of that name, if there is one."""
    return next((command for command in COMMANDS if command.name == name), None)
