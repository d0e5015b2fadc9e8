"""What the pages show, read from the runs' folders: at most once a second, however many pages are open."""

import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factdpo.config.schema import ConfigError
from factdpo.dashboard import machine
from factdpo.results import curves, run_status
from factdpo.results.run_status import Look
from factdpo.results.sweep_status import Runs
from factdpo.results.tables import SPLITS
from factdpo.store import sweep_file
from factdpo.store.history import HISTORY
from factdpo.store.result import KILLED, RUNNING, TO_DO

FRESH_SECONDS = 1.0  # pages ask every two seconds
DRAWN = 14  # runs whose curves are drawn: seven colours, solid and dashed
TAIL_BYTES, TAIL_LINES = 65536, 40  # of a run.log


@dataclass
class Shown:
    """What one page is about: a sweep, or a run that belongs to none."""

    name: str  # its folder below the one that is watched: sweeps/beta; what a page asks for it by
    runs: Runs
    is_sweep: bool
    problem: str | None = None  # why not all of it can be shown

    def plain(self) -> dict[str, Any]:
        """As JSON has it: what the overview and the page of this sweep or run have in common."""
        best = self.runs.best()
        running = [run for run in self.runs.runs if run.state == RUNNING]
        return {
            "name": self.name,
            "is_sweep": self.is_sweep,
            "question": self.runs.question,
            "problem": self.problem,
            "counts": self.runs.counts(),
            "total": len(self.runs.runs),
            "steps": self.runs.steps(),
            "running_done": sum(run.step / run.steps for run in running if run.steps) / max(1, len(running)),
            "left_seconds": self.runs.left_seconds() if self.runs.is_running() else None,
            "changed": self.runs.changed,
            "best": best
            and {
                "label": best[0].label,
                "split": SPLITS.get(best[1], best[1]),
                "accuracy": best[0].accuracies[best[1]],
                "final": best[0].state == "FINISHED",
            },
        }

    def stamp(self) -> str:
        """Changes when another run has ended; empty before the first one has."""
        ended = [run.changed or 0.0 for run in self.runs.runs if run.state not in (RUNNING, KILLED, TO_DO)]
        return f"{len(ended)}-{max(ended)}" if ended else ""


@dataclass
class Watch:
    """A folder and what was read of it; safe to be asked by several threads."""

    root: Path
    _read: float = -math.inf
    _shown: dict[str, Shown] = field(default_factory=dict)
    _known: run_status.Known = field(default_factory=dict)
    _curves: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = field(default_factory=dict)
    _machine: machine.Machine = field(default_factory=machine.Machine)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def shown(self) -> dict[str, Shown]:
        """Name -> sweep or single run, the last changed first. Raises ConfigError if the folder cannot be read."""
        with self._lock:
            if time.monotonic() - self._read > FRESH_SECONDS:
                found = [one for home, names in run_status.homes(self.root) for one in self._of_home(home, names)]
                self._shown = {one.name: one for one in sorted(found, key=lambda one: -one.runs.changed)}
                self._read = time.monotonic()
            return self._shown

    def overview(self) -> dict[str, Any]:
        shown = self.shown()
        single = [(one, one.runs.runs[0]) for one in shown.values() if not one.is_sweep]
        return {
            "root": str(self.root),
            "sweeps": [one.plain() for one in shown.values() if one.is_sweep],
            "runs": [_plain(run) | {"name": one.name, "changed": one.runs.changed} for one, run in single],
            "splits": _splits([run for _, run in single]),
            "machine": self._memory([run for one in shown.values() for run in one.runs.runs]),
        }

    def detail(self, one: Shown) -> dict[str, Any]:
        runs = one.runs.runs
        with self._lock:
            drawn = [drawn for run in _to_draw(runs) if (drawn := self._curve(run))]
        return one.plain() | {
            "runs": [_plain(run) for run in runs],
            "splits": _splits(runs),
            "curves": drawn,
            "results": one.stamp(),
            "machine": self._memory(runs),
        }

    def _of_home(self, home: Path, names: list[str]) -> list[Shown]:
        problem = None
        try:
            plan = sweep_file.read(home)
        except ConfigError as error:
            plan, problem = {}, str(error)
        if plan is None or run_status.is_run(self.root):
            return [self._single(home / name) for name in names]
        labels = {run["folder"]: run["label"] for run in plan.get("runs", {}).values()}
        runs = [
            run_status.look(home / name, labels.get(name), self._known) for name in dict.fromkeys([*labels, *names])
        ]
        changed = max([run.changed for run in runs if run.changed is not None] + [run_status.last_change(home) or 0.0])
        return [Shown(self._name(home), Runs(home, plan.get("question"), runs, changed), True, problem)]

    def _single(self, folder: Path) -> Shown:
        run = run_status.look(folder, None, self._known)
        return Shown(self._name(folder), Runs(folder, None, [run], run.changed or 0.0), False)

    def _name(self, folder: Path) -> str:
        return folder.resolve().name if folder == self.root else folder.relative_to(self.root).as_posix()

    def _curve(self, run: Look) -> dict[str, Any] | None:
        """Training loss and accuracies over steps; None before there are any. Read again when the file has grown."""
        path = run.folder / HISTORY
        try:
            found = path.stat()
            stamp = found.st_mtime_ns, found.st_size
            if path not in self._curves or self._curves[path][0] != stamp:
                self._curves[path] = stamp, curves.read(run.folder)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there yet, or damaged: the other curves are drawn
        read = self._curves[path][1]
        accuracies = {split: values["accuracy"] for split, values in read["splits"].items()}
        return {"id": run.id, "label": run.label, "loss": read["loss"], "steps": read["steps"], "accuracy": accuracies}

    def _memory(self, runs: list[Look]) -> dict[str, Any]:
        return self._machine.memory([run.folder for run in runs if run.state == RUNNING])


def log_of(run: Look) -> str:
    """The end of a run's log: what ended it, from the line that says so on; else the last lines."""
    path = run.folder / "run.log"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"{path}: cannot be read ({error})"
    ending = [number for number, line in enumerate(lines) if " ERROR factdpo: " in line]
    return "\n".join(lines[ending[-1] :] if ending else lines[-TAIL_LINES:])


def _to_draw(runs: list[Look]) -> list[Look]:
    """The runs that are being done, then those that ended last: so many of them, in the sweep's order."""
    opened = [run for run in runs if run.state != TO_DO]
    running = [run for run in opened if run.state == RUNNING]
    ended = sorted((run for run in opened if run.state != RUNNING), key=lambda run: -(run.changed or 0.0))
    chosen = {run.id for run in [*running, *ended][:DRAWN]}
    return [run for run in runs if run.id in chosen]


def _splits(runs: list[Look]) -> list[tuple[str, str]]:
    """The splits that any run has, each with what a reader calls it."""
    known = dict.fromkeys(split for run in runs for split in run.accuracies)
    order = [split for split in SPLITS if split in known]
    return [(split, SPLITS.get(split, split)) for split in [*order, *(known.keys() - {*order})]]


def _plain(run: Look) -> dict[str, Any]:
    rate, left = run.steps_per_second, None
    if run.state == RUNNING and rate and run.steps:
        left = max(0, run.steps - run.step) / rate
    return {
        "id": run.id,
        "label": run.label,
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "loss": run.loss if run.loss is None or math.isfinite(run.loss) else str(run.loss),
        "accuracies": run.accuracies,
        "seconds": run.seconds,
        "left_seconds": left,
        "error": (run.error or "").strip().split("\n")[0],
    }
