"""A search: settings that Optuna draws batch by batch and learns from. Its study lies in the sweep's folder.

The study can be made again: each trial is drawn by a generator of its own, seeded by the search's seed and the trial's
number, so the same command on an empty study draws the same trials and finds their runs finished.
"""

import json
import math
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.text import Text

from factdpo import console
from factdpo.config.overrides import command, flat
from factdpo.config.schema import ConfigError
from factdpo.runs.identity import RunSpec
from factdpo.store import cache
from factdpo.store import result as record
from factdpo.store.result import summary
from factdpo.sweep.search_space import Space, text, values, words

FILE = "study.journal"
SPLITS = ("train", "train_reversed", "test", "test_reversed")
STARTUP = 8  # trials that TPE draws at random before it learns: one batch
ANOTHER = "a search goes on as it began: give this one another name, sweep=..., or move the file away (runs are kept)"


@dataclass
class Search:
    """What one command asks of a search; raises ConfigError for what cannot be asked."""

    folder: Path
    space: Space
    seeds: dict[str, list[str]]  # key of a seed -> its values: each trial is a run per seed, its value their mean
    metric: str  # as tracker.summary names it
    direction: str  # maximize or minimize
    sampler: str  # tpe or random
    seed: int
    n_trials: int
    batch_size: int  # trials that are drawn, and run, together
    study: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        for name in ("n_trials", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"hydra.sweeper.{name}={getattr(self, name)}: must be at least 1")
        if not self.space:
            example = "'dpo.beta=tag(log,interval(0.01,1))', 'lora.rank=choice(8,16,32)' or 'dpo.epochs=range(2,9)'"
            raise ConfigError(f"hydra/sweeper=optuna: nothing to search; give keys a range, as in {example}")
        metrics = _metrics()
        if not any(re.fullmatch(re.sub("<[^>]*>", "[^/]+", re.escape(name)), self.metric) for name in metrics):
            close = get_close_matches(self.metric, metrics, n=3, cutoff=0.5)
            perhaps = f" (did you mean {', '.join(close)}?)" if close else ""
            raise ConfigError(
                f"hydra.sweeper.metric={self.metric}: no such number of a run{perhaps}; "
                "there are accuracy/test, margin_nats/train_reversed, across/symmetry_test and others like them"
            )

    @property
    def asked(self) -> dict[str, str]:
        """What a study cannot be continued without: what its trials were drawn from, and what their values mean."""
        space = {key: words(distribution) for key, distribution in self.space.items()}
        seeds = {key: ", ".join(values) for key, values in self.seeds.items()}
        return {"metric": self.metric, "direction": self.direction, **space, **seeds}

    @contextmanager
    def opened(self, only_look: bool = False) -> Iterator[None]:
        """Within it there is the study, this process's alone; with `only_look` nothing is written.

        Raises ConfigError if another process has it, if it cannot be read, or if it was begun with something else.
        """
        path = (self.folder / FILE).absolute()  # Optuna's own lock is a link, which a relative path would lead astray
        if only_look:
            self._load(path if path.exists() else None)
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f".{FILE}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"{self.folder}: another process is on this search; wait for it, or give another name, sweep=..."
            ) from None
        try:
            _cut_torn_line(path)
            self._load(path)
            self.study.set_user_attr("asked", self.asked)
            for trial in self.trials():
                if trial.state is TrialState.FAIL:
                    self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
            yield
        finally:
            lock.release()

    def _load(self, path: Path | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction = StudyDirection[self.direction.upper()]
        try:
            storage = JournalStorage(JournalFileBackend(str(path))) if path else InMemoryStorage()
            self.study = optuna.create_study(
                storage=storage, study_name=self.folder.name, direction=direction, load_if_exists=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({error}); move it away, and the same command makes it again from the runs"
            ) from None
        begun = self.study.user_attrs.get("asked", self.asked)
        changed = [
            f"{key} was {begun.get(key, 'not searched')} and is {self.asked.get(key, 'not searched')}"
            for key in dict.fromkeys([*begun, *self.asked])
            if begun.get(key) != self.asked.get(key)
        ]
        if changed:
            raise ConfigError(f"{self.folder / FILE}: {'; '.join(changed)}; {ANOTHER}")

    def trials(self) -> list[FrozenTrial]:
        """The trials by number, less those that failed and were put in line again."""
        trials = self.study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get("retry_of") for trial in trials}
        return [trial for trial in trials if trial.number not in again]

    def next_batch(self) -> list[FrozenTrial]:
        """The trials to run next; empty when there are n_trials.

        Those that a killed command left come first. A batch ends at a multiple of batch_size, so that a search that
        was killed draws the same trials as one that was not.
        """
        while True:
            trials = self.trials()
            drawn = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]
            running = [trial for trial in trials if trial.state is TrialState.RUNNING]
            waiting = any(trial.state is TrialState.WAITING for trial in trials)
            if (running and len(drawn) % self.batch_size == 0) or not (waiting or len(trials) < self.n_trials):
                return running
            self.study.sampler = self._sampler(len(drawn))
            self.study.ask({**self.space})

    def _sampler(self, number: int) -> BaseSampler:
        seed = int(cache.signature([self.seed, number])[:8], 16)
        if self.sampler == "random":
            return RandomSampler(seed)
        # constant_liar: takes the running trials of a batch for bad ones, and so does not draw the same one twice.
        return TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)

    def settings(self, trial: FrozenTrial) -> dict[str, str]:
        """Key -> value of a trial in Hydra's grammar."""
        return {key: text(distribution, trial.params[key]) for key, distribution in self.space.items()}

    def has_runs(self, trial: FrozenTrial) -> bool:
        """Whether the trial was tried; those that a kill came before, or that cannot be run, were not."""
        return _runs_of(trial) in self.study.user_attrs

    def keep_runs(self, trial: FrozenTrial, runs: list[RunSpec]) -> None:
        """Write down that these are the trial's runs; raises ConfigError if it had others: something changed since."""
        ids, before = [run.id for run in runs], self.study.user_attrs.get(_runs_of(trial))
        if before is None:
            self.study.set_user_attr(_runs_of(trial), ids)
        elif before != ids:
            found = list(self.folder.glob(f"*-{before[0]}/asked.json"))
            old = flat(json.loads(found[0].read_text(encoding="utf-8"))) if found else {}
            new = flat(runs[0].asked)
            changed = [
                f"{key.removeprefix('config.')} was {_shown(old.get(key))} and is {_shown(new.get(key))}"
                for key in dict.fromkeys([*old, *new])
                if old.get(key) != new.get(key)
            ]
            what = "; ".join(changed if found else ["its runs were others"])
            raise ConfigError(f"{self.folder / FILE}: trial {trial.number}: {what}; {ANOTHER}")

    def is_told(self, trial: FrozenTrial) -> bool:
        """Whether the study has an answer for it."""
        return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)

    def tell(self, trial: FrozenTrial, runs: list[RunSpec]) -> None:
        """Tell the study what came of a trial's runs; an answer that it has is left.

        A run that DIVERGED prunes its trial: that is the settings' doing, and TPE ranks pruned trials last and keeps
        away from them. One that FAILED fails it: that says nothing about the settings, so no sampler looks at it, and
        the same command does it again.
        """
        if self.is_told(trial):
            return
        results = [record.read_result(run.folder).result or {"state": "FAILED"} for run in runs]
        states = {result["state"] for result in results}
        if states == {"FINISHED"}:
            values = [self._value(summary(result), run) for result, run in zip(results, runs, strict=True)]
            self.study.tell(trial.number, math.fsum(values) / len(values))
        else:
            self.study.tell(trial.number, state=TrialState.PRUNED if "DIVERGED" in states else TrialState.FAIL)

    def prune(self, trial: FrozenTrial, why: str) -> None:
        """Tell the study, and the terminal, that these settings cannot be run together."""
        _say(f"trial {trial.number} cannot be run: {why}", "yellow")
        self.study.tell(trial.number, state=TrialState.PRUNED)

    def _value(self, numbers: dict[str, Any], run: RunSpec) -> float:
        value = numbers.get(self.metric)
        if isinstance(value, int | float):
            return float(value)
        there = [name for name in numbers if not name.startswith("base")]
        close = ", ".join(get_close_matches(self.metric, there, n=3, cutoff=0.3))
        raise ConfigError(f"hydra.sweeper.metric={self.metric}: {run.folder} has no such number; near it are {close}")

    # ------------------------------------------------------------------------------------------------- for the terminal

    def axes(self) -> dict[str, list[str]]:
        """What is searched and over which seeds, as sweep.json has it."""
        return {key: values(distribution) for key, distribution in self.space.items()} | self.seeds

    def print_plan(self) -> None:
        """How many trials there are and are to come, and the space."""
        done = sum(map(self.is_told, self.trials()))
        runs = math.prod(map(len, self.seeds.values()))
        each = f" of {runs} runs" if runs > 1 else ""
        missing = max(0, self.n_trials - done)
        _say(f"{self.folder.name}: {self.n_trials} trials{each}: {done} answered, {missing} to do")
        width = max(map(len, self.space))
        for key, distribution in self.space.items():
            _say(f"  {key:<{width}}  {words(distribution)}")

    def print_batch(self, batch: list[FrozenTrial]) -> None:
        """How many trials are next, and the best before them."""
        best = next((f"; best so far {self.metric} {trial.value:.4g}" for trial in self.ranked()), "")
        done = sum(map(self.is_told, self.trials()))
        _say(f"{done} of {self.n_trials} trials answered, {len(batch)} next{best}")

    def print_best(self, conf_folders: list[Path]) -> None:
        """The best trial, the command that runs it again, and what mattered."""
        ranked = self.ranked()
        if not ranked:
            _say("no trial has a value yet")
            return
        best = ranked[0]
        settings = " ".join(f"{key}={value}" for key, value in self.settings(best).items())
        alike = sum(trial.value == best.value for trial in ranked) - 1
        others = f" (as {alike} other{'s' * (alike > 1)})" if alike else ""
        mean = ", mean over seeds," if self.seeds else ""
        _say(f"\nbest {self.metric}{mean} {best.value:.4g}{others}: {settings}")
        if again := self._command(best, conf_folders):
            _say(f"  {again}")
        if len(ranked) > 1:
            _say("  It was chosen by this number, which flatters it: see what it does on seeds that did not choose it.")
        if len(ranked) >= 2 * STARTUP and len(self.space) > 1 and ranked[0].value != ranked[-1].value:
            parts = optuna.importance.get_param_importances(self.study).items()
            _say(f"what mattered (PED-ANOVA): {', '.join(f'{key} {share:.2f}' for key, share in parts)}")

    def _command(self, trial: FrozenTrial, conf_folders: list[Path]) -> str | None:
        """The command that runs a trial again, outside the search; None if its first run is not there any more."""
        found = list(self.folder.glob(f"*-{self.study.user_attrs[_runs_of(trial)][0]}/result.json"))
        if not found:
            return None
        config = json.loads(found[0].read_text(encoding="utf-8"))["config"]
        again = command(config, conf_folders)
        if not self.seeds:
            return again
        seeds = [f"{key}={','.join(values)}" for key, values in self.seeds.items()]
        other = [word for word in shlex.split(again)[1:] if word.partition("=")[0] not in self.seeds]
        return shlex.join(["factdpo", "-m", *other, *seeds])

    def ranked(self) -> list[FrozenTrial]:
        """The trials that have a value, the best first."""
        sign = -1 if self.direction == "maximize" else 1
        complete = [trial for trial in self.trials() if trial.value is not None]
        return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def _metrics() -> list[str]:
    """The numbers of a trained run, named as tracker.summary does; `<...>` stands for a name that the data decides."""
    found = []
    for key in record.KEYS:
        if key.startswith("trained.<split>."):
            found += [f"{key.removeprefix('trained.<split>.')}/{split}" for split in SPLITS]
        elif key.startswith(("across.trained.", "timing.")):
            found.append(f"{key.split('.')[0]}/{key.rsplit('.', 1)[-1]}")
    return found


def _runs_of(trial: FrozenTrial) -> str:
    """The study's attribute that holds the ids of a trial's runs."""
    return f"runs of trial {trial.number}"


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


def _say(text: str, style: str = "") -> None:
    console.console.print(Text(text, style), soft_wrap=True)


def _cut_torn_line(path: Path) -> None:
    """A kill in the middle of a line leaves it without its end; Optuna would write on behind it and lose both lines."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            cache.write_atomic(path, data[: data.rfind(b"\n") + 1].decode())
