"""`factdpo clean`: removes runs by their state, and leftovers of the cache; never what is in use or not ours."""

import argparse
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

from factdpo.commands.parser import Parser
from factdpo.config.schema import ConfigError
from factdpo.console import duration, plural, say
from factdpo.results import run_status
from factdpo.store import cache, layout, result, run_lock, shapes

SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
WRITING_SECONDS = 3600.0  # that a file may take to be written
LOCK_SECONDS = 0.05  # that `factdpo status` may make us wait for a lock that nobody holds
STATES_OF = {  # option -> states that it selects
    "failed": ("FAILED", "DIVERGED"), "preempted": ("PREEMPTED",), "killed": (result.KILLED,),
    "finished": ("FINISHED",),
}  # fmt: skip


@dataclass
class Target:
    """A folder, or a file, to remove, unless it has changed by the time that its lock is held."""

    folder: Path
    lock: Path | None  # None: of a file that its writer has left
    kind: str  # a state, or what kind of leftover
    changed: float  # s since the epoch
    size: int  # bytes


def main(arguments: list[str]) -> None:
    """Removes what was selected, once the user confirms; raises ConfigError for options that do not go together."""
    args = make_parser().parse_intermixed_args(arguments)
    states = {name for option, names in STATES_OF.items() if getattr(args, option) for name in names}
    if not (states or args.cache):
        raise ConfigError(
            "clean: nothing selected, so nothing is removed; give --failed, --preempted, --killed, --finished or "
            "--cache (factdpo clean --help)"
        )
    if args.finished and args.older is None:
        raise ConfigError("clean --finished: give --older too, as in --older 90d; these runs have results")
    folders = [_checked(Path(folder)) for folder in args.folders]
    if not (args.dry_run or args.yes or sys.stdin.isatty()):
        raise ConfigError("clean: there is no terminal to ask on; --yes removes without asking, --dry-run only shows")
    before = time.time() - (args.older or 0.0)
    targets = [target for folder in folders for target in runs(folder, states, before)]
    if args.cache:
        targets += [target for folder in folders for target in leftovers(folder, before, args.older is not None)]
        targets += [target for folder in folders for target in torn_files(folder, before)]
    unique = list({target.folder: target for target in targets}.values())
    _remove_all(unique, args.dry_run, args.yes)
    if args.cache:
        for folder in folders:
            _say_what_stays(folder / "cache", {target.folder for target in unique})


def _remove_all(targets: list[Target], dry_run: bool, yes: bool) -> None:
    """Lists what is to be removed, asks unless `yes`, and removes it; with `dry_run` only lists it."""
    for target in targets:
        say(_line(target))
    total = f"{plural(len(targets), 'folder' if all(t.lock for t in targets) else 'leftover')}, {_megabytes(targets)}"
    if not targets:
        say("nothing to remove")
    elif dry_run:
        say(f"would remove {total}")
    elif yes or _confirmed(total):
        gone = [target for target in targets if _removed(target)]
        say(f"removed {len(gone)} of {total}: {_megabytes(gone)} freed")
    else:
        say("nothing was removed")


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
log-probs, adapters, texts, models) stays and is counted: nobody can know whether it
will be asked for again. To be rid of it, delete the folder while nothing runs. Lock files stay:
they are empty, and without one that another process waits for, two could do one run.

examples:
  factdpo clean outputs --failed --older 30d --dry-run     what would go
  factdpo clean outputs/sweeps/beta --failed --killed      of one sweep
  factdpo clean outputs --cache                            leftovers in outputs/cache""",
    )
    parser.add_folders("a run, a sweep, or what they lie in (default: outputs)")
    what = parser.add_argument_group("what to remove; one of these at least")
    what.add_argument("--failed", action="store_true", help="runs that ended with an error (FAILED, DIVERGED)")
    what.add_argument("--preempted", action="store_true", help="runs that a signal ended (PREEMPTED)")
    what.add_argument("--killed", action="store_true", help="runs without a result that no process is doing")
    what.add_argument("--finished", action="store_true", help="runs that have results; only with --older")
    what.add_argument("--cache", action="store_true", help="leftovers in FOLDER/cache, see below")
    parser.add_argument(
        "--older", type=_duration, metavar="TIME", help="only what was last changed so long ago: 30d, 12h, 2w, 90m"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def runs(folder: Path, states: set[str], before: float) -> Iterator[Target]:
    """The runs at or below a folder that are in one of these states and were not changed since `before`."""
    homes = layout.homes(folder) if states else []
    if states and not homes and not (folder / "cache").is_dir():
        raise ConfigError(f"{folder}: holds no run and no sweep; give the folder of one, or what they lie in")
    for home, names in homes:
        for path in (home / name for name in names):
            changed = run_status.last_change(path)
            if _linked(path, folder) or not layout.is_run(path) or changed is None or changed > before:
                continue
            state = run_status.look(path, None, {}).state
            if state == result.KILLED and (path / "result.json").exists():
                continue  # of another version, or damaged: nobody knows what it was
            if state in states:
                yield Target(path, run_lock.lock_file(path), state, changed, _size(path))


def leftovers(folder: Path, before: float, abandoned: bool) -> Iterator[Target]:
    """What nobody will use of folder/cache: unfinished artefacts, and checkpoints as `--cache` says.

    Layout: an artefact is made in `<kind>/.<signature>.part` under `<kind>/<signature>.lock` (cache.fetch), a batch's
    checkpoints lie in `batches/<signature>-<random>` with their `lock` (checkpoints.Home), what a command's workers are
    told and say in `shares/<random>` with its `lock` (sweep/parallel.py).
    """
    if not (folder / "cache").is_dir():
        raise ConfigError(f"--cache: {folder} has no cache/; give the folder that it lies in, as outputs")
    for path in sorted((folder / "cache").glob("*/*")):
        if not path.is_dir() or _linked(path, folder):
            continue
        if part := re.fullmatch(r"\.([0-9a-f]{16})\.part", path.name):
            lock, kind = path.with_name(f"{part[1]}.lock"), "unfinished"
        elif path.parent.name == "batches" and re.fullmatch(r"[0-9a-f]{16}-\w+", path.name):
            trained = _is_trained(path, path.parents[1] / "adapters")
            lock, kind = path / "lock", "checkpoints" if trained else "abandoned" if abandoned else ""
        elif path.parent.name == "shares":
            lock, kind = path / "lock", "shares"
        else:
            continue
        changed = run_status.last_change(path)
        if kind and changed is not None and changed <= before and not run_lock.is_held(lock):
            yield Target(path, lock, kind, changed, _size(path))


def torn_files(folder: Path, before: float) -> Iterator[Target]:
    """Files that a kill left half written beside the runs (`cache.write_atomic`, `index`), an hour ago or more."""
    for home, _ in layout.homes(folder):
        for path in sorted(home.glob(".*.part")):
            changed = path.lstat().st_mtime
            if path.is_file() and not _linked(path, folder) and changed <= min(before, time.time() - WRITING_SECONDS):
                yield Target(path, None, "unfinished", changed, path.lstat().st_size)


def _say_what_stays(cache_folder: Path, gone: set[Path]) -> None:
    """The entries of the cache by kind, of which nobody can know whether a run will ask for them."""
    counts = {}
    for kind in sorted(path for path in cache_folder.iterdir() if path.is_dir()):
        entries = [path for path in kind.iterdir() if path.is_dir() and path not in gone]
        if entries:
            counts[kind.name] = f"{kind.name} {len(entries)} ({sum(map(_size, entries)) / 1e6:.1f} MB)"
    if counts:
        say(f"{cache_folder} keeps {', '.join(counts.values())}; delete it while nothing runs to be rid of them")


def _is_trained(batch: Path, adapters: Path) -> bool:
    """Whether each run of a batch's checkpoints has its weights in the cache, or there is no checkpoint."""
    states = sorted(batch.glob("[0-9]*/state.json"))
    try:
        keys = [key for path in states for key in shapes.read(path, shapes.CheckpointShape, "it is left")["keys"]]
    except (FileNotFoundError, shapes.DamagedFile):
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


def _removed(target: Target) -> bool:
    """Removes a folder under its lock and returns True; prints the reason if it has to stay."""
    if target.lock is None:
        target.folder.unlink(missing_ok=True)
        return True
    try:
        with FileLock(target.lock).acquire(timeout=LOCK_SECONDS, poll_interval=0.01):
            if run_status.last_change(target.folder) == target.changed:
                _remove(target.folder)
                return True
            reason = "changed since it was listed; it stays"
    except Timeout:
        reason = "in use by a process; it stays"
    except OSError as error:
        reason = f"not removed ({error})"
    say(f"{target.folder}: {reason}", "yellow")
    return False


def _remove(folder: Path) -> None:
    """Removes a folder, asked.json last: after a kill in here the rest is still recognised as a run."""
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


def _line(target: Target) -> str:
    seconds = time.time() - target.changed
    age = duration(seconds) if seconds < 2 * SECONDS["d"] else f"{seconds / SECONDS['d']:.0f} d"
    return f"{target.kind:<11}  {age:>11}  {_megabytes([target]):>10}  {target.folder}"


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; links count as themselves."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _megabytes(targets: list[Target]) -> str:
    return f"{sum(target.size for target in targets) / 1e6:.1f} MB"
