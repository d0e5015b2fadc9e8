"""Which folders are runs, where they lie, which files mark them, and whether a process is working on them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factdpo.config.schema import ConfigError
from factdpo.store import shapes, sweep_file

PLAN = "plan.json"  # in a run's folder once its training begins: {"steps": its optimizer steps}
SWEEPS = "sweeps"  # the folder of all sweeps, in out=
DEPTH = 2  # levels below a folder that are searched for runs: outputs/sweeps/<name>
Stamp = tuple[int, int, int]  # times (ns) of a file's content and of its entry, and its size


def has_record(folder: Path | str) -> bool:
    """Whether a folder among others is taken for a run's: cheap, since thousands are listed."""
    return os.path.exists(f"{folder}/result.json") or os.path.exists(f"{folder}/asked.json")


def is_run(folder: Path) -> bool:
    """Whether a folder surely is a run's: its asked.json has the keys of ours. Needed before anything is deleted."""
    try:
        read_asked(folder)
    except (FileNotFoundError, ConfigError):
        return False
    return True


def read_asked(folder: Path) -> dict[str, Any]:
    """What a run's id is a hash of; raises FileNotFoundError without its asked.json, and DamagedFile for another."""
    return shapes.read(folder / "asked.json", shapes.AskedShape, "the run's command writes it anew")


def homes(folder: Path) -> list[tuple[Path, list[str]]]:
    """(folder that runs lie in, names of the runs) for a run, a sweep, or what sweeps lie in; [] if there is none.

    A sweep of which no run was opened has no names. Raises ConfigError for a folder that cannot be read.
    """
    if is_run(folder):
        return [(folder.parent, [folder.name])]
    names_of = dict(_homes_below(folder, DEPTH))
    for depth in range(DEPTH + 1):
        for path in folder.glob("*/" * depth + sweep_file.FILE):
            names_of.setdefault(path.parent, [])
    if not names_of and has_record(folder):  # a run's, and damaged: its reader says how
        return [(folder.parent, [folder.name])]
    return sorted(names_of.items())


def out_of(folder: Path) -> Path:
    """The `out` of a run's folder, which is a level higher for a run of a sweep; absolute."""
    home = folder.resolve().parent
    return home.parent.parent if home.parent.name == SWEEPS else home.parent


def run_names(home: Path) -> list[str]:
    """The names of the runs that lie in a folder, sorted; raises ConfigError if it cannot be read."""
    return [name for name in _subfolders(home) if has_record(f"{home}/{name}")]


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's JSON object; None if the file is not there, or holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def file_stamp(path: Path | str) -> Stamp | None:
    """Times (ns) and size of a file, which change when it is written; None if it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size


def read_yaml(path: Path) -> dict[str, Any]:
    """A file's YAML mapping; {} if the file is not there (yet), or holds anything else."""
    import yaml

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _homes_below(folder: Path, depth: int) -> Iterator[tuple[Path, list[str]]]:
    below = _subfolders(folder)
    runs = [name for name in below if has_record(f"{folder}/{name}")]
    if runs:
        yield folder, runs
    if depth:
        for name in sorted({*below} - {*runs}):
            yield from _homes_below(folder / name, depth - 1)


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read ({error})") from None
