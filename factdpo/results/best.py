"""Which setting is best: the one rule for status, dashboard, tables, the sweep's end and W&B.

A setting is what differs between runs less their seeds, and is ranked by the mean over its runs: the best single run
of many is the luckiest one.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Run = TypeVar("Run")

# Settings are ranked by the accuracy on the first of these splits that any run was scored on.
RANKED_BY = ("validation", "test", "train")
LOWER_IS_BETTER = ("p_other/", "rejected_logp_nats/", "right_to_wrong/", "across/retention", "timing/")
# Not of the trained model, or neither good nor bad.
NEITHER = ("base/", "baseline/", "n/", "n_", "chosen_tokens/", "rejected_tokens/", "answer_shares.")
FLATTERED = "chosen on the test facts, so it flatters itself; split.validation=N sets facts aside to choose on"


@dataclass(frozen=True)
class Best(Generic[Run]):
    """The setting with the highest mean accuracy."""

    split: str  # that the settings were ranked by
    accuracy: float  # mean over the runs
    runs: list[Run]  # of the setting, those with a score
    settings: int  # that were ranked

    @property
    def flattered(self) -> bool:
        """Whether the number was used to choose, among several, on the facts that it is quoted for."""
        return self.split == "test" and self.settings > 1


def best_setting(
    runs: Iterable[Run], setting: Callable[[Run], Hashable], accuracy: Callable[[Run, str], float | None]
) -> Best[Run] | None:
    """The best setting, the first among equals; None if no run was scored on a split of RANKED_BY.

    `accuracy(run, split)` is None where the run has no such score.
    """
    runs = list(runs)
    for split in RANKED_BY:
        groups: dict[Hashable, list[tuple[float, Run]]] = {}
        for run in runs:
            if (value := accuracy(run, split)) is not None:
                groups.setdefault(setting(run), []).append((value, run))
        if groups:
            means = {key: sum(value for value, _ in scored) / len(scored) for key, scored in groups.items()}
            best = max(means, key=lambda key: means[key])
            return Best(split, means[best], [run for _, run in groups[best]], len(groups))
    return None


def best_in(metric: str, values: dict[int, float]) -> list[int]:
    """The keys of the best value of a metric, all that are equal; [] for a metric that is neither good nor bad."""
    if metric.startswith(NEITHER) or not values:
        return []
    best = min(values.values()) if metric.startswith(LOWER_IS_BETTER) else max(values.values())
    return [key for key in values if values[key] == best]
