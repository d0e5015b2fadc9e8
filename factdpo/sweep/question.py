"""The numbers that a sweep asks about: hydra.sweeper.metrics, read and checked."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from factdpo.config.help import did_you_mean
from factdpo.config.schema import ConfigError
from factdpo.data.splits import RESERVED
from factdpo.results.best import metric_of
from factdpo.results.tables import SPLITS
from factdpo.runs.identity import RunSpec
from factdpo.store import result
from factdpo.store.sweep_file import Metric

LOWER, HIGHER = "-", "+"  # before a name: which way it is better, where that is not the usual one


def read(words: Sequence[str], key: str = "hydra.sweeper.metrics") -> list[Metric]:
    """The numbers that these words name, the deciding one first; raises ConfigError for one that no run has.

    `-` before a name says that lower is better, `+` that higher is. Without a sign log-likelihoods of the neutral text
    and the like are better lower, all others higher.
    """
    metrics = []
    for word in words:
        name = word.removeprefix(LOWER).removeprefix(HIGHER)
        _check(name, f"{key}={word}")
        lower = word.startswith(LOWER) or (not word.startswith(HIGHER) and metric_of(name).lower_is_better)
        metrics.append(Metric(name, lower))
    if twice := [metric.name for metric in metrics if [other.name for other in metrics].count(metric.name) > 1]:
        raise ConfigError(f"{key}: {twice[0]} stands in it twice; name each number once")
    return metrics


def unanswered(metrics: list[Metric], runs: list[RunSpec]) -> list[str]:
    """The numbers of these that none of the runs will have: those of a split that is in no run's data."""
    splits = {*RESERVED} | {split for run in runs for split in run.sizes}
    if not all(run.sizes for run in runs):  # one is finished, and its splits are not looked up again
        return []
    of_a_split = (metric.name for metric in metrics if not metric.name.startswith(result.OF_NO_SPLIT))
    return [name for name in of_a_split if name.rpartition("/")[2] not in splits]


def _check(name: str, given: str) -> None:
    names, (number, _, split) = _names(), name.rpartition("/")
    possible = [name]
    if not get_close_matches(split, SPLITS, cutoff=0.7):  # not mistyped: a split of the data's own
        possible.append(f"{number}/test")
    patterns = [re.sub("<[^>]*>", "[^/]+", re.escape(known)) for known in names]
    if not any(re.fullmatch(pattern, one) for pattern in patterns for one in possible):
        raise ConfigError(
            f"{given}: no such number of a run{did_you_mean(name, names, 3, 0.5)}; there are accuracy/test, "
            "margin_nats/train_reversed, across/symmetry_test and others like them; - before one: lower is better"
        )


def _names() -> list[str]:
    """The numbers of a trained run, named as result.summary does; `<...>` stands for a name from the data."""
    names = []
    for key in result.KEYS:
        if key.startswith("trained.<split>."):
            names += [f"{key.removeprefix('trained.<split>.')}/{split}" for split in SPLITS]
        elif key.startswith(("across.trained.", "training.", "timing.")):
            names.append(f"{key.split('.')[0]}/{key.rsplit('.', 1)[-1]}")
    return names
