"""How a sweep ends: the best setting by each number that the sweep asks about, and the command that repeats it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from factdpo.console import plural
from factdpo.results.means import means
from factdpo.results.tables import Results, shown
from factdpo.results.winners import command_of
from factdpo.store.sweep_file import USUAL_METRICS, Metric

if TYPE_CHECKING:
    import pandas as pd

FLATTERED = "It was chosen by this number, which flatters it: see what it does on seeds that did not choose it."
TRAINED_ON = Metric("accuracy/train")  # stands in where nothing is held out


@dataclass(frozen=True)
class Ranked:
    """The settings of a sweep by their mean of one metric over seeds, the best first."""

    metric: Metric
    settings: list[int]  # groups of runs, by number
    means: dict[int, float]
    runs: dict[int, int]  # finished ones, of each setting
    held_out: dict[int, float] = field(default_factory=dict)  # means on the test split, where validation decides

    @property
    def best(self) -> list[int]:
        """The best settings: several where they are equal."""
        top = self.means[self.settings[0]]
        return [number for number in self.settings if math.isclose(self.means[number], top, abs_tol=1e-12)]


def lines(results: Results, asked: Sequence[Metric], conf_folders: list[Path]) -> list[str]:
    """The best setting by each number that the sweep asks about; without a question by those of `USUAL_METRICS` that
    disagree with the first. Settings are ranked by their means over seeds; [] where there is only one.
    """
    if not results.settings:
        return []
    groups = [group for _, group in results.table.groupby(results.settings, dropna=False)]  # in the order of `means`
    rankings = [_ranked(results, metric) for metric in asked or _usual(results) if metric.name in results.metrics]
    rankings = [ranking for ranking in rankings if ranking.settings]
    told = [r for r in rankings if asked or r is rankings[0] or not {*r.best} & {*rankings[0].best}]
    by_best: dict[int, list[str]] = {}
    for ranking in told:
        by_best.setdefault(ranking.best[0], []).append(_praise(ranking, groups, results.settings))
    text = []
    for number, praises in by_best.items():
        label = _label(groups[number], results.settings)
        text += ["", f"best {', '.join(praises)}: {label}", f"  {command_of(groups[number], conf_folders)}"]
    text += [f"{metric.name}: no run has this number" for metric in asked if metric.name not in results.metrics]
    if any(ranking.metric.name.rpartition("/")[2].startswith("test") and len(ranking.settings) > 1 for ranking in told):
        text.append(FLATTERED)
    return text


def _usual(results: Results) -> list[Metric]:
    """`USUAL_METRICS` with the accuracy that eval.score asks for."""
    usual = USUAL_METRICS if USUAL_METRICS[0].name in results.metrics else [TRAINED_ON, *USUAL_METRICS[1:]]
    return [metric._replace(name=re.sub("^accuracy/", f"{results.accuracy}/", metric.name)) for metric in usual]


def _ranked(results: Results, metric: Metric) -> Ranked:
    """Where facts are set aside to decide by (split.validation), these rank in place of the held-out ones."""
    decides = metric._replace(name=re.sub(r"/test(?=_reversed$|$)", "/validation", metric.name))
    if decides.name not in results.metrics:
        decides = metric
    values, runs = _means(results, decides)
    order = sorted(values, key=lambda number: values[number], reverse=not metric.lower_is_better)
    return Ranked(decides, order, values, runs, _means(results, metric)[0] if decides != metric else {})


def _means(results: Results, metric: Metric) -> tuple[dict[int, float], dict[int, int]]:
    """The mean of each setting, and over how many finished runs."""
    rows = means(results, results.settings, [metric.name]).loc[:, ["n", "mean"]].to_dict("records")
    measured = {number: row for number, row in enumerate(rows) if row["n"]}
    return {n: row["mean"] for n, row in measured.items()}, {n: int(row["n"]) for n, row in measured.items()}


def _praise(ranking: Ranked, groups: "list[pd.DataFrame]", keys: list[str]) -> str:
    """`accuracy/test 0.970 (mean of 3 runs; worst 0.480, dpo.beta=3)`."""
    best, worst = ranking.settings[0], ranking.settings[-1]
    notes = [f"mean of {ranking.runs[best]} runs"] if ranking.runs[best] > 1 else []
    if best in ranking.held_out:
        notes.append(f"{ranking.held_out[best]:.3f} on the held-out facts")
    if equal := len(ranking.best) - 1:
        notes.append(f"as {plural(equal, 'other')}")
    if worst not in ranking.best:
        notes.append(f"worst {ranking.means[worst]:.3f}, {_label(groups[worst], keys)}")
    return f"{ranking.metric.name} {ranking.means[best]:.3f}" + (f" ({'; '.join(notes)})" if notes else "")


def _label(group: "pd.DataFrame", keys: list[str]) -> str:
    return " ".join(f"{key}={shown(group.iloc[0][key])}" for key in keys)
