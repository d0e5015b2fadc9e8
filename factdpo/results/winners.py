"""The best settings of a table of results, and the command that repeats each."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from factdpo.config.overrides import command
from factdpo.console import plural
from factdpo.results import best
from factdpo.results.best import Ranked
from factdpo.results.means import as_cell, means
from factdpo.results.tables import SEEDS, Results, shown
from factdpo.store.result import TRAINING, read_record
from factdpo.store.sweep_file import Metric

if TYPE_CHECKING:
    import pandas as pd


def lines(results: Results, asked: Sequence[Metric], conf_folders: list[Path]) -> list[str]:
    """The best setting by each number of `best.choosing`, with the command that repeats it; one setting stands once.

    Of numbers that nobody asked about only the first, and those that put another setting first; of one in which all are
    alike, nothing. With one setting there is only the command; of evaluations, which are no settings, nothing is said.
    """
    if TRAINING not in set(results.finished["kind"]):  # or nothing has finished
        return []
    if not results.settings:
        return ["", "to repeat it:", f"  {command_of(results.finished, conf_folders)}"]
    every, text = rankings(results, asked), []
    answered = any(metric.name in results.metrics for metric in asked)
    telling = [one for one in every if one is every[0] or len(one.first) < len(one.order)]  # not all are alike
    praised = [one for one in telling if answered or one is every[0] or not {*one.first} & {*every[0].first}]
    for number in dict.fromkeys(one.best for one in praised):
        chosen = [one for one in praised if one.best == number]
        praise = ", ".join(_praise(results, one) for one in chosen)
        text += ["", f"best {praise}: {_label(results, number)}"]
        text.append(f"  {command_of(results.groups[number], conf_folders)}")
        tests = dict.fromkeys(test for one in chosen for test in best.told(one.metric.name, results.metrics))
        scored = runs_of(results, number)
        text += [
            f"  chosen on the validation facts; {test} {_cell(results, test, number)}"
            for test in tests
            if bool(scored[test].notna().any())
        ]
    text += [f"{metric.name}: no run has this number" for metric in asked if metric.name not in results.metrics]
    flattered = [one.metric.name for one in praised if one.flattered]
    return [*text, "", f"by {', '.join(flattered)}: {best.FLATTERED}"] if flattered else text


def rankings(results: Results, asked: Sequence[Metric]) -> list[Ranked[int]]:
    """The trained settings by each number of `best.choosing`: with a finished run, by their places in `means`."""
    ranked = []
    for metric in best.choosing(results.metrics, results.accuracy, asked):
        scores = [runs_of(results, number)[metric.name].dropna().tolist() for number in range(len(results.groups))]
        if measured := {number: fmean(values) for number, values in enumerate(scores) if values}:
            ranked.append(best.rank(metric, measured))
    return ranked


def runs_of(results: Results, number: int) -> "pd.DataFrame":
    """The finished trainings of a setting."""
    group = results.groups[number]
    return group.loc[(group["state"] == "FINISHED") & (group["kind"] == TRAINING)]


def _praise(results: Results, ranked: Ranked[int]) -> str:
    """`accuracy/test 0.97 [0.95, 0.98] (mean of 3 runs; worst 0.480, dpo.beta=3)`."""
    n = len(runs_of(results, ranked.best)[ranked.metric.name].dropna())
    notes = [f"mean of {n} runs"] if n > 1 else []
    if equal := len(ranked.first) - 1:
        notes.append(f"as {plural(equal, 'other')}")
    if (worst := ranked.order[-1]) not in ranked.first:
        notes.append(f"worst {ranked.means[worst]:.3f}, {_label(results, worst)}")
    cell = _cell(results, ranked.metric.name, ranked.best)
    return f"{ranked.metric.name} {cell}" + (f" ({'; '.join(notes)})" if notes else "")


def _label(results: Results, number: int) -> str:
    return " ".join(f"{key}={shown(results.groups[number][key].iloc[0])}" for key in results.settings)


def command_of(runs: "pd.DataFrame", conf_folders: list[Path]) -> str:
    """The command that repeats the finished runs of one setting, with all their seeds; or why there is none."""
    runs = runs.loc[runs["state"] == "FINISHED"]
    try:
        config = read_record(Path(runs["folder"].iloc[0]))["config"]
        return repeat(config, {key: list(map(shown, runs[key].unique())) for key in _swept_seeds(runs)}, conf_folders)
    except (OSError, ValueError) as error:  # ConfigError is a ValueError: a key of another version
        return f"no command: {error}"


def _swept_seeds(runs: "pd.DataFrame") -> list[str]:
    """The seeds that differ between runs: `seed` where it is that of everything."""
    values = {key: runs[key].tolist() for key in SEEDS}
    differing = [key for key in SEEDS if len({*values[key]}) > 1]
    if differing and all(values[key] == values["seed"] for key in SEEDS):
        return ["seed"]
    return [key for key in differing if key != "seed"]


def repeat(config: dict[str, Any], seeds: dict[str, list[str]], conf_folders: list[Path]) -> str:
    """The command of the run with this config, or of as many as there are combinations of these seeds.

    Raises ConfigError if today's schema does not know the config.
    """
    of_run = command(config, conf_folders)
    if not seeds:
        return of_run
    others = [word for word in shlex.split(of_run)[1:] if word.partition("=")[0] not in seeds]
    return shlex.join(["factdpo", "-m", *others, *(f"{key}={','.join(values)}" for key, values in seeds.items())])


def _cell(results: Results, metric: str, number: int) -> str:
    """A setting's mean with its interval."""
    of_setting = Results(results.groups[number].reset_index(drop=True))
    (row,) = means(of_setting, [], [metric]).to_dict("records")
    return as_cell(metric, row["mean"], row["low"], row["high"])
