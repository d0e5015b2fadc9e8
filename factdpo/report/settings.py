"""The settings that a sweep compares, each with its scores over seeds, and the axes that they vary along."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from factdpo.results.means import means
from factdpo.results.tables import Results, or_none, shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Score:
    """A metric of one setting: the mean over its finished runs, with a 95 % interval."""

    n: int  # finished runs that have the metric
    mean: float
    low: float  # NaN where there is no interval
    high: float
    over: str  # what the interval speaks of, as results/means.py names it


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs that differ in their seed only."""

    values: dict[str, Any]  # swept key -> value; empty if only the seed was swept
    label: str  # `dpo.beta=0.1 lora.rank=8`
    ids: list[str]  # of its runs, finished or not
    scores: dict[str, Score]  # metric -> score, of metrics that any of its runs has


@dataclass(frozen=True)
class Axis:
    """A swept key."""

    key: str
    values: list[Any]  # in order; as text if any is no number
    numeric: bool
    log: bool  # the values are spread evenly by ratio rather than by difference


def with_config(results: Results) -> "pd.DataFrame":
    """The rows of runs whose config could be read; other runs belong to no setting."""
    return results.table.loc[has_config(results)]


def has_config(results: Results) -> list[bool]:
    """For each run whether its config could be read."""
    return [any(row) for row in results.table.loc[:, results.config_keys].notna().to_numpy()]


def settings(results: Results, metrics: list[str]) -> list[Setting]:
    """One per combination of values of the swept keys, ordered by these values."""
    table, keys = with_config(results), results.settings
    if not len(table):
        return []
    rows = means(Results(table), keys, metrics).to_dict("records") if metrics else []
    groups = table.groupby(keys, dropna=False) if keys else [((), table)]
    compared = []
    for number, (_, runs) in enumerate(groups):  # in the order of `means`
        values = {key: or_none(runs[key].tolist()[0]) for key in keys}
        own = rows[number :: len(groups)]  # the rows of a metric stand together
        scores = {row["metric"]: _score(row) for row in own if row["n"]}
        label = " ".join(f"{key}={shown(value)}" for key, value in values.items())
        label = label or ("all runs" if len(runs) > 1 else "this run")
        compared.append(Setting(values, label, runs["id"].tolist(), scores))
    return compared


def _score(row: dict[str, Any]) -> Score:
    mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
    return Score(int(row["n"]), mean, low, high, row["over"])


def axes(settings: list[Setting], by_ratio: Collection[str] = ()) -> list[Axis]:
    """The swept keys with their values, numbers in ascending order; those of `by_ratio` were drawn by their ratio."""
    swept = []
    for key in settings[0].values if settings else ():
        values = list(dict.fromkeys(setting.values[key] for setting in settings))
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        numbers = sorted(values) if numeric else []
        log = bool(numbers) and (key in by_ratio or _by_ratio(numbers))
        swept.append(Axis(key, numbers or [shown(value) for value in values], numeric, log))
    return swept


def _by_ratio(values: list[float | int]) -> bool:
    """Whether at least three positive values are spaced more evenly by their logarithms than as they are."""
    if len(values) < 3 or values[0] <= 0:
        return False

    def unevenness(points: Iterable[float | int]) -> float:
        steps = [b - a for a, b in pairwise(points)]
        return max(steps) / min(steps)

    return unevenness([math.log(value) for value in values]) < unevenness(values)
