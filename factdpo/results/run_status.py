"""What state runs are in, read from their folders while they are being done: nothing is written, nobody is held up."""

import json
import os
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from factdpo.config.schema import DpoConfig, Orientation
from factdpo.store import layout
from factdpo.store.history import HISTORY
from factdpo.store.result import RUNNING, TO_DO
from factdpo.training.schedule import planned_steps

ASKED = {"config", "data", "model", "versions"}  # of every asked.json: identity.what_is_asked
RATE_SECONDS = 0.5  # rows that are written together have one time; a rate is taken between two that have not

STAGES = ("reference_seconds", "train_seconds", "score_seconds")  # in a result's timing


@dataclass
class Look:
    """A run as its folder shows it at this moment; what cannot be known (yet) is None."""

    id: str
    folder: Path
    state: str  # FINISHED, FAILED, DIVERGED, PREEMPTED, running, killed (nobody is doing it any more), or to do
    label: str  # what tells it from the others of its sweep, else its name
    step: int = 0  # optimizer steps made
    steps: int | None = None  # of the whole run
    loss: float | None = None
    accuracies: dict[str, float] = field(default_factory=dict)  # by split: final, else of the last point of the curve
    seconds: float | None = None  # what it took in its stages, until it ended, or until now
    error: str | None = None
    changed: float | None = None  # when anything was last written, s since the epoch
    steps_per_second: float | None = None  # lately
    score_seconds: float | None = None  # what came after the training of a finished run


Known = dict[Path, tuple[tuple[int, int], Look]]  # runs that have a result, and the time and size of their result.json


def named(folder: Path) -> Path:
    """The folder under a path that has a name, which `.` and `..` have not."""
    return folder.resolve() if folder.name in ("", "..") else folder


def homes(folder: Path) -> list[tuple[Path, list[str]]]:
    """(folder that runs lie in, names of the runs) for a run, a sweep, or what sweeps lie in; empty if it is none.

    A sweep of which no run was opened has no names. Raises ConfigError for a folder that cannot be read.
    """
    if is_run(folder):
        return [(folder.parent, [folder.name])]
    found = dict(layout.homes(folder))
    for pattern in ("sweep.json", "*/sweep.json", "*/*/sweep.json"):
        for path in folder.glob(pattern):
            found.setdefault(path.parent, [])
    return sorted(found.items())


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's: its asked.json has what ours have."""
    asked = _json(folder / "asked.json")
    return asked is not None and asked.keys() >= ASKED


def look(folder: Path, label: str | None, known: Known) -> Look:
    """The run that lies in a folder, or is to lie there; who looks again and again gives the same dict `known`."""
    before = known.get(folder)
    if before is not None and _stamp(folder / "result.json") == before[0]:
        return before[1]
    stamp, result = _stamp(folder / "result.json"), _json(folder / "result.json")
    try:
        if stamp is not None and result is not None:
            seen = _ended(folder, label, result)
            known[folder] = stamp, seen
            return seen
    except (KeyError, TypeError, AttributeError):
        pass  # JSON, but no result: as for a run without one
    seen = _unfinished(folder, label)
    return look(folder, label, known) if _stamp(folder / "result.json") != stamp else seen  # it ended meanwhile


def last_change(folder: Path) -> float | None:
    """When anything in a folder was last written, or an empty one made, s since the epoch; None if it is not there."""
    try:
        made = os.stat(folder).st_mtime
        with os.scandir(folder) as entries:
            return max((entry.stat(follow_symlinks=False).st_mtime for entry in entries), default=made)
    except FileNotFoundError:
        return None


def _ended(folder: Path, label: str | None, result: dict[str, Any]) -> Look:
    history, timing = _History(folder), result.get("timing") or {}
    trained = result.get("trained") or {}
    ended, opened = (folder / "result.json").stat().st_mtime, _modified(folder / "asked.json")
    seconds = ended - opened if opened else None
    return Look(
        id=result["id"],
        folder=folder,
        state=result["state"],
        label=label or result["config"].get("label") or result["name"],
        step=(result.get("training") or {}).get("steps", history.step),
        steps=_planned(result["config"]),
        loss=history.loss,
        accuracies={split: scores["accuracy"] for split, scores in trained.items()} or history.accuracies,
        seconds=sum(timing[stage] for stage in STAGES) if timing.keys() >= {*STAGES} else seconds,
        error=result.get("error"),
        changed=ended,
        score_seconds=timing.get("score_seconds"),
    )


def _unfinished(folder: Path, label: str | None) -> Look:
    config, opened = _config(folder), _modified(folder / "asked.json")
    seen = Look(
        id=folder.name.rpartition("-")[2],
        folder=folder,
        state=TO_DO if opened is None else layout.is_at_work(folder),
        label=label or config.get("label") or folder.name.rpartition("-")[0] or folder.name,
        steps=_planned(config),
    )
    if opened is None:
        return seen
    history = _History(folder)
    seen.step, seen.loss, seen.accuracies = history.step, history.loss, history.accuracies
    seen.changed = last_change(folder) or opened
    if seen.state == RUNNING:
        seen.seconds, seen.steps_per_second = time.time() - opened, history.steps_per_second()
    else:
        seen.seconds = seen.changed - opened
    return seen


class _History:
    """The ends of a history.jsonl that is being written: only the few rows that are asked for are parsed."""

    def __init__(self, folder: Path) -> None:
        try:
            data = (folder / HISTORY).read_bytes()
        except OSError:
            data = b""
        self._data = data[: data.rfind(b"\n") + 1]  # a last line may be half written
        self._last = self._row(self._data.rfind(b'"loss": '))
        scored = self._row(self._data.rfind(b'"eval/'))
        self.step = int(self._last.get("step", 0))
        self.loss = _number(self._last.get("loss"))
        self.accuracies = {key.split("/")[1]: value for key, value in scored.items() if key.endswith("/accuracy")}

    def steps_per_second(self) -> float | None:
        """Over the later half of the rows; over all of them while they are few."""
        middle = self._row(len(self._data) // 2)
        try:
            seconds = self._last["time_seconds"] - middle["time_seconds"]
            if seconds >= RATE_SECONDS:
                return (self.step - middle["step"]) / seconds
            return self.step / self._last["time_seconds"] if seconds >= 0 else None  # < 0: it went on after a kill
        except (KeyError, TypeError, ZeroDivisionError):
            return None

    def _row(self, position: int) -> dict[str, Any]:
        """The row that stands around a position; empty if there is none."""
        if position < 0:
            return {}
        line = self._data[self._data.rfind(b"\n", 0, position) + 1 : self._data.find(b"\n", position)]
        try:
            row = json.loads(line)
        except ValueError:
            return {}
        return row if isinstance(row, dict) else {}


def _number(value: Any) -> float | None:
    """A history's number: NaN and infinities stand in it as words."""
    return None if value is None else float(value)


def _planned(config: dict[str, Any]) -> int | None:
    try:
        dpo, split = config["dpo"], config["split"]
        asked = ("epochs", "max_steps", "batch_size", "gradient_accumulation_steps")
        both = split["orientation"] == Orientation.both.name
        return planned_steps(split["train"] * (1 + both), DpoConfig(**{key: dpo[key] for key in asked}))
    except (KeyError, TypeError):
        return None


def _config(folder: Path) -> dict[str, Any]:
    """The run's config.yaml; empty if it is not there yet."""
    path = folder / "config.yaml"
    return _parsed(path, _stamp(path))


@lru_cache(maxsize=4096)  # it is written anew, never changed: who looks again and again reads it once
def _parsed(path: Path, stamp: tuple[int, int] | None) -> dict[str, Any]:
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
