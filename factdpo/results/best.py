"""Which setting is best: the one rule for status, dashboard, tables, the sweep's end, the report and W&B.

A setting is what differs between runs less their seeds, and is ranked by the mean over its runs: the best single run
of many is the luckiest one.
"""

import math
import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from factdpo.store.sweep_file import Metric

Setting = TypeVar("Setting", bound=Hashable)

LOWER_IS_BETTER = ("p_other/", "rejected_logp_nats/", "right_to_wrong/", "across/retention", "training/", "timing/")
# Not of the trained model, or neither good nor bad.
NEITHER = ("base/", "baseline/", "n/", "n_", "chosen_tokens/", "rejected_tokens/", "answer_shares.")
RETENTION = "across/retention_nats_per_token"
EQUAL = 1e-9  # means that differ by no more share a place
FLATTERED = "chosen on the test facts, so it flatters itself; split.validation=N sets facts aside to choose on"


def metric_of(name: str) -> Metric:
    """A number with the way it is usually better: lower for retention, times and the like, else higher."""
    return Metric(name, name.startswith(LOWER_IS_BETTER))


def choosing(measured: Collection[str], accuracy: str, asked: Iterable[Metric] = ()) -> list[Metric]:
    """The numbers by which settings are ranked, the deciding one first; of those that are `measured` in any run.

    What the sweep asks about. If nothing of that is measured: `accuracy` (Results.accuracy) on held-out facts, or on
    training facts where none are held out, the same reversed, and retention; each as `measured_as` has it.
    """
    tested = any(f"{accuracy}/{split}" in measured for split in ("test", "validation"))
    split = "test" if tested else "train"
    usual = [f"accuracy/{split}", f"accuracy/{split}_reversed", RETENTION]
    for metrics in (asked, map(metric_of, usual)):
        chosen = dict.fromkeys(measured_as(metric, measured, accuracy) for metric in metrics)
        if present := [metric for metric in chosen if metric.name in measured]:
            return present
    return []


def measured_as(metric: Metric, measured: Collection[str], accuracy: str) -> Metric:
    """The number that a name stands for: an accuracy by the score that eval.score has, as `accuracy` says.

    Where facts are set aside to choose on, a number on them stands in for the same number on test facts.
    """
    name = re.sub("^accuracy/", f"{accuracy}/", metric.name)
    set_aside = re.sub(r"/test(?=_|$)", "/validation", name)
    return metric._replace(name=set_aside if set_aside in measured else name)


def told(metric: str, measured: Iterable[str]) -> list[str]:
    """The numbers on test facts that go with one on validation facts: told of the setting that it chose, no other."""
    kind, _, split = metric.rpartition("/")
    if not split.startswith("validation"):
        return []
    test = f"{kind}/{split.replace('validation', 'test', 1)}"
    return [name for name in measured if name == test or name.startswith(f"{test}_")]


def is_test(metric: str) -> bool:
    """Whether a metric is of facts that are held out to be reported, and not to choose on."""
    return metric.rpartition("/")[2].startswith("test")


@dataclass(frozen=True)
class Ranked(Generic[Setting]):
    """Settings by their means of one metric."""

    metric: Metric
    order: list[Setting]  # the best first; equals as they came
    first: list[Setting]  # all that share the first place
    means: Mapping[Setting, float]

    @property
    def best(self) -> Setting:
        return self.order[0]

    @property
    def flattered(self) -> bool:
        """Whether the best was chosen, among several, by the number on the facts that it is quoted for."""
        return is_test(self.metric.name) and len(self.order) > 1


def rank(metric: Metric, means: Mapping[Setting, float]) -> Ranked[Setting]:
    """One or more settings, the best first and those without a number last; ValueError where none has one."""
    sign = 1 if metric.lower_is_better else -1
    order = sorted(means, key=lambda setting: (math.isnan(means[setting]), sign * means[setting]))
    top = means[order[0]] if order else math.nan
    first = [setting for setting in means if math.isclose(means[setting], top, rel_tol=0, abs_tol=EQUAL)]
    if not first:
        raise ValueError(f"{metric.name}: no setting has a mean that is a number")
    return Ranked(metric, [*first, *(setting for setting in order if setting not in first)], first, means)
