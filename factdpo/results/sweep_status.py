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
from factdpo.results import best, run_status
from factdpo.results.run_status import Cache, RunStatus
from factdpo.store import layout, sweep_file
from factdpo.store.result import RUNNING, STATES, TO_DO
from factdpo.store.shapes import DamagedFile
from factdpo.store.sweep_file import Metric, metrics_asked

_SEED = re.compile(r"(^| )((split|dpo)\.)?seed=\S+")  # in a label


class Best(NamedTuple):
    """The setting that is best by the deciding number: the mean over its runs, which differ in their seeds."""

    label: str  # without seeds
    metric: str
    mean: float
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
    problem: str | None = None  # with its sweep.json: its runs are those that lie there

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

    def choosing(self) -> list[Metric]:
        """The numbers that say which setting is best, of those that any run has: `best.choosing`."""
        runs = self._scored()
        kind = "accuracy_per_token" if any(run.headline == "accuracy_per_token" for run in runs) else "accuracy"
        return best.choosing({name for run in runs for name in run.numbers}, kind, self.metrics)

    def best(self) -> Best | None:
        """The best setting by the first of `choosing`; of the unfinished runs while none is finished."""
        if not (metrics := self.choosing()):
            return None
        settings: dict[str, list[float]] = {}
        for run in self._scored():
            if metrics[0].name in run.numbers:
                label = _SEED.sub("", run.label).strip() or self.folder.name
                settings.setdefault(label, []).append(run.numbers[metrics[0].name])
        ranked = best.rank(metrics[0], {label: statistics.fmean(values) for label, values in settings.items()})
        final = any(run.state == "FINISHED" for run in self._scored())
        return Best(ranked.best, metrics[0].name, ranked.means[ranked.best], len(settings[ranked.best]), final)

    def _scored(self) -> list[RunStatus]:
        """The finished runs with scores; while there are none, the unfinished ones."""
        scored = [run for run in self.runs if run.numbers]
        return [run for run in scored if run.state == "FINISHED"] or scored


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
            sweep, problem = {}, None
            try:
                sweep = sweep_file.read(home) or {}
            except DamagedFile as error:  # of this one, which hides no other
                problem = str(error)
            group = runs_of(home, names, sweep, cache, opened_only=layout.is_run(folder))
            group.problem = problem
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
    top = group.best()
    runs: list[dict[str, Any]] = [dataclasses.asdict(run) | {"folder": str(run.folder)} for run in group.runs]
    for run in runs:
        del run["numbers"]  # as in result.json
        if run["loss"] is not None and not math.isfinite(run["loss"]):
            run["loss"] = str(run["loss"])
    return {
        "folder": str(group.folder),
        "question": group.question,
        "problem": group.problem,
        "counts": group.counts(),
        "left_seconds": group.left_seconds(),
        "metrics": [metric.name for metric in group.metrics],
        "best": top._asdict() if top else None,
        "runs": runs,
    }
