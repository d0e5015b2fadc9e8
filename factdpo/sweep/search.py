"""A search: settings that Optuna draws batch by batch and learns from. Its study is a file in the sweep's folder.

The study can be made again: each trial is drawn by a generator of its own, seeded by the search's seed and the trial's
number, so the same command on an empty study draws the same trials and finds their runs finished.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from factdpo.config.help import did_you_mean
from factdpo.config.overrides import flat
from factdpo.config.schema import ConfigError
from factdpo.results.best import measured_as
from factdpo.runs.identity import RunSpec
from factdpo.store import cache
from factdpo.store import result as record
from factdpo.store.result import accuracy_metric, headline_row
from factdpo.store.sweep_file import Metric
from factdpo.sweep.search_space import Space, text, values, words
from factdpo.sweep.study import FILE, load_study, locked

MEASURED = "measured"  # the study's attribute with the name of the number that trials are valued by
STARTUP = 8  # trials that TPE draws at random before it learns: one batch
RENAME = "a study cannot change its settings; choose another name with sweep=..., or move the file (runs are kept)"


@dataclass(frozen=True)
class Objective:
    """The keys of hydra.sweeper, less metrics and params: what they mean stands in hydra_plugins/factdpo_sweeper.py."""

    n_trials: int
    batch_size: int
    metric: str | None
    direction: str | None  # maximize or minimize
    sampler: str  # tpe or random
    seed: int

    def __post_init__(self) -> None:
        for name in ("n_trials", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"hydra.sweeper.{name}={getattr(self, name)}: must be at least 1")


@dataclass
class Search:
    """The trials of one search; raises ConfigError for settings that make no search."""

    folder: Path
    space: Space
    seeds: dict[str, list[str]]  # key of a seed -> its values: each trial is a run per seed, its value their mean
    objective: Objective
    metric: Metric  # what is searched for
    study: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        if not self.space:
            example = "'dpo.beta=tag(log,interval(0.01,1))', 'lora.rank=choice(8,16,32)' or 'dpo.epochs=range(2,9)'"
            raise ConfigError(f"hydra/sweeper=optuna: nothing to search; give keys a range, as in {example}")

    @property
    def direction(self) -> str:
        return "minimize" if self.metric.lower_is_better else "maximize"

    @property
    def measured(self) -> str:
        """The number that is the value of a trial: what stands for the metric (`measured_as`) in the first runs."""
        return self.study.user_attrs.get(MEASURED, self.metric.name)

    @property
    def spec(self) -> dict[str, str]:
        """What a study cannot be continued without: what trials are drawn from, and what their values mean."""
        space = {key: words(distribution) for key, distribution in self.space.items()}
        seeds = {key: ", ".join(values) for key, values in self.seeds.items()}
        return {"metric": self.metric.name, "direction": self.direction, **space, **seeds}

    def axes(self) -> dict[str, list[str]]:
        """What is searched and over which seeds, for sweep.json."""
        return {key: values(distribution) for key, distribution in self.space.items()} | self.seeds

    @contextmanager
    def opened(self, read_only: bool = False) -> Iterator[None]:
        """Load the study and hold it for this process; `read_only` neither locks nor writes.

        Raises ConfigError if another process holds it, if it cannot be read, or if it was begun with another spec.
        """
        with nullcontext() if read_only else locked(self.folder):
            self.study = load_study(self.folder, self.direction, read_only)
            self._check_spec()
            if not read_only:
                self.study.set_user_attr("asked", self.spec)
                for trial in self.trials():
                    if trial.state is TrialState.FAIL:
                        self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
            yield

    def _check_spec(self) -> None:
        before, now = self.study.user_attrs.get("asked", self.spec), self.spec
        if changes := _changes(before, now, "not searched"):
            raise ConfigError(f"{self.folder / FILE}: {changes}; {RENAME}")

    # ------------------------------------------------------------------------------------------------------ drawing

    def trials(self) -> list[FrozenTrial]:
        """The trials by number, without those that failed and were enqueued again."""
        trials = self.study.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        return [trial for trial in trials if trial.number not in retried]

    def next_batch(self) -> list[FrozenTrial]:
        """The trials to run next; empty when there are n_trials.

        Those that a killed command left come first. A batch ends at a multiple of batch_size, so that a search that
        was killed draws the same trials as one that was not.
        """
        while True:
            trials = self.trials()
            running = [trial for trial in trials if trial.state is TrialState.RUNNING]
            enqueued = any(trial.state is TrialState.WAITING for trial in trials)
            drawn = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]
            batch_is_full = bool(running) and len(drawn) % self.objective.batch_size == 0
            if batch_is_full or not (enqueued or len(trials) < self.objective.n_trials):
                return running
            self.study.sampler = self._sampler(len(drawn))
            self.study.ask({**self.space})

    def _sampler(self, number: int) -> BaseSampler:
        seed = int(cache.signature([self.objective.seed, number])[:8], 16)
        if self.objective.sampler == "random":
            return RandomSampler(seed)
        # constant_liar: takes the running trials of a batch for bad ones, and so does not draw the same one twice.
        return TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)

    def settings(self, trial: FrozenTrial) -> dict[str, str]:
        """Key -> value of a trial in Hydra's grammar."""
        return {key: text(distribution, trial.params[key]) for key, distribution in self.space.items()}

    def runs_of(self, trial: FrozenTrial) -> list[str]:
        """The ids of a trial's runs; empty for a trial that a kill came before, or that cannot be run."""
        return self.study.user_attrs.get(_runs_attribute(trial), [])

    def has_runs(self, trial: FrozenTrial) -> bool:
        return bool(self.runs_of(trial))

    def keep_runs(self, trial: FrozenTrial, runs: list[RunSpec]) -> None:
        """Write down the trial's runs; raises ConfigError if it had others: the config or the data has changed."""
        ids, before = [run.id for run in runs], self.runs_of(trial)
        if not before:
            self.study.set_user_attr(_runs_attribute(trial), ids)
        elif before != ids:
            requests = list(self.folder.glob(f"*-{before[0]}/asked.json"))
            changes = "its runs were others"
            if requests:
                old = flat(json.loads(requests[0].read_text(encoding="utf-8")))
                changes = _changes(old, flat(runs[0].asked), "not set")
            raise ConfigError(f"{self.folder / FILE}: trial {trial.number}: {changes}; {RENAME}")

    # ------------------------------------------------------------------------------------------------------ results

    def is_answered(self, trial: FrozenTrial) -> bool:
        """Whether the study has the result of the trial."""
        return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)

    def tell(self, trial: FrozenTrial, runs: list[RunSpec]) -> None:
        """Give the study the result of a trial's runs; a result that it has is left.

        A run that DIVERGED, or that halving STOPPED, prunes its trial: that is the settings' doing, and TPE ranks
        pruned trials last and keeps away from them. One that FAILED fails it: that says nothing about the settings, so
        no sampler looks at it, and the same command does it again.
        """
        if self.is_answered(trial):
            return
        results = [record.read_result(run.folder).result or {"state": "FAILED"} for run in runs]
        states = {result["state"] for result in results}
        if states == {"FINISHED"}:
            rows = [headline_row(result) for result in results]
            if MEASURED not in self.study.user_attrs:
                self.study.set_user_attr(MEASURED, measured_as(self.metric, rows[0], accuracy_metric(rows)).name)
            scores = [self._value(row, run) for row, run in zip(rows, runs, strict=True)]
            self.study.tell(trial.number, math.fsum(scores) / len(scores))
        else:
            self.study.tell(
                trial.number, state=TrialState.PRUNED if states & {"DIVERGED", "STOPPED"} else TrialState.FAIL
            )

    def prune(self, trial: FrozenTrial) -> None:
        """Tell the study that the trial's settings cannot be run together."""
        self.study.tell(trial.number, state=TrialState.PRUNED)

    def _value(self, numbers: dict[str, Any], run: RunSpec) -> float:
        name = self.measured
        if isinstance(value := numbers.get(name), int | float):
            return float(value)
        hint = did_you_mean(name, [other for other in numbers if not other.startswith("base")], 3, 0.3)
        raise ConfigError(f"hydra.sweeper.metric={name}: {run.folder} has no such number{hint}")

    def ranked(self) -> list[FrozenTrial]:
        """The trials that have a value, the best first."""
        sign = 1 if self.metric.lower_is_better else -1
        complete = [trial for trial in self.trials() if trial.value is not None]
        return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def _runs_attribute(trial: FrozenTrial) -> str:
    """The study's attribute that holds the ids of a trial's runs."""
    return f"runs of trial {trial.number}"


def _changes(old: dict[str, Any], new: dict[str, Any], missing: str) -> str:
    """`dpo.beta was 0.1 and is 0.2; ...` for every key that differs; `missing` stands for a value that is not there."""

    def shown(value: Any) -> str:
        return missing if value is None else str(value)

    return "; ".join(
        f"{key.removeprefix('config.')} was {shown(old.get(key))} and is {shown(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    )
