"""What many runs say together: means over seeds with their intervals, and two runs or groups on the same facts."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo.config.overrides import typed
from factdpo.config.schema import ConfigError
from factdpo.results.tables import Results, known, load

if TYPE_CHECKING:
    import pandas as pd

SAME_FACT = ["split", "prompt", "chosen", "rejected"]
RESAMPLES = 9_999
BOOTSTRAP_SEED = 0


# ----------------------------------------------------------------------------------------------------- means over seeds


def means(table: "pd.DataFrame", by: list[str], metrics: list[str]) -> "pd.DataFrame":
    """One row per group of runs and metric: `by`, metric, n, mean, sd, low, high.

    n counts the finished runs that have the metric; sd is the sample's (ddof=1). [low, high] is the 95 % interval of
    the mean by Student's t with n - 1 degrees of freedom: mean -+ t(0.975) sd / sqrt(n) (NIST/SEMATECH e-Handbook of
    Statistical Methods, 1.3.5.2). It speaks of other seeds, and takes the metric to vary normally over them. That of an
    accuracy near 1 may reach above 1, and is left so: cutting it off would hide that the assumption fails. From one run
    there is no interval: sd, low and high are NaN. Groups are ordered by their keys; without a finished run n is 0.
    """
    import pandas as pd
    from scipy.special import stdtrit

    numbers = table.loc[:, metrics].where(table["state"] == "FINISHED").astype(float)
    groups = [table[key] for key in by] if by else [pd.Series("all", index=table.index)]
    parts = []
    for metric in metrics:
        found = numbers[metric].groupby(groups, dropna=False).agg(["count", "mean", "std"]).reset_index(drop=not by)
        found.columns = [*by, "n", "mean", "sd"]
        half = stdtrit(found["n"] - 1, 0.975) * found["sd"] / found["n"] ** 0.5
        parts.append(found.assign(low=found["mean"] - half, high=found["mean"] + half))
        parts[-1].insert(len(by), "metric", metric)
    return pd.concat(parts, ignore_index=True)


# -------------------------------------------------------------------------------------------- two of them, fact by fact


@dataclass
class Side:
    """One side of a comparison: finished runs that differ in nothing but their seed, and how they were asked for."""

    asked: str
    runs: "pd.DataFrame"  # rows of Results.table, with `seed` as text
    unfinished: int  # runs that were meant and have no numbers

    @property
    def seeds(self) -> list[str]:
        return self.runs["seed"].tolist()


def side(results: Results, asked: str) -> Side:
    """The runs meant by a folder, by a run's id or the beginning of one, or by `key=value[,key=value...]`.

    Raises ConfigError if these are none, or runs that differ in more than their seed.
    """
    if Path(asked).is_dir():
        meant = load(asked).table
    elif "=" in asked:
        meant = results.table
        for condition in re.split(r",(?![^\[]*\])", asked):  # commas between conditions, not those in a list
            meant = _filtered(meant, results, condition)
    else:
        meant = results.table.loc[results.table["id"].str.startswith(asked)]
        if len(meant) != 1:
            raise ConfigError(
                f"{asked}: no folder, and the beginning of {len(meant)} ids of runs; `--by id` lists them"
            )
    runs = Results(meant).finished
    if not len(runs):
        raise ConfigError(f"{asked}: no finished run ({', '.join(meant['name'] + ' ' + meant['state'])})")
    if differ := Results(runs).settings:
        values = "; ".join(f"{key} is {_values(runs.loc[:, key])}" for key in differ)
        raise ConfigError(
            f"{asked}: {len(runs)} runs that differ in more than their seed ({values}); say which you mean"
        )
    seeds = runs["split.seed"].map(shown)
    if not runs["split.seed"].equals(runs["dpo.seed"]):
        seeds += "/" + runs["dpo.seed"].map(shown)
    if seeds.duplicated().any():  # alike in all that was asked, and still not one run
        raise ConfigError(
            f"{asked}: {len(runs)} runs of the same config, on other data or by another version; give an id"
        )
    return Side(asked, runs.assign(seed=seeds), len(meant) - len(runs))


def _filtered(table: "pd.DataFrame", results: Results, condition: str) -> "pd.DataFrame":
    """The rows for which `key=value` holds, the value as text or as a number: 1e-3 is 0.001."""
    key, _, value = condition.partition("=")
    key = results.key(key)
    cells = table.loc[:, key]
    holds = cells.map(shown) == value
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value, re.IGNORECASE):
        holds |= cells == float(value)
    if not any(holds):
        raise ConfigError(f"{condition}: no such run; {key} is {_values(cells)}")
    return table.loc[holds]


def _values(column: "pd.Series") -> str:
    return ", ".join(dict.fromkeys(column.sort_values().map(shown)))


def paired(a: Side, b: Side) -> "pd.DataFrame":
    """One row per split: how many facts each side ranks right, of those that both were asked; below it one per seed.

    A fact is compared with itself: same split, same words, and between groups the same seed, which drew the facts and
    their order. One run and another are compared on what they share, whatever their seeds.

    Columns: split; seed ("" for all together); pairs, of_a and of_b (answers in common, and of each side); accuracy_a,
    accuracy_b, difference (B - A) with its 95 % interval low, high; only_a, only_b (pairs that one side alone gets
    right); p.

    [low, high] is the percentile bootstrap over facts (scipy.stats.bootstrap, 9,999 resamples, seed 0): all pairs about
    one fact, of every seed and both orders, are drawn together. It speaks of other facts and takes the seeds as given;
    how far those differ is to be seen in their rows. p is McNemar's exact test, two-sided: the binomial test that a
    discordant pair falls to either side with 1/2. It takes the pairs to be independent, so it stands only where no fact
    is asked twice: with one seed, not with several together; elsewhere it is NaN.

    Raises ConfigError if no fact is common to both.
    """
    import pandas as pd

    runs_a, runs_b = a.runs, b.runs
    if len(runs_a) == len(runs_b) == 1:
        runs_b = runs_b.assign(seed=a.seeds)
    shared = set(runs_a["seed"]) & set(runs_b["seed"])
    if not shared:
        raise ConfigError(f"no seed in common: {a.asked} has {', '.join(a.seeds)}, {b.asked} has {', '.join(b.seeds)}")
    answers = [_answers(runs.loc[runs["seed"].isin(list(shared))]) for runs in (runs_a, runs_b)]
    same = [*SAME_FACT, "seed"]
    merged = answers[0].merge(
        answers[1], on=same, how="outer", suffixes=("_a", "_b"), indicator="where", validate="1:1"
    )
    if "both" not in set(merged["where"]):
        raise ConfigError(
            f"{a.asked} and {b.asked}: no fact in common; they were asked about other facts, or in other words"
        )
    rows = []
    for split in answers[0]["split"].unique():
        found = merged.loc[merged["split"] == split]
        parts = [("", found), *((seed, found.loc[found["seed"] == seed]) for seed in a.seeds if seed in shared)]
        rows += [
            {"split": split, "seed": seed} | _row(part) for seed, part in (parts if len(shared) > 1 else parts[:1])
        ]
    return pd.DataFrame(rows)


def _answers(runs: "pd.DataFrame") -> "pd.DataFrame":
    """What the trained models of some runs rank right: a row per run and fact."""
    table = Results(runs)
    items = table.items
    seeds = dict(zip(runs["id"], runs["seed"], strict=True))
    items = items.loc[items["model"] == "trained"]
    return items.loc[:, [*SAME_FACT, "fact", "right"]].assign(seed=items["id"].map(seeds))


def _row(found: "pd.DataFrame") -> dict[str, Any]:
    """The columns of `paired` that are numbers, for some of the facts."""
    from scipy import stats

    both = found.loc[found["where"] == "both"]
    right_a, right_b = both["right_a"].astype(bool), both["right_b"].astype(bool)
    only_a, only_b = sum(right_a & ~right_b), sum(right_b & ~right_a)
    steps = right_b.astype(int) - right_a.astype(int)
    by_fact = steps.groupby(both["fact_a"]).agg(["sum", "count"])
    row = {
        "pairs": len(both),
        "of_a": sum(found["where"] != "right_only"),
        "of_b": sum(found["where"] != "left_only"),
        "accuracy_a": right_a.mean(),
        "accuracy_b": right_b.mean(),
        "difference": steps.mean(),
        "low": math.nan,
        "high": math.nan,
        "only_a": only_a,
        "only_b": only_b,
        "p": math.nan,
    }
    if len(by_fact) > 1:
        interval = stats.bootstrap(
            (by_fact["sum"].to_numpy(), by_fact["count"].to_numpy()),
            lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
            paired=True, vectorized=True, method="percentile", n_resamples=RESAMPLES, batch=100, rng=BOOTSTRAP_SEED,
        ).confidence_interval  # fmt: skip
        row |= {"low": interval.low, "high": interval.high}
    if len(by_fact) == len(both) > 0:
        row["p"] = stats.binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return row


def shown(value: Any) -> str:
    """A cell as one would type it."""
    value = known(value)
    return value if isinstance(value, str) else typed(value.item() if hasattr(value, "item") else value)
