"""The answer of a sweep in sentences; each number in them comes with its interval."""

import math
from dataclasses import dataclass
from functools import lru_cache

from factdpo.config.overrides import flat
from factdpo.config.schema import Config, ConfigError, to_dict
from factdpo.config.validate import validate
from factdpo.report.settings import WILSON, Score, Setting
from factdpo.results.compare import paired, shown, side
from factdpo.results.tables import SPLITS, Results
from factdpo.store.result import ACCURACY_GAP, AS_TRAINED, best_baseline

NAMED_BEST = 3  # settings that share the first place and are listed by name
NAMED_CLOSE = 6  # settings that cannot be told from the best and are listed by name


@dataclass(frozen=True)
class Difference:
    """One setting's mean minus another's, with its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float
    how: str  # the method of the interval, or the reason why there is none

    @property
    def certain(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Answer:
    """One sentence, the caveats that belong to it, and the methods of the intervals."""

    sentence: str
    more: list[str]
    how: list[str]
    best: Setting | None = None  # the best setting, if its lead is larger than chance


def answer(results: Results, settings: list[Setting], splits: list[str]) -> Answer:
    """What the finished runs show about held-out facts."""
    for split in ("test", "test_reversed", "train_reversed", "train"):
        measured = [setting for setting in settings if f"accuracy/{split}" in setting.scores]
        if measured and split in splits:
            break
    else:
        return Answer("No run has finished, so there is nothing to say yet.", [], [])
    best = max(measured, key=lambda setting: setting.scores[f"accuracy/{split}"].mean)
    if len(measured) == 1:
        more, how, certain = [], [_interval_note(best.scores[f"accuracy/{split}"])], False
        sentence = _single(best, split)
    else:
        sentence, more, how, certain = _compared(results, measured, best, split)
        more += _widest_split(results, settings, splits, split)
    more += [_reference_points(best, split), _accuracy_gap(results)]
    return Answer(sentence, [line for line in more if line], how, best if certain else None)


def number(score: Score) -> str:
    """`0.97 [0.95, 0.98]`, or the mean alone where there is no interval."""
    interval = "" if math.isnan(score.low) else f" [{plain(score.low)}, {plain(score.high)}]"
    return plain(score.mean) + interval


def plain(value: float, sign: str = "") -> str:
    """Two decimals, and no minus before zero."""
    return f"{round(value, 2) + 0.0:{sign}.2f}"


def difference(results: Results, settings: list[Setting], best: Setting, other: Setting, metric: str) -> Difference:
    """`best` minus `other`. Both were picked from all settings, which Tukey's interval accounts for.

    Tukey-Kramer's simultaneous intervals of all differences between k means (NIST/SEMATECH e-Handbook, 7.4.7.1):
    q(0.95; k, N - k) sqrt(s^2 / 2 (1/n_a + 1/n_b)), s^2 the variance within settings, taken to be the same in all. For
    two settings this is Student's t. From one run each: over facts, as results/compare.py does for two runs.
    """
    a, b = best.scores[metric], other.scores[metric]
    value = a.mean - b.mean
    if a.n == b.n == 1:
        return _over_facts(results, best, other, metric, value)
    scored = [setting for setting in settings if metric in setting.scores]
    runs = results.finished.set_index("id")[metric]
    groups = [runs.loc[[id for id in setting.ids if id in runs.index]].dropna() for setting in scored]
    freedom = sum(map(len, groups)) - len(groups)
    variance = sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom
    half = _studentized_range(len(groups), freedom) * math.sqrt(variance / 2 * (1 / a.n + 1 / b.n))
    how = "Student's t" if len(groups) == 2 else f"Tukey's for all pairs of {len(groups)} settings"
    return Difference(value, value - half, value + half, f"{how}, seeds taken to scatter alike in each")


@lru_cache(maxsize=64)  # slow to compute, and needed for every setting
def _studentized_range(groups: int, freedom: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(0.95, groups, freedom))


def _over_facts(results: Results, best: Setting, other: Setting, metric: str, value: float) -> Difference:
    """The difference of two single runs on the same facts; without an interval if their facts differ."""
    finished = set(results.finished["id"])
    best_id, other_id = (next(id for id in setting.ids if id in finished) for setting in (best, other))
    no_interval = Difference(value, math.nan, math.nan, "none, since the two runs were scored on different facts")
    try:
        rows = paired(side(results, other_id), side(results, best_id))
    except ConfigError:
        return no_interval
    of_split = rows.loc[rows["split"] == metric.rpartition("/")[2]].to_dict("records")
    row = of_split[0] if of_split else {"low": math.nan}
    if math.isnan(row["low"]) or not row["pairs"] == row["of_a"] == row["of_b"]:
        return no_interval
    how = "bootstrap over facts; one run each, so another seed may differ"
    return Difference(value, float(row["low"]), float(row["high"]), how)


def _single(setting: Setting, split: str) -> str:
    score = setting.scores[f"accuracy/{split}"]
    subject = f"Over {score.n} runs the trained model ranks" if score.n > 1 else "The trained model ranks"
    return f"{subject} {number(score)} of the {SPLITS[split]} right."


def _compared(
    results: Results, measured: list[Setting], best: Setting, split: str
) -> tuple[str, list[str], list[str], bool]:
    """Sentence, caveats and methods for several settings; and whether best and worst differ by more than chance."""
    metric = f"accuracy/{split}"
    worst = min(measured, key=lambda setting: setting.scores[metric].mean)
    gap = difference(results, measured, best, worst, metric)
    best_mean = best.scores[metric].mean
    first = [s.label for s in measured if math.isclose(s.scores[metric].mean, best_mean, abs_tol=1e-9)]
    sentence = _headline(measured, first, best, worst, gap, split)
    more = [_against_default(results, measured, best, worst, metric)]
    if gap.certain and len(measured) > 2 and best.scores[metric].n > 1:
        more.append(_close_to_best(results, measured, best, first, metric))
    more.append(_seed_note(measured, metric))
    methods = dict.fromkeys(_interval_note(setting.scores[metric]) for setting in measured)
    return sentence, more, [*methods, f"Interval of the difference: {gap.how}."], gap.certain


def _headline(
    measured: list[Setting], first: list[str], best: Setting, worst: Setting, gap: Difference, split: str
) -> str:
    """The best and the worst setting on a split, or that there is no difference larger than chance."""
    top, bottom = (number(setting.scores[f"accuracy/{split}"]) for setting in (best, worst))
    names = _listed(first, NAMED_BEST if len(best.values) < 3 else 1)
    if not math.isnan(gap.low) and not gap.certain:
        return (
            f"No difference larger than chance between {len(measured)} settings on {SPLITS[split]}: from "
            f"{bottom} ({worst.label}) to {top} ({_and(names)}), apart by {_gap(gap)}."
        )
    does = "does best" if len(first) == 1 else "do best"
    other = f"the worst of {len(measured)} settings" if len(measured) > 2 else "the other setting"
    return (
        f"{_and(names)} {does} on {SPLITS[split]}: {top}, that is {_gap(gap)} over {worst.label}, {other} ({bottom})."
    )


def _against_default(results: Results, measured: list[Setting], best: Setting, worst: Setting, metric: str) -> str:
    """The default setting and its distance from the best; empty if it is the best, the worst, or not among them."""
    default = flat(to_dict(validate(Config())))
    for setting in measured:
        if all(shown(default.get(key)) == shown(value) for key, value in setting.values.items()):
            break
    else:
        return ""
    if setting in (best, worst):
        return ""
    gap = difference(results, measured, best, setting, metric)
    chance = "" if gap.certain or math.isnan(gap.low) else ", no more than chance"
    return (
        f"The default, {setting.label}, reaches {number(setting.scores[metric])}: the best is {_gap(gap)} "
        f"against it{chance}."
    )


def _close_to_best(results: Results, measured: list[Setting], best: Setting, first: list[str], metric: str) -> str:
    """The settings that differ from the best by no more than chance."""
    others = [setting for setting in measured if setting.label not in first]
    close = [s.label for s in others if not difference(results, measured, best, s, metric).certain]
    return f"Not told apart from the best: {'; '.join(_listed(close, NAMED_CLOSE))}." if close else ""


def _seed_note(measured: list[Setting], metric: str) -> str:
    """How many settings have a single run, so that the spread over seeds is unknown; empty if none."""
    single = sum(setting.scores[metric].n == 1 for setting in measured)
    if not single:
        return ""
    some = f"Of {len(measured)} settings {single} {'have' if single > 1 else 'has'}"
    subject = "Each setting has" if single == len(measured) else some
    return f"{subject} one run only, so the spread over seeds is unknown."


def _widest_split(results: Results, settings: list[Setting], splits: list[str], reported: str) -> list[str]:
    """The split on which settings differ more than on the reported one, if by more than chance."""
    spreads: dict[str, float] = {}
    ends: dict[str, tuple[Setting, Setting]] = {}  # split -> best and worst setting
    for split in splits:
        means = {s: s.scores[f"accuracy/{split}"].mean for s in settings if f"accuracy/{split}" in s.scores}
        if len(means) > 1:
            ends[split] = max(means, key=lambda s: means[s]), min(means, key=lambda s: means[s])
            spreads[split] = means[ends[split][0]] - means[ends[split][1]]
    widest = max(spreads, key=lambda split: spreads[split], default=reported)
    if widest == reported or spreads[widest] < spreads.get(reported, 0) + 0.05:
        return []
    metric, (best, worst) = f"accuracy/{widest}", ends[widest]
    gap = difference(results, settings, best, worst, metric)
    if not gap.certain:
        return []
    return [
        f"They differ most on {SPLITS.get(widest, widest)}: {best.label} {number(best.scores[metric])}, "
        f"{worst.label} {number(worst.scores[metric])}, apart by {_gap(gap)}."
    ]


def _reference_points(setting: Setting, split: str) -> str:
    """The base model, the best shallow baseline and the logical closure on the same facts."""
    rules: dict[str, float | None] = {
        metric.split("/")[1]: score.mean
        for metric, score in setting.scores.items()
        if metric.startswith("baseline/") and metric.endswith(f"/{split}")
    }
    base, rule = setting.scores.get(f"base/accuracy/{split}"), best_baseline(rules)
    closure = setting.scores.get(f"baseline/implied/{split}")
    parts = []
    if base:
        parts.append(f"the base model ranks {plain(base.mean)} right")
    if rule:
        parts.append(f"the best shallow baseline ({rule[0].replace('_', ' ')}) {plain(rule[1])}")
    if closure:
        parts.append(f"the logical closure of the training facts {plain(closure.mean)}")
    subject = f"On the same facts as {setting.label}" if setting.values else "On the same facts"
    return f"{subject} {_and(parts)}." if parts else ""


def _accuracy_gap(results: Results) -> str:
    """How many runs have a reward accuracy far above their accuracy (D6); empty if none."""
    runs = results.finished
    if not {"reward_accuracy/train", "accuracy/train"} <= {*runs.columns}:
        return ""
    logged = runs.loc[:, "reward_accuracy/train"]
    as_trained = f"reward_accuracy/{AS_TRAINED}"
    if as_trained in runs:  # what training saw of runs with data.boundary=none
        logged = runs.loc[:, as_trained].fillna(logged)
    affected = sum(logged - runs.loc[:, "accuracy/train"] > ACCURACY_GAP)
    if not affected:
        return ""
    return (
        f"In {affected} of {len(runs)} runs reward accuracy on the training facts, which TRL logs, is more than "
        f"{ACCURACY_GAP} above accuracy: training moved the log-probs the right way, and the model still does not rank "
        "the facts first."
    )


def _gap(gap: Difference) -> str:
    interval = "" if math.isnan(gap.low) else f" [{plain(gap.low, '+')}, {plain(gap.high, '+')}]"
    return plain(gap.value, "+") + interval


def _interval_note(score: Score) -> str:
    if score.over == WILSON:
        return "Intervals of settings with one run: Wilson's, over its facts; they do not cover other seeds."
    return "Intervals of means: 95 %, Student's t over a setting's runs, cut off at 0 and 1; they cover other seeds."


def _listed(labels: list[str], most: int) -> list[str]:
    """The first `most` labels, and `3 more` for the rest."""
    rest = len(labels) - most
    return [*labels[:most], f"{rest} more"] if rest > 0 else labels


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
