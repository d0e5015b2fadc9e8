"""How the runs of a sweep stand together: how many are done, how far the others are, and which is the best so far."""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factdpo.config.schema import ConfigError
from factdpo.results import run_status
from factdpo.results.run_status import Look
from factdpo.store import sweep_file
from factdpo.store.result import RUNNING, STATES, TO_DO


@dataclass
class Runs:
    """The runs of one folder: of a sweep also those that are only planned, in the sweep's order."""

    folder: Path
    question: str | None
    runs: list[Look]
    changed: float  # when anything was last written, s since the epoch

    def counts(self) -> dict[str, int]:
        found = Counter(run.state for run in self.runs)
        return {name: found[name] for name in STATES if found[name]}

    def is_running(self) -> bool:
        return any(run.state == RUNNING for run in self.runs)

    def steps(self) -> tuple[int, int] | None:
        """Optimizer steps made and to be made; a run that was not opened counts as the mean of the others."""
        known = [run.steps for run in self.runs if run.steps is not None]
        if not known:
            return None
        total = sum(known) + round(sum(known) / len(known)) * (len(self.runs) - len(known))
        return sum(run.step for run in self.runs), total

    def left_seconds(self) -> float | None:
        """About how long the runs that are being done and those to do will take; None if there is nothing to go by."""
        running = [run for run in self.runs if run.state == RUNNING]
        training = [run for run in running if run.steps is None or run.step < run.steps]
        rate = sum(run.steps_per_second or 0.0 for run in training or running)
        steps = self.steps()
        if not rate or steps is None:
            return None
        ended = [run for run in self.runs if run.state not in (RUNNING, TO_DO)]
        missing = steps[1] - steps[0] - sum((run.steps or run.step) - run.step for run in ended)
        scored = [run.score_seconds for run in self.runs if run.score_seconds is not None]
        scoring = sum(scored) / len(scored) * (len(self.runs) - len(ended)) if scored else 0.0
        return max(0, missing) / rate + scoring

    def best(self) -> tuple[Look, str] | None:
        """The run with the highest accuracy on held-out facts, or on what there is, and the split."""
        scored = [run for run in self.runs if run.accuracies]
        scored = [run for run in scored if run.state == "FINISHED"] or scored
        for split in ("test", "train"):
            if having := [run for run in scored if split in run.accuracies]:
                return max(having, key=lambda run: run.accuracies[split]), split
        return None


def look(folders: list[Path], known: run_status.Known) -> list[Runs]:
    """What lies in these folders now, the last changed first; raises ConfigError for a folder without runs."""
    found: dict[Path, Runs] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give that of a sweep or a run, or what they lie in")
        homes = run_status.homes(folder)
        if not homes:
            raise ConfigError(f"{folder}: holds no run and no sweep; give the folder of one, or what they lie in")
        for home, names in homes:
            one = _runs(home, names, known, planned=not run_status.is_run(folder))
            found[one.runs[0].folder if len(one.runs) == 1 else home] = one
    return sorted(found.values(), key=lambda one: -one.changed)


def _runs(home: Path, names: list[str], known: run_status.Known, planned: bool) -> Runs:
    plan = sweep_file.read(home) or {"question": None, "runs": {}}
    labels = {run["folder"]: run["label"] for run in plan["runs"].values()}
    names = list(dict.fromkeys([*labels, *names])) if planned else names
    runs = [run_status.look(home / name, labels.get(name), known) for name in names]
    written = [run.changed for run in runs if run.changed is not None]
    return Runs(home, plan["question"], runs, max([*written, run_status.last_change(home) or 0.0]))


def plain(one: Runs) -> dict[str, Any]:
    """As JSON has it: a loss that is not finite as a word, as in history.jsonl."""
    best = one.best()
    runs: list[dict[str, Any]] = [dataclasses.asdict(run) | {"folder": str(run.folder)} for run in one.runs]
    for run in runs:
        if run["loss"] is not None and not math.isfinite(run["loss"]):
            run["loss"] = str(run["loss"])
    return {
        "folder": str(one.folder),
        "question": one.question,
        "counts": one.counts(),
        "left_seconds": one.left_seconds(),
        "best": {"id": best[0].id, "split": best[1], "accuracy": best[0].accuracies[best[1]]} if best else None,
        "runs": runs,
    }
