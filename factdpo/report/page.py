"""Renders the report as one HTML file that contains its style, scripts, plotly.js and data."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from factdpo.report.beliefs import NAMED
from factdpo.report.contents import SPENT, Contents, Run
from factdpo.report.ranking import number
from factdpo.report.settings import Score, Setting
from factdpo.results.best import RETENTION
from factdpo.results.curves import short
from factdpo.results.intervals import plain
from factdpo.results.means import SHARES
from factdpo.results.tables import SPLITS, or_none, shown, words

HERE = Path(__file__).parent
SCRIPTS = ("page.js", "table.js", "charts.js", "graph.js")
MOST_SETTINGS = 40  # rows of a table of settings; of more, the best and the worst on held-out facts
WORST = 10  # of these
TRACK = 96  # width of the small scale in a table's cell, in pixels

# Metrics that a chart can show, with the title of its axis.
CHARTED = {
    "accuracy": "accuracy",
    "accuracy_per_token": "accuracy per token",
    "balanced_accuracy": "balanced accuracy",
    "greedy_accuracy": "greedy accuracy (exact match)",
    "reward_accuracy": "reward accuracy",
    "margin_nats": "margin, nats",
    "chosen_logp_nats": "log p(fact), nats",
    "rejected_logp_nats": "log p(fiction), nats",
    "p_other": "probability of neither answer",
}
ACROSS = {  # that a chart can show, and no split has
    RETENTION: "retention, nats per token",
    "across/symmetry_test": "order consistency, held-out facts",
    "across/symmetry_train": "order consistency, training facts",
}
BASELINES = {
    "chance": "chance", "majority": "majority", "shorter": "shorter answer", "answer_counts": "answer counts",
    "first_name": "first name", "second_name": "second name", "additive": "additive", "bag_of_names": "bag of names",
    "implied": "logical closure",
}  # fmt: skip
TOLD = {  # what each rule does
    "chance": "Chance is a guess.",
    "majority": "Majority predicts the answer that is true more often in training.",
    "shorter": "Shorter answer is the one with fewer tokens.",
    "answer_counts": "Answer counts is the one that was chosen more often than rejected.",
    "first_name": "First name predicts from that name alone,",
    "second_name": "second name from that;",
    "additive": "additive sums one weight for each,",
    "bag_of_names": "bag of names one weight per name wherever it stands.",
    "implied": "The logical closure is no shallow baseline: it is what the training facts prove.",
}


@dataclass(frozen=True)
class Column:
    """A column of the table of runs."""

    key: str
    title: str
    numeric: bool
    hidden: bool = False  # until the reader selects it


def render(contents: Contents) -> str:
    """The whole page; text from data is escaped everywhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "plain": plain, "score": number, "split": _split, "words": words, "shown": shown, "short": _short_key,
        "unbroken": _unbroken, "breakable": _breakable,
    }  # fmt: skip
    environment.globals |= {
        "scale_at": partial(_scale, _span(contents)), "isnan": math.isnan, "BASELINES": BASELINES, "TRACK": TRACK,
        "NAMED": NAMED, "TOLD": TOLD,
    }  # fmt: skip
    tabled, left_out = _tabled(contents)
    return environment.get_template("page.html.j2").render(
        c=contents, settings=tabled, settings_left_out=left_out, columns=_columns(contents), cells=_cells,
        best=contents.answer.best, style=Markup(_read("style.css")), plotly=Markup(get_plotlyjs()),
        rules=[rule for rule in BASELINES if any(m.startswith(f"baseline/{rule}/") for m in contents.metrics)],
        span=_span(contents), has=_has(contents),
        scripts=Markup("\n".join(map(_read, SCRIPTS))), data=Markup(embedded(_data(contents))),
    )  # fmt: skip


def embedded(data: Any) -> str:
    """JSON that is safe inside a script element, whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_jsonable)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _data(contents: Contents) -> dict[str, Any]:
    """The data that the scripts draw."""
    return {
        "title": contents.title,
        "splits": [[split, _split(split)] for split in contents.splits],
        "charted": CHARTED,
        "across": {metric: title for metric, title in ACROSS.items() if metric in contents.metrics},
        "asked": contents.answer.metric,  # that charts show at first
        "lower": contents.answer.lower_is_better,
        "retention": RETENTION,
        "baselines": BASELINES,
        "trials": contents.drawn,
        "importance": contents.importance,
        "shares": sorted(SHARES),
        "axes": [asdict(axis) | {"short": _short_key(axis.key)} for axis in contents.axes],
        "settings": [
            {"label": _short_label(setting), "values": [_axis_value(value) for value in setting.values.values()]}
            for setting in contents.settings
        ],
        "means": {
            metric: [_numbers(setting.scores.get(metric)) for setting in contents.settings]
            for metric in contents.metrics
        },
        "runs": [_run_data(run) for run in contents.runs],
        "metrics": {metric: [run.metrics[metric] for run in contents.runs] for metric in contents.metrics},
        "graph": contents.graph,
        "differing": contents.differing,
        "chosen": _chosen(contents),
        "few": [contents.settings.index(setting) for setting in _tabled(contents)[0]],
    }


def _run_data(run: Run) -> dict[str, Any]:
    return {"id": run.id, "label": run.label, "state": run.state, "setting": run.setting, **run.detail}


def _chosen(contents: Contents) -> list[int]:
    """Indices of the runs selected at first: one each of the best, the middle and the worst setting."""
    ranked = _ranked(contents)
    picked = list(dict.fromkeys([*ranked[:1], *ranked[len(ranked) // 2 :][:1], *ranked[-1:]]))
    index = {run.id: number for number, run in enumerate(contents.runs) if run.detail}
    firsts = [next((index[id] for id in setting.ids if id in index), None) for setting in picked]
    return [number for number in firsts if number is not None]


def _ranked(contents: Contents) -> list[Setting]:
    """The settings that have scores, the best by the answer's number first."""
    metric, sign = contents.answer.metric, 1 if contents.answer.lower_is_better else -1
    scored = [setting for setting in contents.settings if metric in setting.scores]
    return sorted(scored, key=lambda setting: sign * setting.scores[metric].mean)


def _tabled(contents: Contents) -> tuple[list[Setting], int]:
    """The settings that a table shows, and how many it leaves out."""
    if len(contents.settings) <= MOST_SETTINGS:
        return contents.settings, 0
    ranked = _ranked(contents)
    ranked += [setting for setting in contents.settings if setting not in ranked]
    tabled = [*ranked[: MOST_SETTINGS - WORST], *ranked[-WORST:]]
    return tabled, len(contents.settings) - len(tabled)


def _columns(contents: Contents) -> list[Column]:
    keys = contents.results.keys
    all_finished = len(contents.states) == 1 and "FINISHED" in contents.states  # which the top of the page shows
    columns = [Column("run", "run", numeric=False), Column("state", "state", numeric=False, hidden=all_finished)]
    values = {key: [or_none(run.values[key]) for run in contents.runs] for key in keys}
    columns += [Column(key, _short_key(key), all(map(_is_number, values[key]))) for key in keys]
    metrics = [(name, f"accuracy, {words(name)}", False) for name in contents.accuracies]
    for kind in ("reward_accuracy", "greedy_accuracy", "margin_nats", "p_other"):
        metrics += [
            (f"{kind}/{split}", f"{CHARTED[kind].replace(' (exact match)', '')}, {_split(split)}", True)
            for split in ("train", "test")
        ]
    metrics += [
        ("across/symmetry_test", "order consistency, held-out facts", True),
        ("across/retention_nats_per_token", "retention, nats per token", False),
        *((name, words(name), True) for name in SPENT),
    ]
    measured = {name for run in contents.runs for name, value in run.metrics.items() if value is not None}
    columns += [Column(key, title, True, hidden) for key, title, hidden in metrics if key in measured]
    return [*columns, Column("id", "id", numeric=False, hidden=True)]


def _cells(run: Run, columns: Iterable[Column]) -> list[tuple[Column, str, str]]:
    """(column, text, sort key) of each cell in a run's row."""
    cells = []
    for column in columns:
        if column.key in ("run", "state", "id"):
            text = {"run": run.label, "state": run.state, "id": run.id}[column.key]
            cells.append((column, text, text))
        elif column.key in run.values:
            value = or_none(run.values[column.key])
            cells.append((column, shown(value) if value is not None else "", "" if value is None else str(value)))
        else:
            value = run.metrics[column.key]
            text = "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
            cells.append((column, text, "" if value is None else repr(value)))
    return cells


def _span(contents: Contents) -> tuple[float, float]:
    """The ends of the small scales: all accuracies, their intervals and the base's, in tenths."""
    scores = [setting.scores[m] for setting in contents.settings for m in contents.accuracies if m in setting.scores]
    bases = [setting.scores.get(f"base/{m}") for setting in contents.settings for m in contents.accuracies]
    ends = [end for score in scores for end in (score.mean, score.low, score.high)]
    ends = [end for end in [*ends, *(base.mean for base in bases if base)] if not math.isnan(end)]
    if not ends:
        return 0.0, 1.0
    return max(0.0, math.floor(min(ends) * 10) / 10), min(1.0, math.ceil(max(ends) * 10) / 10 or 0.1)


def _has(contents: Contents) -> dict[str, bool]:
    """Which parts the data has something for; the others are left out of the page."""
    details = [run.detail for run in contents.runs if run.detail]
    drawn = [detail["curves"] for detail in details if detail.get("curves")]
    measured = {name for run in contents.runs for name, value in run.metrics.items() if value is not None}
    return {
        "retention": RETENTION in measured,
        "rewards": {"reward_accuracy/train", "accuracy/train"} <= measured,
        "flips": any(name.startswith(("wrong_to_right/", "right_to_wrong/")) for name in measured),
        "curves": bool(drawn),
        "scored": any(curve["steps"] for curve in drawn),
        "graph": bool(contents.graph["names"]),
        "generations": any(detail.get("generations") for detail in details),
    }


def _scale(span: tuple[float, float], score: Score) -> dict[str, float]:
    """The positions of a score and its interval on a scale between two ends, in pixels."""
    low, high = span
    at = {"mean": score.mean, "low": score.low, "high": score.high}
    part = {name: min(max((value - low) / (high - low), 0), 1) for name, value in at.items()}
    return {name: math.nan if math.isnan(at[name]) else round(3 + (TRACK - 6) * part[name], 1) for name in at}


def _numbers(score: Score | None) -> list[float | int | None] | None:
    return score and [score.n, short(score.mean), short(score.low), short(score.high)]


def _unbroken(text: str) -> str:
    """Keeps an interval on one line."""
    return re.sub(r" \[(\S+), (\S+)\]", "\u00a0[\\1,\u00a0\\2]", text)


def _breakable(key: str) -> Markup:
    """Allows a long key to wrap after an underscore."""
    return escape(key).replace("_", Markup("_<wbr>"))


def _split(split: str) -> str:
    return SPLITS.get(split, split)


def _short_key(key: str) -> str:
    return key.removesuffix(".name").rpartition(".")[2]


def _short_label(setting: Setting) -> str:
    return " ".join(f"{_short_key(key)}={shown(value)}" for key, value in setting.values.items()) or setting.label


def _axis_value(value: Any) -> Any:
    return value if _is_number(value) else shown(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _jsonable(value: Any) -> Any:
    """numpy's numbers as Python's; TypeError for anything else, which is a bug."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} in the page's data")


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
