"""`factdpo clean`: removes runs by their state, and leftovers of the cache; never what is in use or not ours."""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.text import Text

from factdpo import console
from factdpo.commands.parser import Parser, folder
from factdpo.config.schema import ConfigError
from factdpo.results import run_status
from factdpo.store import cache, layout, result

SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LOCK_SECONDS = 0.05  # that `factdpo status` may make us wait for a lock that nobody holds
OF_STATES = {
    "failed": ("FAILED", "DIVERGED"),
    "preempted": ("PREEMPTED",),
    "killed": (result.KILLED,),
    "finished": ("FINISHED",),
}


@dataclass
class Doomed:
    """What is to be removed, if it still is what it was when its lock is held."""

    folder: Path
    lock: Path
    what: str  # a state, or what kind of leftover
    changed: float  # s since the epoch
    size: int  # bytes


def main(arguments: list[str]) -> None:
    """Removes what was selected, after asking; raises ConfigError for what cannot be done as asked."""
    args = make_parser().parse_intermixed_args(arguments)
    states = {name for option, names in OF_STATES.items() if getattr(args, option) for name in names}
    if not (states or args.cache):
        raise ConfigError(
            "clean: nothing selected, so nothing is removed; give --failed, --preempted, --killed, --finished or "
            "--cache (factdpo clean --help)"
        )
    if args.finished and args.older is None:
        raise ConfigError("clean --finished: give --older too, as in --older 90d; these runs have results")
    if not (args.dry_run or args.yes or sys.stdin.isatty()):
        raise ConfigError("clean: there is no terminal to ask on; --yes removes without asking, --dry-run only shows")
    before = time.time() - (args.older or 0.0)
    folders = [_checked(Path(folder)) for folder in args.folders]
    doomed = {one.folder: one for folder in folders for one in runs(folder, states, before)}
    if args.cache:
        doomed |= {one.folder: one for folder in folders for one in leftovers(folder, before, args.older is not None)}
    _remove_all(list(doomed.values()), args.dry_run, args.yes)


def _remove_all(doomed: list[Doomed], dry_run: bool, yes: bool) -> None:
    """Lists what is to be removed, asks unless `yes`, and removes it; with `dry_run` only lists it."""
    for one in doomed:
        _say(_line(one))
    total = f"{len(doomed)} folder{'s' * (len(doomed) != 1)}, {_megabytes(sum(one.size for one in doomed))}"
    if not doomed:
        _say("nothing to remove")
    elif dry_run:
        _say(f"would remove {total}")
    elif yes or _confirmed(total):
        gone = [one for one in doomed if _removed(one)]
        _say(f"removed {len(gone)} of {total}: {_megabytes(sum(one.size for one in gone))} freed")
    else:
        _say("nothing was removed")


def make_parser() -> Parser:
    parser = Parser(
        "clean",
        "Removes runs by their state, and what kills left in the cache. Lists them first, and asks.",
        """A run that a process is doing is never removed, nor a folder that is not a run
of factdpo, nor anything behind a symbolic link. A sweep that lost runs lists them
as "to do": its command does them again.

--cache removes artefacts that a kill left unfinished, and checkpoints that nothing
will go on from: of batches whose trainings are all done, and with --older also of
those that nobody came back to in that time. The rest of the cache (reference
log-probs, adapters, texts, models) stays: nobody can know whether it will be asked
for again. To be rid of it, delete the folder while nothing runs. Lock files stay:
they are empty, and without one that another process waits for, two could do one run.

examples:
  factdpo clean outputs --failed --older 30d --dry-run     what would go
  factdpo clean outputs/sweeps/beta --failed --killed      of one sweep
  factdpo clean outputs --cache                            leftovers in outputs/cache""",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=folder,
        default=["outputs"],
        metavar="FOLDER",
        help="a run, a sweep, or what they lie in (default: outputs)",
    )
    what = parser.add_argument_group("what to remove; one of these at least")
    what.add_argument("--failed", action="store_true", help="runs that ended with an error (FAILED, DIVERGED)")
    what.add_argument("--preempted", action="store_true", help="runs that a signal ended (PREEMPTED)")
    what.add_argument("--killed", action="store_true", help="runs without a result that no process is doing")
    what.add_argument("--finished", action="store_true", help="runs that have results; only with --older")
    what.add_argument("--cache", action="store_true", help="leftovers in FOLDER/cache, as said below")
    parser.add_argument(
        "--older", type=_duration, metavar="TIME", help="only what was last changed so long ago: 30d, 12h, 2w, 90m"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def runs(folder: Path, states: set[str], before: float) -> Iterator[Doomed]:
    """The runs at or below a folder that are in one of these states and were not changed since `before`."""
    homes = layout.homes(folder) if states else []
    if states and not homes and not (folder / "cache").is_dir():
        raise ConfigError(f"{folder}: holds no run and no sweep; give the folder of one, or what they lie in")
    for home, names in homes:
        for path in (home / name for name in names):
            changed = run_status.last_change(path)
            if _linked(path, folder) or not layout.is_run(path) or changed is None or changed > before:
                continue
            found = run_status.look(path, None, {}).state
            if found == result.KILLED and (path / "result.json").exists():
                continue  # of another version, or damaged: nobody knows what it was
            if found in states:
                yield Doomed(path, layout.lock_file(path), found, changed, _size(path))


def leftovers(folder: Path, before: float, abandoned: bool) -> Iterator[Doomed]:
    """What nobody will use of folder/cache: unfinished artefacts, and checkpoints as `--cache` says.

    Layout: an artefact is made in `<kind>/.<signature>.part` under `<kind>/<signature>.lock` (cache.fetch), a batch's
    checkpoints lie in `batches/<signature>-<random>` with their `lock` (checkpoints.Home).
    """
    if not (folder / "cache").is_dir():
        raise ConfigError(f"--cache: {folder} has no cache/; give the folder that it lies in, as outputs")
    for path in sorted((folder / "cache").glob("*/*")):
        if not path.is_dir() or _linked(path, folder):
            continue
        if part := re.fullmatch(r"\.([0-9a-f]{16})\.part", path.name):
            lock, what = path.with_name(f"{part[1]}.lock"), "unfinished"
        elif path.parent.name == "batches" and re.fullmatch(r"[0-9a-f]{16}-\w+", path.name):
            trained = _is_trained(path, path.parents[1] / "adapters")
            lock, what = path / "lock", "checkpoints" if trained else "abandoned" if abandoned else ""
        else:
            continue
        changed = run_status.last_change(path)
        if what and changed is not None and changed <= before and not cache.is_held(lock):
            yield Doomed(path, lock, what, changed, _size(path))


def _is_trained(batch: Path, adapters: Path) -> bool:
    """Whether each run of a batch's checkpoints has its weights in the cache, or there is no checkpoint."""
    states = sorted(batch.glob("[0-9]*/state.json"))
    try:
        keys = [key for path in states for key in json.loads(path.read_text(encoding="utf-8"))["keys"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all((adapters / key / cache.MANIFEST).is_file() for key in keys)


def _checked(folder: Path) -> Path:
    if folder.is_symlink():
        raise ConfigError(f"{folder}: a link to {folder.resolve()}; give that folder itself")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give that of a sweep or a run, or what they lie in")
    return run_status.named(folder)


def _linked(path: Path, folder: Path) -> bool:
    """Whether the way from a folder down to a path leads through a symbolic link."""
    return any(step.is_symlink() for step in (path, *path.parents) if step.is_relative_to(folder))


def _removed(one: Doomed) -> bool:
    """Remove it under its lock, if it still is as it was listed; says so if not."""
    try:
        with FileLock(one.lock).acquire(timeout=LOCK_SECONDS, poll_interval=0.01):
            if run_status.last_change(one.folder) == one.changed:
                _remove(one.folder)
                return True
            _say(f"{one.folder}: changed since it was listed; it stays", "yellow")
    except Timeout:
        _say(f"{one.folder}: in use by a process; it stays", "yellow")
    except OSError as error:
        _say(f"{one.folder}: not removed ({error})", "yellow")
    return False


def _remove(folder: Path) -> None:
    """Of a run asked.json goes last: what a kill in here leaves is still known as a run, and is cleaned as one."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "asked.json"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    folder.rmdir()


def _confirmed(total: str) -> bool:
    try:
        return input(f"remove {total}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False


def _duration(text: str) -> float:
    """`30d` in seconds."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text):
        return float(match[1]) * SECONDS[match[2]]
    raise argparse.ArgumentTypeError(f"{text}: write a number and m, h, d or w, as in 30d or 12h")


def _line(one: Doomed) -> str:
    seconds = time.time() - one.changed
    age = console.duration(seconds) if seconds < 2 * SECONDS["d"] else f"{seconds / SECONDS['d']:.0f} d"
    return f"{one.what:<11}  {age:>11}  {_megabytes(one.size):>10}  {one.folder}"


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; links count as themselves."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _say(text: str, style: str = "") -> None:  # never wrapped: paths must stay whole
    console.console.print(Text(text, style), soft_wrap=True)
