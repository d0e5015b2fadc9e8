"""Means over the runs of a setting, each with the interval that suits the metric."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo.results.intervals import NONE, Answers, share_interval, student_interval, with_interval
from factdpo.results.tables import Results, shown
from factdpo.store.result import record_or_none

if TYPE_CHECKING:
    import pandas as pd

# Metrics from 0 to 1, each the mean over the facts of a split of something that lies there.
SHARES = {"accuracy", "accuracy_per_token", "balanced_accuracy", "greedy_accuracy", "reward_accuracy", "p_other"}
COLUMN = {"accuracy": "right", "greedy_accuracy": "greedy"}  # of items.parquet: what the share counts
PER_TOKEN = [
    "chosen_logp_nats",
    "rejected_tokens",
    "rejected_logp_nats",
    "chosen_tokens",
]  # accuracy_per_token, from these

# What an interval speaks of.
OVER_FACTS = "facts"  # other facts: a single run
BOTH = "facts and seeds"
COUNTS = "facts and seeds, by counts"  # wider: without items.parquet, or where it does not hold the metric
OVER_SEEDS = "seeds"  # other seeds: a metric that is no share


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1]: accuracies, shares of answers, baselines, order consistency."""
    kind = metric.removeprefix("base/").rpartition("/")[0]
    return kind in SHARES or kind.startswith(("answer_shares.", "baseline/")) or "across/symmetry_" in metric


def means(results: Results, by: list[str], metrics: list[str]) -> "pd.DataFrame":
    """One row per group of runs and metric: `by`, metric, n, mean, sd, low, high, over.

    n counts the finished runs that have the metric; sd is the sample's (ddof=1). [low, high] is a 95 % interval, `over`
    what it speaks of: OVER_FACTS, BOTH, COUNTS or OVER_SEEDS. It is `share_interval` for a share, Student's t for
    another number, of which a single run has none. A group that pools runs which differ in more than their seed has
    none (NaN, and `over` empty): how far its mean would move depends on which settings one had tried. Groups are
    ordered by their keys; without a finished run n is 0.
    """
    import pandas as pd

    table = results.table
    groups = [group for _, group in table.groupby(by, dropna=False)] if by else [table]
    columns = {metric: [] for metric in metrics}
    for group in groups:
        keys = dict(zip(by, group.loc[:, by].to_numpy(dtype=object)[0], strict=True))
        runs = group.loc[group["state"] == "FINISHED"]
        comparable = _same_but_for_seeds(results, runs)
        facts = Facts(runs)
        for metric in metrics:
            values = runs[metric].dropna().astype(float)
            row = {**keys, "metric": metric, "n": len(values), "mean": values.mean(), "sd": values.std()}
            measured = runs if len(values) == len(runs) else runs.loc[values.index]
            low, high, over = _interval(metric, measured, values, facts) if comparable else (*NONE, "")
            columns[metric].append(row | {"low": low, "high": high, "over": over})
    return pd.DataFrame([row for rows in columns.values() for row in rows])


def _same_but_for_seeds(results: Results, runs: "pd.DataFrame") -> bool:
    """Whether the runs are of one setting, and no seed is there twice, as on other data or by another version."""
    settings = {tuple(map(shown, values)) for values in runs.loc[:, results.settings].to_numpy(dtype=object)}
    seeds = [key for key in ("split.seed", "dpo.seed") if key in runs]  # evaluations of foreign weights have none
    return len(settings) <= 1 and not (seeds and runs.loc[:, seeds].duplicated().any())


def _interval(metric: str, runs: "pd.DataFrame", values: "pd.Series", facts: "Facts") -> tuple[float, float, str]:
    if not len(values):
        return *NONE, ""
    numbers = values.to_numpy(dtype=float)
    if not is_share(metric):
        over = OVER_SEEDS if len(numbers) > 1 else ""
        sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
        return *student_interval(float(numbers.mean()), sd, len(numbers)), over
    sizes = sizes_of(metric, runs)
    if sizes is None:
        return *NONE, ""
    answers = facts.of(metric, runs) if len(numbers) > 1 else None
    over = OVER_FACTS if len(numbers) == 1 else COUNTS if answers is None else BOTH
    return *share_interval(numbers.tolist(), sizes, answers), over


def sizes_of(metric: str, runs: "pd.DataFrame") -> list[int] | None:
    """The number of facts in each run that the metric is a share of; None where it is not recorded."""
    split = metric.rpartition("/")[2].removeprefix("symmetry_" if "across/" in metric else "")
    base = "base/" if metric.startswith("base/") else ""
    columns = [f"{base}{n}/{split}" for n in ("n_facts", "n")]  # older records have the second one only
    known = [runs[column] for column in columns if column in runs]
    sizes = known[0].fillna(known[-1]).astype(float).tolist() if known else [math.nan]
    return None if any(math.isnan(size) for size in sizes) else [int(size) for size in sizes]


class Facts:
    """The answers of runs fact by fact, read when they are first needed; a fact is its position in its data."""

    def __init__(self, runs: "pd.DataFrame"):
        self._folders = dict(zip(runs.index, runs["folder"], strict=True))
        self._read: dict[Any, pd.DataFrame | None] = {}
        self._data: dict[str, int] = {}  # sha256 of the data -> number

    def of(self, metric: str, runs: "pd.DataFrame") -> list[Answers] | None:
        """What each run answered; None unless items.parquet of all of them is there and says what the metric says."""
        answers = [self._answers(run, metric) for run in runs.index]
        same = [one is not None and math.isclose(one.right.mean(), value, abs_tol=1e-6)
                for one, value in zip(answers, runs[metric], strict=True)]  # fmt: skip
        return [one for one in answers if one is not None] if all(same) else None

    def _answers(self, run: Any, metric: str) -> Answers | None:
        kind, _, split = metric.removeprefix("base/").rpartition("/")
        if kind not in COLUMN and kind != "accuracy_per_token":
            return None
        if run not in self._read:
            self._read[run] = items = _items(Path(self._folders[run]))
            if items is not None:  # the same position in other data is another fact
                number = self._data.setdefault(_data(Path(self._folders[run])), len(self._data))
                items["fact"] = items["fact"].astype("int64") + (number << 32)
        items = self._read[run]
        if items is None or kind not in items:
            return None
        model = "base" if metric.startswith("base/") else "trained"
        items = items.loc[(items["model"] == model) & (items["split"] == split)]
        return Answers(items["fact"].to_numpy(), items[kind].to_numpy(dtype=bool)) if len(items) else None


def _data(folder: Path) -> str:
    """sha256 of the data of a run; empty for an older record, which does not say it."""
    return str(((record_or_none(folder) or {}).get("asked") or {}).get("data_sha256", ""))


def _items(folder: Path) -> "pd.DataFrame | None":
    """A run's items.parquet: model, split, fact, and what accuracies count, if it says; None if it is unreadable."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(folder / "items.parquet")
        known = [*COLUMN.values(), *PER_TOKEN]
        present = [column for column in known if column in file.schema_arrow.names]
        items = file.read(columns=["model", "split", "fact", *present], use_threads=False).to_pandas()
    except (OSError, pa.ArrowException):
        return None
    if present == known:  # means are compared without dividing, as the record does
        chosen, rejected = items["chosen_logp_nats"], items["rejected_logp_nats"]
        items["accuracy_per_token"] = chosen * items["rejected_tokens"] > rejected * items["chosen_tokens"]
    return items.rename(columns={column: kind for kind, column in COLUMN.items()})


def as_cell(metric: str, mean: float, low: float, high: float) -> str:
    """`0.97 [0.95, 0.98]` of a share, `2.000 ± 0.100` of another number; each alone where it has no interval."""
    if math.isnan(mean):
        return "-"
    if is_share(metric):
        return with_interval(mean, low, high)
    return number(mean) + ("" if math.isnan(high) else f" ± {number(high - mean)}")


def number(value: float) -> str:
    """Three decimals, one of a number above 100, `-` for none."""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
