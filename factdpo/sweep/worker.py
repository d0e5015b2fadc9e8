"""A worker: a process that does a share of a command's runs, on this machine or on another one.

A share is a folder that the command and its worker both see. The command writes the runs into it; the worker adds what
it says, and a line as each run ends. Results, locks and cache lie in `out`, as always.
"""

import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from factdpo import console, signals
from factdpo.config.schema import ConfigError
from factdpo.runs.answer import answers
from factdpo.runs.identity import RunSpec
from factdpo.runs.session import Session

RUNS, SAID, ENDED = "runs.pickle", "said.log", "ended.jsonl"  # files of a share
STOPPED = "stopped"  # one with the number of the signal that ended the command, where another one comes in its place
GONE = "gone"  # one that says that its worker is, where nothing else can


def write_share(folder: Path, specs: list[RunSpec]) -> None:
    """The folder of a share: its runs, and the folder that the paths in their configs start from."""
    folder.mkdir(parents=True)
    (folder / RUNS).write_bytes(pickle.dumps((specs, Path.cwd())))
    for name in (SAID, ENDED):
        (folder / name).touch()


def read_share(folder: Path) -> tuple[list[RunSpec], Path]:
    """What `write_share` wrote."""
    return pickle.loads((folder / RUNS).read_bytes())


def work(folder: Path) -> int:
    """Do the runs of a share; returns the exit code of the process, that of a signal if one ended it."""
    folder = folder.absolute()
    specs, where = read_share(folder)
    os.chdir(where)
    console.console.is_interactive = True  # nobody sees it: stages need no lines
    with _output_to(folder / SAID):
        try:
            with signals.handled(partial(_meant, folder)):
                _answer(specs, folder / ENDED)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except signals.Preempted as stop:
            return int(str(stop.code))
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def _meant(folder: Path, number: int) -> int:
    """The signal that the command got: Ray ends a task as Ctrl-C does, whatever is the reason."""
    try:
        return int((folder / STOPPED).read_text())
    except FileNotFoundError:
        return number


def work_on(folder: Path, cores: int) -> int:
    """`work` on so many cores: torch, which is not imported yet, makes as many threads."""
    os.environ["OMP_NUM_THREADS"] = str(cores)
    return work(folder)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """What this process writes to stdout and stderr, by whichever way, goes to the end of a file."""
    before = os.dup(1), os.dup(2)
    with path.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in zip((1, 2), before, strict=True):
            os.dup2(old, stream)
            os.close(old)


def _answer(specs: list[RunSpec], ended: Path) -> None:
    with ended.open("a", encoding="utf-8") as file:
        for spec, outcome in answers(specs, Session(screen=Console(quiet=True))):
            line: dict[str, Any] = {"id": spec.id}
            if isinstance(outcome, ConfigError):
                line["refused"] = str(outcome)
            else:
                line["exit_code"] = outcome.exit_code
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


if __name__ == "__main__":
    signals.end_with(int(sys.argv[2]))
    sys.exit(work(Path(sys.argv[1])))
