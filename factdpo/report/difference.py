"""The difference between two settings, picked from several, with an interval for other facts and other seeds."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from factdpo.report.settings import Setting
from factdpo.results.intervals import variance_over_facts, wilson
from factdpo.results.means import Facts, is_share, sizes_of
from factdpo.results.tables import Results

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Difference:
    """One setting's mean minus another's, with its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float
    how: str  # the method of the interval, or the reason why there is none

    @property
    def certain(self) -> bool:
        return self.low > 0 or self.high < 0


def difference(results: Results, settings: list[Setting], best: Setting, other: Setting, metric: str) -> Difference:
    """`best` minus `other`. Both were picked from all settings, which Tukey's quantile accounts for.

    Tukey-Kramer's simultaneous intervals of all differences between k means (NIST/SEMATECH e-Handbook, 7.4.7.1) with
    both sources of variance, each with its own quantile, as results/intervals.py adds them up for a mean:

        half^2 = max(q^2(k, N - k) s^2 (1/n_a + 1/n_b) + q^2(k, inf) C, q^2(k, inf) V) / 2

    s^2 is the variance over seeds within settings, taken to be the same in all; V is the variance of the difference
    over facts, clustered by fact, so that the answers of both settings on one fact are paired; C >= 0 is what of it s^2
    does not see. From one run each, s^2 is not there: another seed may differ. It is never narrower than Wilson's bound
    for the share of facts on which the two differ, where they differ on none.
    """
    scored = [setting for setting in settings if metric in setting.scores]
    groups = [_runs(results, setting, metric) for setting in scored]
    a, b = _runs(results, best, metric), _runs(results, other, metric)
    freedom = sum(map(len, groups)) - len(groups)
    value = best.scores[metric].mean - other.scores[metric].mean
    if not is_share(metric) and len(a) == len(b) == 1:
        return Difference(value, math.nan, math.nan, "none, since a single run says nothing of other seeds")
    alone, shared, bound = _over_facts(a, b, metric) if is_share(metric) else (0.0, 0.0, 0.0)
    quantiles = _quantile(len(groups), None) ** 2
    half2 = quantiles * (alone + shared) / 2
    how = "for other facts; one run each, so another seed may differ"
    if len(a) > 1 or len(b) > 1:
        within = sum(float(group[metric].to_numpy(dtype=float).var()) * len(group) for group in groups) / freedom
        of_seeds = _quantile(len(groups), freedom) ** 2 * within * (1 / len(a) + 1 / len(b))
        half2 = max(half2, (of_seeds + quantiles * max(0.0, shared)) / 2)
        facts_and = "other facts and " if is_share(metric) else ""
        how = f"for {facts_and}other seeds, which are taken to scatter alike in each setting"
    half = max(math.sqrt(half2), bound)
    pairs = "" if len(groups) == 2 else f" for all pairs of {len(groups)} settings (Tukey)"
    most = 1.0 if is_share(metric) else math.inf
    return Difference(value, max(-most, value - half), min(most, value + half), f"95 %{pairs}, {how}")


def _runs(results: Results, setting: Setting, metric: str) -> "pd.DataFrame":
    """The finished runs of a setting that have the metric."""
    runs = results.finished
    return runs.loc[runs["id"].isin(setting.ids) & runs[metric].notna()]


def _over_facts(a: "pd.DataFrame", b: "pd.DataFrame", metric: str) -> tuple[float, float, float]:
    """`variance_over_facts` of the difference of two settings, and Wilson's bound for none of a run's facts.

    By counts, as if all runs of a setting gave the same answers and the two settings had other facts, where
    items.parquet does not say more.
    """
    import pandas as pd

    weights = [1 / len(a)] * len(a) + [-1 / len(b)] * len(b)
    sizes = [*(sizes_of(metric, a) or []), *(sizes_of(metric, b) or [])]
    facts = Facts(pd.concat([a, b]))  # of one, since it numbers them
    of_a, of_b = facts.of(metric, a), facts.of(metric, b)
    if of_a is not None and of_b is not None:
        alone, shared = variance_over_facts([*of_a, *of_b], weights)
    else:
        shares = [*a[metric], *b[metric]]
        parts = [w * w * p * (1 - p) / n for w, p, n in zip(weights, shares, sizes, strict=True)]
        alone = sum(parts)
        shared = (len(a) - 1) * sum(parts[: len(a)]) + (len(b) - 1) * sum(parts[len(a) :])
    return alone, shared, wilson(0.0, sum(sizes) / len(sizes))[1]


@lru_cache(maxsize=64)  # slow to compute, and needed for every setting
def _quantile(groups: int, freedom: int | None) -> float:
    """Of the studentised range; without degrees of freedom for a variance that is known."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(0.95, groups, freedom or math.inf))
