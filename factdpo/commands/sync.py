"""`factdpo sync`: uploads to Weights & Biases what ran offline; each run keeps its id, name and group."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from factdpo.commands.network import unreachable
from factdpo.commands.parser import Parser
from factdpo.config.schema import ConfigError
from factdpo.console import first_line, plural, say
from factdpo.store import run_lock
from factdpo.store.run_lock import lock_file
from factdpo.sweep import wandb_workspace
from factdpo.tracking import wandb_settings

AT_ONCE = 100  # runs per `wandb sync`: their paths are arguments of a command
TIMEOUT_SECONDS = 10.0  # for the server's first answer; without one `wandb sync` would try for hours
SHOWN = 5  # last lines of `wandb sync` that are shown when it leaves a run out


class NotUploaded(Exception):
    """Some runs could not be uploaded; those that were are marked, and left out when it is tried again."""

    exit_code = 1


def main(arguments: list[str]) -> None:
    """Uploads offline runs; raises ConfigError without folder, key or package, NotUploaded for runs that failed."""
    args = make_parser().parse_intermixed_args(arguments)
    files = sorted({file for folder in args.folders for file in offline_runs(Path(folder))})
    left = [file for file in files if not _is_uploaded(file)]
    running = [file for file in left if run_lock.is_held(lock_file(_folder(file)))]
    todo = [file for file in left if file not in running]
    counts = {"to upload": len(todo), "uploaded before": len(files) - len(left), "still running": len(running)}
    parts = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    say(plural(len(files), "offline run") + (f": {parts}" if parts else ""))
    if args.dry_run:
        for file in todo:
            say(f"  {_folder(file)}")
        return
    if args.workspace:
        wandb_workspace.check_installed()
    if todo:
        _upload(todo)
    if args.workspace:
        for home in sorted({_home(file) for file in files}):
            if (home / "sweep.json").is_file():
                say(f"{home}: saved as {_saved(home)}")


def offline_runs(folder: Path) -> list[Path]:
    """The files of W&B's offline runs in and below a folder; raises ConfigError if it is not there."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a run's, a sweep's, or the one that is their out=")
    return list(folder.rglob("wandb/offline-run-*/run-*.wandb"))


def _upload(files: list[Path]) -> None:
    """Hand the files to `wandb sync`, folder by folder, and say what became of each."""
    base_url = wandb_settings.base_url()
    if wandb_settings.key_source(os.environ) is None:
        raise ConfigError(f"sync: no API key found for {base_url}; `wandb login` asks for one, or set WANDB_API_KEY")
    if problem := unreachable(base_url, TIMEOUT_SECONDS):
        raise NotUploaded(f"sync: {base_url} cannot be reached ({problem}); the same command uploads these runs later")
    homes: dict[Path, list[Path]] = {}
    for file in files:
        homes.setdefault(_home(file), []).append(file)
    failed = 0
    for home, inside in homes.items():
        for chunk in (inside[start : start + AT_ONCE] for start in range(0, len(inside), AT_ONCE)):
            output = _wandb_sync(chunk)
            missing = [file for file in chunk if not _is_uploaded(file)]
            if missing and len(chunk) > 1:  # one file that it cannot read stops it before all others
                output = [line for file in missing for line in _wandb_sync([file])]
                missing = [file for file in missing if not _is_uploaded(file)]
            say(f"{home}: {len(chunk) - len(missing)} of {len(chunk)} uploaded")
            for file in missing:
                say(f"  not uploaded: {_folder(file)}", "bold red")
            for line in output[-SHOWN:] if missing else ():
                say(f"  {line}")
            failed += len(missing)
    if failed:
        raise NotUploaded(f"sync: {failed} of {len(files)} runs were not uploaded; the same command tries these again")


def _saved(home: Path) -> str:
    try:
        return wandb_workspace.save(home)
    except ConfigError:
        raise
    except Exception as error:  # of W&B's client, which has many kinds
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise NotUploaded(f"sync --workspace: {home} could not be saved ({reason})") from error


def _wandb_sync(files: Sequence[Path]) -> list[str]:
    """The lines that `wandb sync` printed."""
    command = [sys.executable, "-m", "wandb", "sync", *(str(file.absolute()) for file in files)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode(errors="replace").splitlines()


def _is_uploaded(file: Path) -> bool:
    """Whether `wandb sync` has marked it so."""
    return file.with_name(f"{file.name}.synced").exists()


def _folder(file: Path) -> Path:
    """The folder of ours, a run's or a sweep's, that holds an offline run's file."""
    return file.parents[2]


def _home(file: Path) -> Path:
    """The sweep's folder, or the one that single runs lie in."""
    folder = _folder(file)
    return folder if (folder / "sweep.json").is_file() else folder.parent


def make_parser() -> Parser:
    parser = Parser(
        "sync",
        "Upload to Weights & Biases what ran offline; sweeps stay together. What is uploaded is left out.",
        """examples:
  factdpo sync                         all runs and sweeps in outputs
  factdpo sync outputs/sweeps/beta     the runs of a sweep, and the sweep as a whole
  factdpo sync --dry-run               only says which""",
    )
    parser.add_folders("(default: outputs)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and upload nothing")
    workspace = """then save each sweep as a view in its project: its runs alone, with charts of what was swept
        (needs wandb-workspaces; each time a new one)"""
    parser.add_argument("--workspace", action="store_true", help=workspace)
    return parser
