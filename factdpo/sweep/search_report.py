"""What a search prints: its plan, each batch, and the best trial with the command that repeats it."""

import json
import math
import shlex
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from rich.text import Text

from factdpo import console
from factdpo.config.overrides import command
from factdpo.sweep.search import STARTUP, Search
from factdpo.sweep.search_space import words


def print_plan(search: Search) -> None:
    """How many trials are done and to do, and the space."""
    answered = _count_answered(search)
    runs = math.prod(map(len, search.seeds.values()))
    of_runs = f" of {runs} runs" if runs > 1 else ""
    missing = max(0, search.n_trials - answered)
    _print(f"{search.folder.name}: {search.n_trials} trials{of_runs}: {answered} answered, {missing} to do")
    width = max(map(len, search.space))
    for key, distribution in search.space.items():
        _print(f"  {key:<{width}}  {words(distribution)}")


def print_batch(search: Search, batch: list[FrozenTrial]) -> None:
    """How many trials are next, and the best one before them."""
    best = next((f"; best so far {search.metric} {trial.value:.4g}" for trial in search.ranked()), "")
    _print(f"{_count_answered(search)} of {search.n_trials} trials answered, {len(batch)} next{best}")


def print_pruned(trial: FrozenTrial, reason: str) -> None:
    _print(f"trial {trial.number} cannot be run: {reason}", "yellow")


def print_best(search: Search, conf_folders: list[Path]) -> None:
    """The best trial, the command that runs it again, and the importance of each key."""
    ranked = search.ranked()
    if not ranked:
        _print("no trial has a value yet")
        return
    best = ranked[0]
    settings = " ".join(f"{key}={value}" for key, value in search.settings(best).items())
    ties = sum(trial.value == best.value for trial in ranked) - 1
    others = f" (as {ties} {'other' if ties == 1 else 'others'})" if ties else ""
    mean = ", mean over seeds," if search.seeds else ""
    _print(f"\nbest {search.metric}{mean} {best.value:.4g}{others}: {settings}")
    if repeat := _command(search, best, conf_folders):
        _print(f"  {repeat}")
    if len(ranked) > 1:
        _print("  It was chosen by this number, which flatters it: see what it does on seeds that did not choose it.")
    if len(ranked) >= 2 * STARTUP and len(search.space) > 1 and best.value != ranked[-1].value:
        shares = optuna.importance.get_param_importances(search.study).items()
        _print(f"what mattered (PED-ANOVA): {', '.join(f'{key} {share:.2f}' for key, share in shares)}")


def _command(search: Search, trial: FrozenTrial, conf_folders: list[Path]) -> str | None:
    """The command that runs a trial again, outside the search; None if its first run has no result any more."""
    results = list(search.folder.glob(f"*-{search.runs_of(trial)[0]}/result.json"))
    if not results:
        return None
    config = json.loads(results[0].read_text(encoding="utf-8"))["config"]
    of_run = command(config, conf_folders)
    if not search.seeds:
        return of_run
    seeds = [f"{key}={','.join(values)}" for key, values in search.seeds.items()]
    others = [word for word in shlex.split(of_run)[1:] if word.partition("=")[0] not in search.seeds]
    return shlex.join(["factdpo", "-m", *others, *seeds])


def _count_answered(search: Search) -> int:
    return sum(map(search.is_answered, search.trials()))


def _print(text: str, style: str = "") -> None:
    console.console.print(Text(text, style), soft_wrap=True)
