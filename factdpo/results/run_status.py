"""The state and progress of runs, read from their folders at any time; writes nothing and blocks no run."""

import json
import os
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from factdpo.store import layout, run_lock
from factdpo.store.history import HISTORY
from factdpo.store.layout import Stamp, file_stamp, read_json, read_yaml
from factdpo.store.result import RUNNING, TO_DO, accuracy_metric, headline_row, read_record, summary
from factdpo.store.shapes import DamagedFile

RATE_SECONDS = 0.5  # least time between the two rows of a rate: rows written together carry the same time


@dataclass
class RunStatus:
    """A run as its folder shows it now; None where there is no value (yet)."""

    id: str
    folder: Path
    state: str  # FINISHED, STOPPED, FAILED, DIVERGED, PREEMPTED, running, killed (no process has it any more), or to do
    label: str  # the keys that differ within its sweep, else its name
    step: int = 0  # optimizer steps made
    steps: int | None = None  # of the whole run
    loss: float | None = None
    accuracies: dict[str, float] = field(default_factory=dict)  # by split: final, else at the last evaluation
    headline: str = "accuracy"  # `accuracy_metric` of the run
    numbers: dict[str, float] = field(default_factory=dict)  # by name as in W&B: final, else at the last evaluation
    seconds: float | None = None  # its share of its command's time; since it was opened, where that is not known
    error: str | None = None
    changed: float | None = None  # last write to the folder, s since the epoch
    steps_per_second: float | None = None  # lately
    score_seconds: float | None = None  # of a finished run: scoring after the training


Cache = dict[Path, tuple[Stamp, RunStatus]]  # runs that have a result, and the stamp of their result.json


def named(folder: Path) -> Path:
    """The folder under a path that has a name, which `.` and `..` have not."""
    return folder.resolve() if folder.name in ("", "..") else folder


def look(folder: Path, label: str | None, cache: Cache) -> RunStatus:
    """The status of the run in a folder, which need not exist yet. Pass the same `cache` each time."""
    cached = cache.get(folder)
    if cached is not None and file_stamp(folder / "result.json") == cached[0]:
        return cached[1]
    stamp, problem = file_stamp(folder / "result.json"), None
    try:
        if stamp is not None:
            cache[folder] = stamp, _ended(folder, label, read_record(folder))
            return cache[folder][1]
    except FileNotFoundError:
        pass  # done anew, meanwhile
    except DamagedFile as error:
        problem = str(error)
    status = _unfinished(folder, label)
    status.error = problem
    ended_meanwhile = file_stamp(folder / "result.json") != stamp
    return look(folder, label, cache) if ended_meanwhile else status


def last_change(folder: Path) -> float | None:
    """When anything in a folder was last written, or an empty one made, s since the epoch; None if it is not there."""
    try:
        made = os.stat(folder).st_mtime
        with os.scandir(folder) as entries:
            return max((entry.stat(follow_symlinks=False).st_mtime for entry in entries), default=made)
    except FileNotFoundError:
        return None


def _ended(folder: Path, label: str | None, result: dict[str, Any]) -> RunStatus:
    history, timing = _History(folder), result.get("timing") or {}
    training = result.get("training") or {}
    ended, opened = (folder / "result.json").stat().st_mtime, _modified(folder / "asked.json")
    seconds = ended - opened if opened else None
    return RunStatus(
        id=result["id"], folder=folder, state=result["state"],
        label=label or result["config"].get("label") or result.get("name") or result["id"],
        step=training.get("steps", history.step),
        steps=training.get("steps") if result["state"] == "FINISHED" else _planned_steps(folder),
        loss=history.loss, error=result.get("error"),
        accuracies=_accuracies(result) or history.accuracies,
        headline=accuracy_metric([headline_row(result)]),
        numbers=_numbers(result) or history.numbers(),
        seconds=timing.get("total_seconds", seconds),
        changed=ended, score_seconds=timing.get("score_seconds"),
    )  # fmt: skip


def _accuracies(result: dict[str, Any]) -> dict[str, float]:
    """By split, of the kind that `accuracy_metric` names; the other under `<split>, summed` or `<split>, per token`.

    The other is left out where it is the same number, as it is where lengths are equal.
    """
    trained = result.get("trained") or {}
    headline = accuracy_metric([headline_row(result)])
    other = "accuracy_per_token" if headline == "accuracy" else "accuracy"
    name = "per token" if headline == "accuracy" else "summed"
    accuracies = {split: scores.get(headline, scores["accuracy"]) for split, scores in trained.items()}
    others = {split: scores.get(other, accuracies[split]) for split, scores in trained.items()}
    return accuracies | {f"{s}, {name}": value for s, value in others.items() if value != accuracies[s]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    """The summary of a run that was scored: what tables have of it too."""
    scored = result.get("trained")
    return (
        {name: float(value) for name, value in summary(result).items() if "/" in name and _is_number(value)}
        if scored
        else {}
    )


def _unfinished(folder: Path, label: str | None) -> RunStatus:
    config, opened = _config(folder / "config.yaml"), _modified(folder / "asked.json")
    status = RunStatus(
        id=folder.name.rpartition("-")[2],
        folder=folder,
        state=TO_DO if opened is None else run_lock.running_or_killed(folder),
        label=label or config.get("label") or folder.name.rpartition("-")[0] or folder.name,
        steps=_planned_steps(folder),
    )
    if opened is None:
        return status
    history = _History(folder)
    status.step, status.loss, status.accuracies = history.step, history.loss, history.accuracies
    status.numbers = history.numbers()
    status.changed = last_change(folder) or opened
    if status.state == RUNNING:
        status.seconds, status.steps_per_second = time.time() - opened, history.steps_per_second()
    else:
        status.seconds = (_modified(folder / HISTORY) or status.changed) - opened  # others write into the folder later
    return status


class _History:
    """The ends of a history.jsonl that is being written: only the few rows needed are parsed."""

    def __init__(self, folder: Path) -> None:
        try:
            data = (folder / HISTORY).read_bytes()
        except OSError:
            data = b""
        self._data = data[: data.rfind(b"\n") + 1]  # a last line may be half written
        self._last = self._row(self._data.rfind(b'"loss": '))
        scored = self._row(self._data.rfind(b'"eval/'))
        self.step = int(self._last.get("step", 0))
        self.loss = float(self._last["loss"]) if self._last.get("loss") is not None else None  # NaN is a word there
        self.accuracies = {key.split("/")[1]: value for key, value in scored.items() if key.endswith("/accuracy")}

    def numbers(self) -> dict[str, float]:
        """The accuracies under the names of the record."""
        return {f"accuracy/{split}": value for split, value in self.accuracies.items()}

    def steps_per_second(self) -> float | None:
        """Over the later half of the rows; over all of them while they are few."""
        middle = self._row(len(self._data) // 2)
        try:
            seconds = self._last["time_seconds"] - middle["time_seconds"]
            if seconds >= RATE_SECONDS:
                return (self.step - middle["step"]) / seconds
            return self.step / self._last["time_seconds"] if seconds >= 0 else None  # < 0: resumed after a kill
        except (KeyError, TypeError, ZeroDivisionError):
            return None

    def _row(self, position: int) -> dict[str, Any]:
        """The row that contains a byte position; empty if there is none."""
        if position < 0:
            return {}
        line = self._data[self._data.rfind(b"\n", 0, position) + 1 : self._data.find(b"\n", position)]
        try:
            row = json.loads(line)
        except ValueError:
            return {}
        return row if isinstance(row, dict) else {}


def _planned_steps(folder: Path) -> int | None:
    """The optimizer steps that the run wrote down when its training began; None before, and in older records."""
    steps = (read_json(folder / layout.PLAN) or {}).get("steps")
    return steps if isinstance(steps, int) else None


def _config(path: Path) -> dict[str, Any]:
    return _parsed(path, file_stamp(path))


@lru_cache(maxsize=4096)  # status and dashboard poll; a config is rewritten as a whole, so its stamp changes
def _parsed(path: Path, stamp: Stamp | None) -> dict[str, Any]:
    return read_yaml(path)


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
