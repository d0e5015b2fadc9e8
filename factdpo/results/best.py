"""Which run is best: the one rule for status, dashboard, tables, the sweep's end and W&B."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Run = TypeVar("Run")

# The best run has the highest accuracy on the first of these splits that any run was scored on.
RANKED_BY = ("test", "train")
LOWER_IS_BETTER = ("p_other/", "rejected_logp_nats/", "right_to_wrong/", "across/retention", "timing/")
# Not of the trained model, or neither good nor bad.
NEITHER = ("base/", "baseline/", "n/", "n_", "chosen_tokens/", "rejected_tokens/", "answer_shares.")


def best_by_accuracy(runs: Iterable[Run], accuracy: Callable[[Run, str], float | None]) -> tuple[Run, str] | None:
    """The run with the highest accuracy on held-out facts, else on training facts, and the split; first among equals.

    `accuracy(run, split)` is None where the run has no such score.
    """
    runs = list(runs)
    for split in RANKED_BY:
        scores = [(value, run) for run in runs if (value := accuracy(run, split)) is not None]
        if scores:
            return max(scores, key=lambda pair: pair[0])[1], split
    return None


def best_in(metric: str, values: dict[int, float]) -> list[int]:
    """The keys of the best value of a metric, all that are equal; [] for a metric that is neither good nor bad."""
    if metric.startswith(NEITHER) or not values:
        return []
    best = min(values.values()) if metric.startswith(LOWER_IS_BETTER) else max(values.values())
    return [key for key in values if values[key] == best]
