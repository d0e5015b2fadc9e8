"""The answer of a sweep in sentences; each number in them comes with its interval."""

import math
from dataclasses import dataclass

from factdpo.config.overrides import flat
from factdpo.config.schema import Config, to_dict
from factdpo.config.validate import validate
from factdpo.console import plural
from factdpo.report.difference import difference
from factdpo.report.ranking import Ranking, and_list, gap_text, listed, number, rank
from factdpo.report.settings import Score, Setting
from factdpo.results.best import FLATTERED, choosing, is_test, told
from factdpo.results.intervals import plain
from factdpo.results.means import BOTH, COUNTS, OVER_FACTS, OVER_SEEDS
from factdpo.results.tables import Results, shown, words
from factdpo.store.result import ACCURACY_GAP, AS_TRAINED, best_baseline
from factdpo.store.sweep_file import Metric

NAMED_CLOSE = 6  # settings that cannot be told from the best and are listed by name


@dataclass(frozen=True)
class Answer:
    """The answer in one sentence or a few, the caveats that belong to it, and the methods of the intervals."""

    sentence: str
    more: list[str]
    how: list[str]
    metric: str = ""  # by which settings are ranked
    lower_is_better: bool = False
    best: Setting | None = None  # the best setting, if its lead is larger than chance


def answer(results: Results, settings: list[Setting], splits: list[str], asked: list[Metric]) -> Answer:
    """What the finished runs show about what the sweep asks; without a question about held-out facts."""
    measured = {name for setting in settings for name in setting.scores}
    asked = [metric for metric in asked if metric.name in measured]
    metrics = choosing(measured, results.accuracy, asked)
    if not metrics:
        return Answer("No run has finished, so there is nothing to say yet.", [], [])
    first = metrics[0]
    ranking = rank(results, settings, first)
    if ranking is None:
        setting = next(setting for setting in settings if first.name in setting.scores)
        more = [_reference_points(setting, first.name), _accuracy_gap(results)]
        how = [_interval_note(setting.scores[first.name])]
        return Answer(_single(setting, first.name), [line for line in more if line], how, *first)
    rankings = [other for metric in metrics[1:] if (other := rank(results, settings, metric))]
    others = [other for other in rankings if asked or _disagrees(other, ranking)]
    more = _caveats(results, ranking)
    more += _widest_split(results, settings, splits, {r.metric.name for r in (ranking, *others)})
    more += [_reference_points(ranking.best, first.name), _accuracy_gap(results)]
    methods = [_interval_note(s.scores[r.metric.name]) for r in (ranking, *others) for s in r.measured]
    methods += [f"Interval of a difference: {r.gap.how}." for r in (ranking, *others)]
    return Answer(
        " ".join(r.sentence() for r in (ranking, *others)), [line for line in more if line],
        [line for line in dict.fromkeys(methods) if line], *first, ranking.best if ranking.gap.certain else None,
    )  # fmt: skip


def _disagrees(other: Ranking, ranking: Ranking) -> bool:
    """Whether another number tells settings apart where the first does not, or puts another one first."""
    return other.gap.certain and not (ranking.told_apart and {*other.first} & {*ranking.first})


def _single(setting: Setting, metric: str) -> str:
    score = setting.scores[metric]
    if not metric.startswith("accuracy"):
        return f"{words(metric)}: {number(score)}, {plural(score.n, 'run')}."
    subject = f"Over {score.n} runs the trained model ranks" if score.n > 1 else "The trained model ranks"
    return f"{subject} {number(score)} of the {words(metric)} right."


def _caveats(results: Results, ranking: Ranking) -> list[str]:
    """How the default does, which settings are as good as the best, and what speaks against the choice of it."""
    name = ranking.metric.name
    lines = [_against_default(results, ranking)]
    if ranking.gap.certain and len(ranking.measured) > 2 and ranking.best.scores[name].n > 1:
        lines.append(_close_to_best(results, ranking))
    if ranking.gap.certain and is_test(name):
        lines.append(f"The best was {FLATTERED}.")
    if name.startswith("accuracy") and (tests := told(name, ranking.best.scores)):
        scores = and_list([f"{number(ranking.best.scores[test])} of the {words(test)}" for test in tests])
        lines.append(f"{ranking.best.label}, chosen on the validation facts, ranks {scores} right.")
    return [*lines, _seed_note(ranking.measured, name)]


def _against_default(results: Results, ranking: Ranking) -> str:
    """The default setting and its distance from the best; empty if it is the best, the worst, or not among them."""
    default = flat(to_dict(validate(Config())))
    for setting in ranking.measured:
        if all(shown(default.get(key)) == shown(value) for key, value in setting.values.items()):
            break
    else:
        return ""
    if setting in (ranking.best, ranking.worst):
        return ""
    gap = difference(results, ranking.measured, ranking.best, setting, ranking.metric.name)
    chance = "" if gap.certain or math.isnan(gap.low) else ", no more than chance"
    reaches = f"The default, {setting.label}, reaches {ranking.score(setting)}"
    return f"{reaches}: the best is {gap_text(gap)} against it{chance}."


def _close_to_best(results: Results, ranking: Ranking) -> str:
    """The settings that differ from the best by no more than chance."""
    others = [setting for setting in ranking.measured if setting not in ranking.first]
    gaps = [difference(results, ranking.measured, ranking.best, other, ranking.metric.name) for other in others]
    close = [other.label for other, gap in zip(others, gaps, strict=True) if not gap.certain]
    return f"Not told apart from the best: {'; '.join(listed(close, NAMED_CLOSE))}." if close else ""


def _seed_note(measured: list[Setting], metric: str) -> str:
    """How many settings have a single run, so that the spread over seeds is unknown; empty if none."""
    single = sum(setting.scores[metric].n == 1 for setting in measured)
    if not single:
        return ""
    some = f"Of {len(measured)} settings {single} {'have' if single > 1 else 'has'}"
    subject = "Each setting has" if single == len(measured) else some
    return f"{subject} one run only, so the spread over seeds is unknown."


def _widest_split(results: Results, settings: list[Setting], splits: list[str], named: set[str]) -> list[str]:
    """The split on which settings differ more than on those that were named, if by more than chance."""
    names = [f"{results.accuracy}/{split}" for split in splits]
    rankings = {name: ranking for name in names if (ranking := rank(results, settings, Metric(name)))}
    widest = max(rankings.values(), key=lambda ranking: ranking.gap.value, default=None)
    most = max((rankings[name].gap.value for name in named & rankings.keys()), default=0.0)
    if widest is None or widest.metric.name in named or widest.gap.value < most + 0.05 or not widest.gap.certain:
        return []
    return [
        f"They differ most on {words(widest.metric.name)}: {widest.best.label} {widest.score(widest.best)}, "
        f"{widest.worst.label} {widest.score(widest.worst)}, apart by {gap_text(widest.gap)}."
    ]


def _reference_points(setting: Setting, metric: str) -> str:
    """The base model, the best shallow baseline and the logical closure on the same facts."""
    if not metric.startswith("accuracy"):
        return ""
    split = metric.partition("/")[2]
    rules: dict[str, float | None] = {
        metric.split("/")[1]: score.mean
        for metric, score in setting.scores.items()
        if metric.startswith("baseline/") and metric.endswith(f"/{split}")
    }
    base, rule = setting.scores.get(f"base/{metric}"), best_baseline(rules)
    closure = setting.scores.get(f"baseline/implied/{split}")
    parts = []
    if base:
        parts.append(f"the base model ranks {plain(base.mean)} right")
    if rule:
        parts.append(f"the best shallow baseline ({rule[0].replace('_', ' ')}) {plain(rule[1])}")
    if closure:
        parts.append(f"the logical closure of the training facts {plain(closure.mean)}")
    subject = f"On the same facts as {setting.label}" if setting.values else "On the same facts"
    return f"{subject} {and_list(parts)}." if parts else ""


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


def _interval_note(score: Score) -> str:
    return {
        OVER_FACTS: "Intervals of settings with one run: 95 %, Wilson's, for other facts but no other seeds.",
        BOTH: "Intervals of means: 95 %, for other facts and other seeds.",
        COUNTS: (
            "Intervals of means: 95 %, for other facts and other seeds; from counts alone, as if all runs gave the "
            "same answers, which is the widest."
        ),
        OVER_SEEDS: "Intervals of numbers that are no shares: 95 %, Student's t over runs, for other seeds.",
    }.get(score.over, "")
