"""The settings of a sweep ranked by one number, with the difference between best and worst, in a sentence."""

import math
from dataclasses import dataclass

from factdpo.report.difference import Difference, difference
from factdpo.report.settings import Score, Setting
from factdpo.results import best
from factdpo.results.intervals import with_interval
from factdpo.results.tables import Results, words
from factdpo.store.sweep_file import Metric

NAMED_BEST = 3  # settings that share the first place and are listed by name


@dataclass(frozen=True)
class Ranking:
    """Two or more settings by their means of a metric."""

    metric: Metric
    measured: list[Setting]  # that have the metric
    best: Setting
    first: list[Setting]  # all that share its place
    worst: Setting
    gap: Difference  # best minus worst

    @property
    def told_apart(self) -> bool:
        """Whether best and worst differ by more than chance, or it is unknown."""
        return self.gap.certain or math.isnan(self.gap.low)

    def score(self, setting: Setting) -> str:
        return number(setting.scores[self.metric.name])

    def sentence(self) -> str:
        """The best and the worst setting, or that there is no difference larger than chance."""
        names = and_list(
            listed([setting.label for setting in self.first], NAMED_BEST if len(self.best.values) < 3 else 1)
        )
        top, bottom, on = self.score(self.best), self.score(self.worst), words(self.metric.name)
        if not self.told_apart:
            return (
                f"No difference larger than chance between {len(self.measured)} settings on {on}: from "
                f"{bottom} ({self.worst.label}) to {top} ({names}), apart by {gap_text(self.gap)}."
            )
        does = "does best" if len(self.first) == 1 else "do best"
        many = len(self.measured) > 2
        other = f"the worst of {len(self.measured)} settings" if many else "the other setting"
        over = "against" if self.metric.lower_is_better else "over"
        lead = f"{gap_text(self.gap)} {over} {self.worst.label}"
        return f"{names} {does} on {on}: {top}, that is {lead}, {other} ({bottom})."


def rank(results: Results, settings: list[Setting], metric: Metric) -> Ranking | None:
    """The settings by a metric; None where fewer than two have it."""
    measured = [setting for setting in settings if metric.name in setting.scores]
    if len(measured) < 2:
        return None

    ranked = best.rank(metric, {place: setting.scores[metric.name].mean for place, setting in enumerate(measured)})
    first, worst = [measured[place] for place in ranked.first], measured[ranked.order[-1]]
    gap = difference(results, measured, first[0], worst, metric.name)
    return Ranking(metric, measured, first[0], first, worst, gap)


def number(score: Score) -> str:
    """`0.97 [0.95, 0.98]`, or the mean alone where there is no interval."""
    return with_interval(score.mean, score.low, score.high)


def gap_text(gap: Difference) -> str:
    return with_interval(gap.value, gap.low, gap.high, "+")


def listed(labels: list[str], most: int) -> list[str]:
    """The first `most` labels, and `3 more` for the rest."""
    rest = len(labels) - most
    return [*labels[:most], f"{rest} more"] if rest > 0 else labels


def and_list(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
