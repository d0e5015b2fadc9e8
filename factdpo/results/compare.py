"""Paired comparisons of two runs or groups on the same facts."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo.config.schema import ConfigError
from factdpo.results.intervals import wilson
from factdpo.results.tables import Results, load, shown

if TYPE_CHECKING:
    import pandas as pd

SAME_FACT = ["split", "prompt", "chosen", "rejected"]
RESAMPLES = 9_999
BOOTSTRAP_SEED = 0


@dataclass
class Side:
    """One side of a comparison: finished runs that differ in their seed only."""

    name: str  # as the user typed it
    runs: "pd.DataFrame"  # rows of Results.table, with `seed` as text
    unfinished: int  # runs that match and have no metrics

    @property
    def seeds(self) -> list[str]:
        return self.runs["seed"].tolist()


def side(results: Results, name: str) -> Side:
    """The runs of a folder, of a run's id or the beginning of one, or of `key=value[,key=value...]`.

    Raises ConfigError if none of them is finished, or if they differ in more than their seed.
    """
    matches = _matches(results, name)
    runs = Results(matches).finished
    if not len(runs):
        raise ConfigError(f"{name}: no finished run ({', '.join(matches['name'] + ' ' + matches['state'])})")
    several = f"{name}: {len(runs)} runs"
    if differing := Results(runs).settings:
        values = "; ".join(f"{key} is {_values(runs.loc[:, key])}" for key in differing)
        raise ConfigError(f"{several} that differ in more than their seed ({values}); add key=value to choose")
    if "split.seed" not in runs:  # evaluations of foreign weights, which nobody knows the seeds of
        if len(runs) > 1:
            raise ConfigError(f"{several} of the same weights and facts; give an id")
        return Side(name, runs.assign(seed=""), len(matches) - len(runs))
    seeds = runs["split.seed"].map(shown)
    if not runs["split.seed"].equals(runs["dpo.seed"]):
        seeds += "/" + runs["dpo.seed"].map(shown)
    if seeds.duplicated().any():
        raise ConfigError(f"{several} of the same config, on other data or by another version; give an id")
    return Side(name, runs.assign(seed=seeds), len(matches) - len(runs))


def _matches(results: Results, name: str) -> "pd.DataFrame":
    """The rows that the name of a side stands for."""
    if Path(name).is_dir():
        return load(name).table
    if "=" in name:
        rows = results.table
        for condition in re.split(r",(?![^\[]*\])", name):  # commas between conditions, not those in a list
            rows = _filtered(rows, results, condition)
        return rows
    rows = results.table.loc[results.table["id"].str.startswith(name)]
    if len(rows) != 1:
        raise ConfigError(f"{name}: no folder, and the beginning of {len(rows)} ids of runs; `--by id` lists them")
    return rows


def _filtered(table: "pd.DataFrame", results: Results, condition: str) -> "pd.DataFrame":
    """The rows with `key=value`, compared as text or as a number: 1e-3 is 0.001."""
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
    """One row per split with facts in common: how many of them each side ranks right; below it one per seed.

    A fact is compared with itself: same split, same words, and between groups the same seed, which drew the facts and
    their order. Two single runs are compared on the facts that they share, whatever their seeds.

    Columns: split; seed ("" for all together); facts, facts_a and facts_b (in common, and of each side; a fact asked by
    several seeds or in both orders is one); pairs (answers in common); accuracy_a, accuracy_b, difference (B - A) with
    its 95 % interval low, high; only_a, only_b (pairs that one side alone gets right); p.

    [low, high] is the percentile bootstrap over facts (scipy.stats.bootstrap, 9,999 resamples, seed 0): all pairs about
    one fact, of every seed and both orders, are drawn together. Where all facts say the same, which no resample can
    change, it reaches to Wilson's bound for the share of facts that say another. It covers other facts and takes the
    seeds as given; the rows per seed show how far those differ. p is McNemar's exact test, two-sided: the binomial test
    that a discordant pair falls to either side with 1/2. It assumes independent pairs, so it is NaN wherever a fact
    occurs twice, as it does in the rows for several seeds together.

    Raises ConfigError if no fact is common to both.
    """
    import pandas as pd

    runs_a, runs_b = a.runs, b.runs
    if len(runs_a) == len(runs_b) == 1:
        runs_b = runs_b.assign(seed=a.seeds)
    shared = [seed for seed in a.seeds if seed in set(runs_b["seed"])]
    if not shared:
        raise ConfigError(f"no seed in common: {a.name} has {', '.join(a.seeds)}, {b.name} has {', '.join(b.seeds)}")
    answers_a, answers_b = (_answers(runs.loc[runs["seed"].isin(shared)]) for runs in (runs_a, runs_b))
    same = [*SAME_FACT, "seed"]
    merged = answers_a.merge(answers_b, "outer", same, suffixes=("_a", "_b"), indicator="where", validate="1:1")
    if "both" not in set(merged["where"]):
        raise ConfigError(f"{a.name} and {b.name}: no fact in common; they were scored on other facts or other words")
    rows = []
    for split in answers_a["split"].unique():
        pairs = merged.loc[merged["split"] == split]
        by_seed = [(seed, pairs.loc[pairs["seed"] == seed]) for seed in shared] if len(shared) > 1 else []
        for seed, part in [("", pairs), *by_seed]:
            if "both" in set(part["where"]):
                rows.append({"split": split, "seed": seed} | _row(part))
    return pd.DataFrame(rows)


def _answers(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Whether the trained models rank each fact right: a row per run and fact."""
    items = Results(runs).items
    seeds = dict(zip(runs["id"], runs["seed"], strict=True))
    items = items.loc[items["model"] == "trained"]
    answers = items.loc[:, [*SAME_FACT, "fact", "right"]].assign(seed=items["id"].map(seeds))
    # Records of old have a probe as often as facts share it; it has one answer, and counts as the first one's.
    return answers.drop_duplicates([*SAME_FACT, "seed"])


def _row(pairs: "pd.DataFrame") -> dict[str, Any]:
    """The numeric columns of `paired` for these pairs."""
    from scipy import stats

    both = pairs.loc[pairs["where"] == "both"]
    right_a, right_b = both["right_a"].astype(bool), both["right_b"].astype(bool)
    only_a, only_b = sum(right_a & ~right_b), sum(right_b & ~right_a)
    steps = right_b.astype(int) - right_a.astype(int)
    by_fact = steps.groupby(both["fact_a"]).agg(["sum", "count"])
    row = {
        "facts": len(by_fact),
        "facts_a": pairs["fact_a"].nunique(),
        "facts_b": pairs["fact_b"].nunique(),
        "pairs": len(both),
        "accuracy_a": right_a.mean(), "accuracy_b": right_b.mean(),
        "difference": steps.mean(), "low": math.nan, "high": math.nan,
        "only_a": only_a, "only_b": only_b, "p": math.nan,
    }  # fmt: skip
    if steps.nunique() == 1:
        others = wilson(0.0, len(by_fact))[1]
        row |= {"low": max(-1.0, row["difference"] - others), "high": min(1.0, row["difference"] + others)}
    elif len(by_fact) > 1:
        interval = stats.bootstrap(
            (by_fact["sum"].to_numpy(), by_fact["count"].to_numpy()),
            lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
            paired=True, vectorized=True, method="percentile", n_resamples=RESAMPLES, batch=100, rng=BOOTSTRAP_SEED,
        ).confidence_interval  # fmt: skip
        row |= {"low": interval.low, "high": interval.high}
    if len(by_fact) == len(both) > 0:
        row["p"] = stats.binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return row
