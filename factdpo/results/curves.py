"""A run's curves, thinned to what can be seen on a page."""

import math
from pathlib import Path
from typing import Any

from factdpo.store.history import HISTORY, read_history

Curves = dict[str, Any]

LOSSES = 120  # points of a loss curve: each the mean over equally many steps
POINTS = 60  # evaluations of a run that are drawn
METRICS = ("accuracy", "margin_nats", "chosen_logp_nats", "rejected_logp_nats", "p_other")


def read(folder: Path) -> Curves:
    """Loss over steps, and METRICS of every split at each evaluation; ValueError or OSError if it cannot be read.

    {"window": steps per point, "loss": [steps, losses], "steps": [...], "splits": {split: {metric: [...]}}}
    """
    rows = read_history(folder / HISTORY)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    scores = [row for row in rows if any(key.startswith("eval/") for key in row)]
    every = max(1, math.ceil(len(losses) / LOSSES))
    parts = [losses[start : start + every] for start in range(0, len(losses), every)]
    shown = [scores[at] for at in evenly(len(scores), POINTS)]
    splits: dict[str, dict[str, list[float | None]]] = {}
    for split in dict.fromkeys(key.split("/")[1] for row in scores for key in row if key.startswith("eval/")):
        splits[split] = {metric: [short(row.get(f"eval/{split}/{metric}")) for row in shown] for metric in METRICS}
    means = [short(sum(loss for _, loss in part) / len(part)) for part in parts]
    return {
        "window": every,
        "loss": [[part[-1][0] for part in parts], means],
        "steps": [row["step"] for row in shown],
        "left_out": len(scores) - len(shown),
        "splits": splits,
    }


def evenly(length: int, most: int) -> list[int]:
    """At most so many positions of a list, evenly spread, with the first and the last."""
    if length <= most:
        return list(range(length))
    return [round(at * (length - 1) / (most - 1)) for at in range(most)]


def short(value: float | int | None) -> float | None:
    """Four digits, which is more than a pixel shows; None for what no axis has."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
