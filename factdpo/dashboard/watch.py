"""What the pages show, read from the runs' folders at most once a second, however many pages are open."""

import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factdpo.config.schema import ConfigError
from factdpo.dashboard import machine
from factdpo.results import curves, run_status
from factdpo.results.run_status import RunStatus
from factdpo.results.sweep_status import Runs, runs_of
from factdpo.results.tables import SPLITS, in_order, words
from factdpo.store import layout, sweep_file
from factdpo.store.history import HISTORY
from factdpo.store.result import KILLED, RUNNING, TO_DO

FRESH_SECONDS = 1.0  # pages poll every two seconds
DRAWN = 14  # runs whose curves are drawn: seven colours, solid and dashed
TAIL_BYTES, TAIL_LINES = 65536, 40  # of a run.log


@dataclass
class Shown:
    """The subject of one page: a sweep, or a run that belongs to none."""

    name: str  # its folder relative to the watched one (sweeps/beta), by which pages request it
    runs: Runs
    is_sweep: bool
    problem: str | None = None  # why not all of it can be shown

    def plain(self) -> dict[str, Any]:
        """For JSON: what the overview and the page of this sweep or run have in common."""
        running = [run for run in self.runs.runs if run.state == RUNNING]
        return {
            "name": self.name, "is_sweep": self.is_sweep, "question": self.runs.question, "problem": self.problem,
            "counts": self.runs.counts(), "total": len(self.runs.runs), "steps": self.runs.steps(),
            "running_done": sum(run.step / run.steps for run in running if run.steps) / max(1, len(running)),
            "left_seconds": self.runs.left_seconds() if self.runs.is_running() else None,
            "changed": self.runs.changed, "best": self._best(),
            "asked": [metric.name.rpartition("/")[2] for metric in self.runs.choosing()],  # splits, if accuracies
        }  # fmt: skip

    def _best(self) -> dict[str, Any] | None:
        best = self.runs.best()
        return best._asdict() | {"metric": words(best.metric)} if best else None

    def stamp(self) -> str:
        """Changes whenever another run has ended; empty before the first one has."""
        ended = [run.changed or 0.0 for run in self.runs.runs if run.state not in (RUNNING, KILLED, TO_DO)]
        return f"{len(ended)}-{max(ended)}" if ended else ""


@dataclass
class Watch:
    """A folder and the state last read from it; thread-safe."""

    root: Path
    _read: float = -math.inf
    _shown: dict[str, Shown] = field(default_factory=dict)
    _statuses: run_status.Cache = field(default_factory=dict)
    _curves: dict[Path, tuple[layout.Stamp, dict[str, Any]]] = field(default_factory=dict)
    _machine: machine.Machine = field(default_factory=machine.Machine)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def shown(self) -> dict[str, Shown]:
        """Name -> sweep or single run, last changed first. Raises ConfigError if the folder cannot be read."""
        with self._lock:
            if time.monotonic() - self._read > FRESH_SECONDS:
                entries = [entry for home, names in layout.homes(self.root) for entry in self._of_home(home, names)]
                entries.sort(key=lambda entry: -entry.runs.changed)
                self._shown = {entry.name: entry for entry in entries}
                self._read = time.monotonic()
            return self._shown

    def overview(self) -> dict[str, Any]:
        """For JSON: every sweep and single run with its progress, and the machine's memory."""
        entries = self.shown().values()
        single = [(entry, entry.runs.runs[0]) for entry in entries if not entry.is_sweep]
        return {
            "root": str(self.root),
            "sweeps": [entry.plain() for entry in entries if entry.is_sweep],
            "runs": [_plain(run) | {"name": entry.name, "changed": entry.runs.changed} for entry, run in single],
            "splits": _splits([run for _, run in single]),
            "machine": self._memory([run for entry in entries for run in entry.runs.runs]),
        }

    def detail(self, entry: Shown) -> dict[str, Any]:
        """For JSON: a sweep or run with all its runs, some of their curves, and the machine's memory."""
        runs = entry.runs.runs
        with self._lock:
            drawn = [self._curve(run) for run in _to_draw(runs)]
        return entry.plain() | {
            "runs": [_plain(run) for run in runs],
            "splits": _splits(runs),
            "curves": [curve for curve in drawn if curve is not None],
            "results": entry.stamp(),
            "machine": self._memory(runs),
        }

    def _of_home(self, home: Path, names: list[str]) -> list[Shown]:
        problem = None
        try:
            sweep = sweep_file.read(home)
        except ConfigError as error:
            sweep, problem = {}, str(error)
        if sweep is None or layout.is_run(self.root):
            return [self._single(home / name) for name in names]
        return [Shown(self._name(home), runs_of(home, names, sweep, self._statuses), True, problem)]

    def _single(self, folder: Path) -> Shown:
        run = run_status.look(folder, None, self._statuses)
        return Shown(self._name(folder), Runs(folder, None, [run], run.changed or 0.0), False)

    def _name(self, folder: Path) -> str:
        return folder.resolve().name if folder == self.root else folder.relative_to(self.root).as_posix()

    def _curve(self, run: RunStatus) -> dict[str, Any] | None:
        """Training loss and accuracies over steps, read again when the file has grown; None without any."""
        path = run.folder / HISTORY
        stamp = layout.file_stamp(path)
        if stamp is None:
            return None  # not written yet
        try:
            if path not in self._curves or self._curves[path][0] != stamp:
                self._curves[path] = stamp, curves.read(run.folder)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # damaged: the other curves are drawn
        curve = self._curves[path][1]
        accuracies = {split: values["accuracy"] for split, values in curve["splits"].items()}
        about = {"id": run.id, "label": run.label}
        return about | {"loss": curve["loss"], "steps": curve["steps"], "accuracy": accuracies}

    def _memory(self, runs: list[RunStatus]) -> dict[str, Any]:
        return self._machine.memory([run.folder for run in runs if run.state == RUNNING])


def log_of(run: RunStatus) -> str:
    """The end of a run's log: from its last error on if there is one, else its last lines."""
    path = run.folder / "run.log"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"{path}: cannot be read ({error})"
    errors = [number for number, line in enumerate(lines) if " ERROR factdpo: " in line]
    return "\n".join(lines[errors[-1] :] if errors else lines[-TAIL_LINES:])


def _to_draw(runs: list[RunStatus]) -> list[RunStatus]:
    """At most DRAWN runs, in the sweep's order: those running, then those that ended last."""
    opened = [run for run in runs if run.state != TO_DO]
    running = [run for run in opened if run.state == RUNNING]
    ended = sorted((run for run in opened if run.state != RUNNING), key=lambda run: -(run.changed or 0.0))
    chosen = {run.id for run in [*running, *ended][:DRAWN]}
    return [run for run in runs if run.id in chosen]


def _splits(runs: list[RunStatus]) -> list[tuple[str, str]]:
    """The splits that any run has, each with the words that readers see."""
    scored = in_order(split for run in runs for split in run.accuracies)
    return [(split, SPLITS.get(split, split)) for split in scored]


def _plain(run: RunStatus) -> dict[str, Any]:
    rate, left = run.steps_per_second, None
    if run.state == RUNNING and rate and run.steps:
        left = max(0, run.steps - run.step) / rate
    return {
        "id": run.id, "label": run.label, "state": run.state, "step": run.step, "steps": run.steps,
        "loss": run.loss if run.loss is None or math.isfinite(run.loss) else str(run.loss),
        "accuracies": run.accuracies, "seconds": run.seconds, "left_seconds": left,
        "error": (run.error or "").strip().split("\n")[0],
    }  # fmt: skip
