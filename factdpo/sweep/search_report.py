"""What a search prints: its plan, each batch, and the best trial with the command that repeats it."""

import json
import math
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial

from factdpo import console
from factdpo.results.best import EQUAL, FLATTERED, is_test
from factdpo.results.winners import repeat
from factdpo.store import cache, sweep_file
from factdpo.store.result import read_record
from factdpo.sweep.search import STARTUP, Search
from factdpo.sweep.search_space import words


def print_plan(search: Search) -> None:
    """How many trials are done and to do, and the space."""
    answered = _count_answered(search)
    runs = math.prod(map(len, search.seeds.values()))
    of_runs = f" of {runs} runs" if runs > 1 else ""
    n_trials = search.objective.n_trials
    missing = max(0, n_trials - answered)
    console.say(f"{search.folder.name}: {n_trials} trials{of_runs}: {answered} answered, {missing} to do")
    width = max(map(len, search.space))
    for key, distribution in search.space.items():
        console.say(f"  {key:<{width}}  {words(distribution)}")


def print_batch(search: Search, batch: list[FrozenTrial]) -> None:
    """How many trials are next, and the best one before them."""
    best = next((f"; best so far {search.measured} {trial.value:.4g}" for trial in search.ranked()), "")
    console.say(f"{_count_answered(search)} of {search.objective.n_trials} trials answered, {len(batch)} next{best}")


def print_pruned(trial: FrozenTrial, reason: str) -> None:
    console.say(f"trial {trial.number} cannot be run: {reason}", "yellow")


def print_best(search: Search, conf_folders: list[Path]) -> None:
    """The best trial, the command that runs it again, and the importance of each key."""
    ranked = search.ranked()
    if not ranked:
        console.say("no trial has a value yet")
        return
    best = ranked[0]
    settings = " ".join(f"{key}={value}" for key, value in search.settings(best).items())
    ties = sum(abs((trial.value or 0.0) - (best.value or 0.0)) <= EQUAL for trial in ranked) - 1
    others = f" (as {console.plural(ties, 'other')})" if ties else ""
    mean = ", mean over seeds," if search.seeds else ""
    console.say(f"\nbest {search.measured}{mean} {best.value:.4g}{others}: {settings}")
    if again := _command(search, best, conf_folders):
        console.say(f"  {again}")
    if len(ranked) > 1 and is_test(search.measured):
        console.say(f"  by {search.measured}: {FLATTERED}")
    if shares := importance(search):
        console.say(f"what mattered (PED-ANOVA): {', '.join(f'{key} {share:.2f}' for key, share in shares.items())}")


def importance(search: Search) -> dict[str, float]:
    """Key -> its share of what makes a trial a good one (Optuna's PED-ANOVA); {} while there are too few trials."""
    ranked = search.ranked()
    if len(ranked) < 2 * STARTUP or len(search.space) < 2 or ranked[0].value == ranked[-1].value:
        return {}
    return dict(optuna.importance.get_param_importances(search.study))


def keep_importance(search: Search) -> None:
    """Write the importance of each key into sweep.json, for the report; nothing where there is none."""
    if not (shares := importance(search)):
        return
    with FileLock(search.folder / f".{sweep_file.FILE}.lock"):  # another command may add runs meanwhile
        if record := sweep_file.read(search.folder):
            text = json.dumps(record | {"importance": shares}, indent=1, ensure_ascii=False)
            cache.write_atomic(search.folder / sweep_file.FILE, text)


def _command(search: Search, trial: FrozenTrial, conf_folders: list[Path]) -> str | None:
    """The command that runs a trial again, outside the search; None if its first run has no result any more."""
    results = list(search.folder.glob(f"*-{search.runs_of(trial)[0]}/result.json"))
    return repeat(read_record(results[0].parent)["config"], search.seeds, conf_folders) if results else None


def _count_answered(search: Search) -> int:
    return sum(map(search.is_answered, search.trials()))
