"""What a sweep answers, in sentences. Every number in them is computed here, and each says how sure it is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from factdpo.config.overrides import flat
from factdpo.config.schema import Config, ConfigError, to_dict
from factdpo.config.validate import validate
from factdpo.report.settings import WILSON, Score, Setting
from factdpo.results.compare import paired, shown, side
from factdpo.results.tables import SPLITS, Results
from factdpo.store.result import AS_TRAINED, best_baseline

ALARM = 0.2  # reward accuracy above accuracy by more than this: what TRL logs is not what was asked (D6)
NAMED = 3  # settings that share the first place and are named
LIKE = 6  # settings that cannot be told from the best, and are named


@dataclass(frozen=True)
class Difference:
    """A setting's mean less another's, with a 95 % interval: NaN where there is none, and why."""

    value: float
    low: float
    high: float
    how: str

    @property
    def certain(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Answer:
    """One sentence, what else must be said with it, and how the intervals came about."""

    sentence: str
    more: list[str]
    how: list[str]
    best: Setting | None = None  # the best setting, where that is more than chance


def answer(results: Results, settings: list[Setting], splits: list[str]) -> Answer:
    """What the finished runs say about held-out facts."""
    for split in ("test", "test_reversed", "train_reversed", "train"):
        measured = [setting for setting in settings if f"accuracy/{split}" in setting.scores]
        if measured and split in splits:
            break
    else:
        return Answer("No run has finished, so there is nothing to say yet.", [], [])
    best = max(measured, key=lambda setting: setting.scores[f"accuracy/{split}"].mean)
    if len(measured) == 1:
        sentence, more, how, sure = _alone(best, split), [], [_over(best.scores[f"accuracy/{split}"])], False
    else:
        sentence, more, how, sure = _compared(results, measured, best, split)
        more += _elsewhere(results, settings, splits, split)
    more += [_beside(best, split)]
    return Answer(sentence, [line for line in [*more, _alarm(results)] if line], how, best if sure else None)


def number(score: Score) -> str:
    """`0.97 [0.95, 0.98]`, or the mean alone where there is no interval."""
    interval = "" if math.isnan(score.low) else f" [{plain(score.low)}, {plain(score.high)}]"
    return plain(score.mean) + interval


def plain(value: float, sign: str = "") -> str:
    """Two decimals, and no minus before zero."""
    return f"{round(value, 2) + 0.0:{sign}.2f}"


def difference(results: Results, settings: list[Setting], best: Setting, other: Setting, metric: str) -> Difference:
    """`best` less `other`. Both were picked from all settings, and the interval says so: it is Tukey's.

    Tukey-Kramer's simultaneous intervals of all differences between k means (NIST/SEMATECH e-Handbook, 7.4.7.1):
    q(0.95; k, N - k) sqrt(s^2 / 2 (1/n_a + 1/n_b)), s^2 the variance within settings, taken to be the same in all. For
    two settings this is Student's t. From one run each: over facts, as factdpo/compare.py does for two runs.
    """
    a, b = best.scores[metric], other.scores[metric]
    value = a.mean - b.mean
    if a.n == b.n == 1:
        return _over_facts(results, best, other, metric, value)
    many = [setting for setting in settings if metric in setting.scores]
    runs = results.finished.set_index("id")[metric]
    groups = [runs.loc[[id for id in setting.ids if id in runs.index]].dropna() for setting in many]
    free = sum(map(len, groups)) - len(groups)
    variance = sum(((group - group.mean()) ** 2).sum() for group in groups) / free
    half = _studentized_range(len(groups), free) * math.sqrt(variance / 2 * (1 / a.n + 1 / b.n))
    how = "Student's t" if len(groups) == 2 else f"Tukey's for all pairs of {len(groups)} settings"
    return Difference(value, value - half, value + half, f"{how}, seeds taken to scatter alike in each")


@lru_cache(maxsize=64)  # slow to find, and asked for by every setting
def _studentized_range(groups: int, free: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(0.95, groups, free))


def _over_facts(results: Results, best: Setting, other: Setting, metric: str, value: float) -> Difference:
    """Of two runs on the same facts; without an interval where each was asked about others."""
    ids = [next(id for id in s.ids if id in set(results.finished["id"])) for s in (best, other)]
    try:
        rows = paired(side(results, ids[1]), side(results, ids[0]))
    except ConfigError:
        rows = None
    found = None if rows is None else rows.loc[rows["split"] == metric.rpartition("/")[2]]
    row = {} if found is None or not len(found) else found.iloc[0].to_dict()
    if not row or not row["pairs"] == row["of_a"] == row["of_b"] or math.isnan(row["low"]):
        return Difference(value, math.nan, math.nan, "none, since the two runs were asked about different facts")
    how = "bootstrap over facts; one run each, so another seed may say otherwise"
    return Difference(value, float(row["low"]), float(row["high"]), how)


def _alone(setting: Setting, split: str) -> str:
    score = setting.scores[f"accuracy/{split}"]
    who = f"Over {score.n} runs the trained model ranks" if score.n > 1 else "The trained model ranks"
    return f"{who} {number(score)} of the {SPLITS[split]} right."


def _compared(
    results: Results, measured: list[Setting], best: Setting, split: str
) -> tuple[str, list[str], list[str], bool]:
    metric = f"accuracy/{split}"

    def score(setting: Setting) -> Score:
        return setting.scores[metric]

    worst = min(measured, key=lambda setting: score(setting).mean)
    gap = difference(results, measured, best, worst, metric)
    first = [s.label for s in measured if math.isclose(score(s).mean, score(best).mean, abs_tol=1e-9)]
    named = NAMED if len(best.values) < 3 else 1
    names = _and(first[:named] + [f"{len(first) - named} more"] * (len(first) > named))
    does = "does best" if len(first) == 1 else "do best"
    of = f"the worst of {len(measured)} settings" if len(measured) > 2 else "the other setting"
    if not math.isnan(gap.low) and not gap.certain:
        sentence = (
            f"No difference larger than chance between {len(measured)} settings on {SPLITS[split]}: from "
            f"{number(score(worst))} ({worst.label}) to {number(score(best))} ({names}), apart by {_gap(gap)}."
        )
    else:
        sentence = (
            f"{names} {does} on {SPLITS[split]}: {number(score(best))}, that is {_gap(gap)} over "
            f"{worst.label}, {of} ({number(score(worst))})."
        )
    more = []
    usual = flat(to_dict(validate(Config())))
    default = [s for s in measured if all(shown(usual.get(key)) == shown(s.values[key]) for key in s.values)]
    if default and default[0] not in (best, worst):
        against = difference(results, measured, best, default[0], metric)
        chance = "" if against.certain or math.isnan(against.low) else ", no more than chance"
        more.append(
            f"The default, {default[0].label}, reaches {number(score(default[0]))}: the best is {_gap(against)} "
            f"against it{chance}."
        )
    if gap.certain and len(measured) > 2 and score(best).n > 1:
        like = [s.label for s in measured if s.label not in first and not _apart(results, measured, best, s, metric)]
        named = like[:LIKE] + [f"{len(like) - LIKE} more"] * (len(like) > LIKE)
        more += [f"Not told apart from the best: {'; '.join(named)}."] if like else []
    alone = sum(score(setting).n == 1 for setting in measured)
    if alone and len(measured) > 1:
        which = (
            "Each setting has"
            if alone == len(measured)
            else f"Of {len(measured)} settings {alone} ha{'ve' if alone > 1 else 's'}"
        )
        more.append(f"{which} one run only: how far seeds scatter there is not known.")
    over = dict.fromkeys(_over(score(setting)) for setting in measured)
    return sentence, more, [*over, f"Interval of the difference: {gap.how}."], gap.certain


def _apart(results: Results, measured: list[Setting], best: Setting, other: Setting, metric: str) -> bool:
    return difference(results, measured, best, other, metric).certain


def _elsewhere(results: Results, settings: list[Setting], splits: list[str], said: str) -> list[str]:
    """The split on which settings lie further apart than on the one that was spoken of, if that is no chance."""

    def gap(split: str, pick: Callable[..., Setting]) -> Setting:
        return pick([s for s in settings if f"accuracy/{split}" in s.scores], key=lambda s: mean(s, split))

    def mean(setting: Setting, split: str) -> float:
        return setting.scores[f"accuracy/{split}"].mean

    both = [split for split in splits if sum(f"accuracy/{split}" in s.scores for s in settings) > 1]
    apart = {split: mean(gap(split, max), split) - mean(gap(split, min), split) for split in both}
    widest = max(apart, key=lambda split: apart[split], default=said)
    if widest == said or apart[widest] < apart.get(said, 0) + 0.05:
        return []
    best, worst = gap(widest, max), gap(widest, min)
    metric = f"accuracy/{widest}"
    found = difference(results, settings, best, worst, metric)
    if not found.certain:
        return []
    return [
        f"They differ most on {SPLITS.get(widest, widest)}: {best.label} {number(best.scores[metric])}, "
        f"{worst.label} {number(worst.scores[metric])}, apart by {_gap(found)}."
    ]


def _beside(setting: Setting, split: str) -> str:
    """The base model and the rules on the same facts."""
    rules: dict[str, float | None] = {
        metric.split("/")[1]: score.mean
        for metric, score in setting.scores.items()
        if metric.startswith("baseline/") and metric.endswith(f"/{split}")
    }
    base, rule = setting.scores.get(f"base/accuracy/{split}"), best_baseline(rules)
    said = [f"the base model ranks {plain(base.mean)} right"] if base else []
    said += [f"the best rule that understands nothing ({rule[0].replace('_', ' ')}) {plain(rule[1])}"] if rule else []
    if implied := setting.scores.get(f"baseline/implied/{split}"):
        said.append(f"what the training facts imply by logic {plain(implied.mean)}")
    return f"On the same facts{f' as {setting.label}' * bool(setting.values)} {_and(said)}." if said else ""


def _alarm(results: Results) -> str:
    """How many runs' reward accuracy says what their accuracy does not."""
    runs = results.finished
    if not {"reward_accuracy/train", "accuracy/train"} <= {*runs.columns}:
        return ""
    logged = runs.loc[:, "reward_accuracy/train"]
    if (as_trained := f"reward_accuracy/{AS_TRAINED}") in runs:  # what training saw of runs with data.boundary=none
        logged = runs.loc[:, as_trained].fillna(logged)
    many = sum(logged - runs.loc[:, "accuracy/train"] > ALARM)
    if not many:
        return ""
    return (
        f"In {many} of {len(runs)} runs reward accuracy on the training facts, which TRL logs, is more than {ALARM} "
        "above accuracy: training moved the right way, and the model still does not rank the facts first."
    )


def _gap(found: Difference) -> str:
    interval = "" if math.isnan(found.low) else f" [{plain(found.low, '+')}, {plain(found.high, '+')}]"
    return plain(found.value, "+") + interval


def _over(score: Score) -> str:
    if score.over == WILSON:
        return "Intervals of settings with one run: Wilson's, over its facts; they say nothing about other seeds."
    return "Intervals of means: 95 %, Student's t over a setting's runs, cut off at 0 and 1; they speak of other seeds."


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
