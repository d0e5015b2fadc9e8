"""The progress of a sweep: counts per state, steps made and to be made, time left, and the best setting so far."""

import dataclasses
import math
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from factdpo.config.schema import ConfigError
from factdpo.results import run_status
from factdpo.results.best import RANKED_BY
from factdpo.results.run_status import Cache, RunStatus
from factdpo.store import layout, sweep_file
from factdpo.store.result import RUNNING, STATES, TO_DO
from factdpo.store.sweep_file import Metric, metrics_asked

_SEED = re.compile(r"(^| )\S*seed=\S+")  # in a label


class Best(NamedTuple):
    """The setting with the highest accuracy: the mean over its runs, which differ in their seeds."""

    label: str  # without seeds
    split: str
    accuracy: float
    runs: int
    final: bool  # whether these runs are finished


@dataclass
class Runs:
    """The runs of one folder; those of a sweep in its order, with those that were not opened yet."""

    folder: Path
    question: str | None
    runs: list[RunStatus]
    changed: float  # last write, s since the epoch
    metrics: list[Metric] = field(default_factory=list)  # that the sweep asks about; [] if it does not say

    def counts(self) -> dict[str, int]:
        count = Counter(run.state for run in self.runs)
        return {state: count[state] for state in STATES if count[state]}

    def is_running(self) -> bool:
        return any(run.state == RUNNING for run in self.runs)

    def steps(self) -> tuple[int, int] | None:
        """Optimizer steps made, and those of the whole sweep: a run without a plan counts as the mean of the others."""
        if not (planned := [run.steps for run in self.runs if run.steps is not None]):
            return None
        total = sum(planned) + round(sum(planned) / len(planned)) * (len(self.runs) - len(planned))
        return sum(run.step for run in self.runs), total

    def left_seconds(self) -> float | None:
        """Estimated time until all runs have ended; None while no run makes measurable progress."""
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

    def splits(self) -> list[str]:
        """The splits whose accuracy says which setting is best: those that the sweep asks about, then the usual."""
        asked = [metric.name.removeprefix("accuracy/") for metric in self.metrics if _is_accuracy(metric)]
        return list(dict.fromkeys([*asked, *RANKED_BY]))

    def best(self) -> Best | None:
        """The setting whose finished runs have the highest mean accuracy on the first of `splits` that there is.

        Of the unfinished runs while none is finished.
        """
        scored = [run for run in self.runs if run.accuracies]
        finished = [run for run in scored if run.state == "FINISHED"]
        for split in self.splits():
            settings: dict[str, list[float]] = {}
            for run in finished or scored:
                if split in run.accuracies:
                    label = _SEED.sub("", run.label).strip() or self.folder.name
                    settings.setdefault(label, []).append(run.accuracies[split])
            if settings:
                label, values = max(settings.items(), key=lambda setting: statistics.fmean(setting[1]))
                return Best(label, split, statistics.fmean(values), len(values), bool(finished))
        return None


def _is_accuracy(metric: Metric) -> bool:
    return metric.name.startswith("accuracy/") and not metric.lower_is_better


def look(folders: list[Path], cache: Cache) -> list[Runs]:
    """The runs in these folders now, grouped by sweep, last changed first; ConfigError for a folder without runs."""
    groups: dict[Path, Runs] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give that of a sweep or a run, or what they lie in")
        homes = layout.homes(folder)
        if not homes:
            raise ConfigError(f"{folder}: holds no run and no sweep; give the folder of one, or what they lie in")
        for home, names in homes:
            sweep = sweep_file.read(home) or {}
            group = runs_of(home, names, sweep, cache, opened_only=layout.is_run(folder))
            groups[group.runs[0].folder if len(group.runs) == 1 else home] = group
    return sorted(groups.values(), key=lambda group: -group.changed)


def runs_of(home: Path, names: list[str], sweep: dict[str, Any], cache: Cache, opened_only: bool = False) -> Runs:
    """The named runs of a folder, labelled as in its sweep.json; unless `opened_only`, also the others listed there."""
    labels = {run["folder"]: run["label"] for run in sweep.get("runs", {}).values()}
    names = names if opened_only else list(dict.fromkeys([*labels, *names]))
    runs = [run_status.look(home / name, labels.get(name), cache) for name in names]
    changed = [run.changed for run in runs if run.changed is not None]
    last = max([*changed, run_status.last_change(home) or 0.0])
    return Runs(home, sweep.get("question"), runs, last, metrics_asked(sweep))


def plain(group: Runs) -> dict[str, Any]:
    """For JSON: as in history.jsonl, a loss that is not finite is a word."""
    best = group.best()
    runs: list[dict[str, Any]] = [dataclasses.asdict(run) | {"folder": str(run.folder)} for run in group.runs]
    for run in runs:
        if run["loss"] is not None and not math.isfinite(run["loss"]):
            run["loss"] = str(run["loss"])
    return {
        "folder": str(group.folder),
        "question": group.question,
        "counts": group.counts(),
        "left_seconds": group.left_seconds(),
        "metrics": [metric.name for metric in group.metrics],
        "best": best._asdict() if best else None,
        "runs": runs,
    }
