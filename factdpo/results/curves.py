"""A run's curves, thinned to the resolution of a page."""

import math
from pathlib import Path
from typing import Any

from factdpo.store.history import HISTORY, read_history

Curves = dict[str, Any]

LOSSES = 120  # points of a loss curve: each the mean over equally many steps
POINTS = 60  # evaluations of a run that are drawn
METRICS = ("accuracy", "margin_nats", "chosen_logp_nats", "rejected_logp_nats", "p_other")


def read(folder: Path) -> Curves:
    """Loss over steps, and METRICS of every split at each evaluation. Raises ValueError or OSError if unreadable.

    {"window": steps per point, "loss": [steps, losses], "steps": [...], "left_out": evaluations not drawn,
    "splits": {split: {metric: [...]}}}
    """
    rows = read_history(folder / HISTORY)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    scores = [row for row in rows if any(key.startswith("eval/") for key in row)]
    window = max(1, math.ceil(len(losses) / LOSSES))
    parts = [losses[start : start + window] for start in range(0, len(losses), window)]
    drawn = [scores[position] for position in evenly(len(scores), POINTS)]
    splits: dict[str, dict[str, list[float | None]]] = {}
    for split in dict.fromkeys(key.split("/")[1] for row in scores for key in row if key.startswith("eval/")):
        splits[split] = {metric: [short(row.get(f"eval/{split}/{metric}")) for row in drawn] for metric in METRICS}
    means = [short(sum(loss for _, loss in part) / len(part)) for part in parts]
    return {
        "window": window,
        "loss": [[part[-1][0] for part in parts], means],
        "steps": [row["step"] for row in drawn],
        "left_out": len(scores) - len(drawn),
        "splits": splits,
    }


def evenly(length: int, most: int) -> list[int]:
    """At most `most` positions of a list, evenly spread, with the first and the last."""
    if length <= most:
        return list(range(length))
    return [round(i * (length - 1) / (most - 1)) for i in range(most)]


def short(value: float | int | None) -> float | None:
    """Rounded to four digits, more than a pixel shows; None for NaN, infinity and None, which no axis has."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
