"""The contents of a report as plain data, read from the folders of runs."""

import json
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from factdpo.config.overrides import command, decides
from factdpo.config.schema import ConfigError, DataConfig
from factdpo.config.validate import from_dict
from factdpo.console import first_line, plural
from factdpo.report.answer import Answer, answer
from factdpo.report.beliefs import Beliefs, Hard
from factdpo.report.settings import Axis, Setting, axes, has_config, settings
from factdpo.results import curves
from factdpo.results.curves import short
from factdpo.results.tables import Results, load, shown
from factdpo.store import sweep_file
from factdpo.store.history import HISTORY
from factdpo.store.index import WITHOUT_RESULT
from factdpo.store.result import EVALUATION, TRAINING, read_record
from factdpo.store.shapes import DamagedFile

DETAILED = 200  # runs with curves, graph and generations in the page; if there are more, each setting's in turn
PER_SPLIT = (
    "accuracy", "balanced_accuracy", "greedy_accuracy", "reward_accuracy", "margin_nats", "chosen_logp_nats",
    "rejected_logp_nats", "p_other", "wrong_to_right", "right_to_wrong", "n",
)  # fmt: skip
ACROSS = ("across/symmetry_train", "across/symmetry_test", "across/retention_nats_per_token")
SPENT = ("training/steps", "training/peak_gib", "timing/total_seconds")
STUDY = "study.journal"  # a search's, by its trials
LONGEST = 1000  # characters of a label or an error: a crafted record may have megabytes
ITEMS, GENERATIONS = "items.parquet", "generations.json"
NOT_SHOWN = {"label", "out", "sweep"}  # keys that only name a run or place it


@dataclass
class Run:
    """One row of the table of runs."""

    id: str
    label: str
    state: str
    error: str  # its first line
    setting: int | None  # index into the settings
    values: dict[str, Any]  # the keys that differ
    metrics: dict[str, float | None]
    command: str  # that repeats it; empty for a config that this version cannot read
    detail: dict[str, Any] = field(default_factory=dict)  # graph, curves and generations, if shown in detail


@dataclass
class Contents:
    """The whole report."""

    folder: Path
    title: str
    question: str | None
    made: str  # when, UTC
    answer: Answer
    results: Results
    splits: list[str]
    accuracies: list[str]  # metrics: the accuracy on each split, and per token where that is another
    settings: list[Setting]
    axes: list[Axis]
    metrics: list[str]
    runs: list[Run]
    states: dict[str, int]
    never_begun: list[str]  # labels of runs in sweep.json that have no folder
    hard: dict[str, Hard]
    graph: dict[str, Any]
    differing: dict[str, list[str | None]]  # config key -> its value in each run
    shared: dict[str, str]
    commands: list[dict[str, Any]]  # of the sweep, as sweep.json has them
    hardware: list[tuple[int, dict[str, Any]]]  # number of runs on it, and what it is
    versions: list[tuple[int, dict[str, Any]]]
    warnings: list[tuple[int, str]]  # number of runs that have it, and its text
    left_out: list[str]  # sentences about files and runs that are not shown
    drawn: list[int] = field(default_factory=list)  # indices of the settings of a search, in the order of its trials
    importance: dict[str, float] = field(default_factory=dict)  # of a search: key -> its share, as its sweep.json says


def gather(folder: Path, conf_folders: list[Path]) -> Contents:
    """Read everything below a sweep's or a run's folder; ConfigError if no run is there."""
    results = _in_order(load(folder))
    left_out: list[str] = []
    sweep = _sweep(folder, left_out)
    splits, asked = results.splits_scored, sweep_file.metrics_asked(sweep)
    metrics = _metrics(results, splits, [metric.name for metric in asked])
    compared = settings(results, metrics)
    index = {id: number for number, setting in enumerate(compared) for id in setting.ids}
    rows = results.table.to_dict("records")
    runs = [_run(row, index.get(row["id"]), results.keys, metrics) for row in rows]
    records = _records(results, runs)
    _tell_apart(runs)
    for run in runs:
        if run.id in records:
            run.command = _command(records[run.id], conf_folders)
    beliefs = _details(results, runs, records, left_out)
    return Contents(
        folder=folder,
        title=str(sweep.get("name") or (runs[0].label if len(runs) == 1 else folder.resolve().name)),
        question=sweep.get("question"),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        answer=answer(results, _trained(compared), splits, asked), results=results,
        splits=splits, accuracies=results.default_metrics, settings=compared, axes=axes(compared, _by_ratio(sweep)),
        metrics=metrics, runs=runs,
        states=dict(Counter(run.state for run in runs).most_common()),
        never_begun=_never_begun(sweep, runs),
        hard={split: beliefs.hard(split) for split in splits if any(s == split for s, _ in beliefs.tallies)},
        graph=beliefs.page(_data(records)),
        differing=_differing(results),
        shared={key: shown(value) for key, value in results.shared.items() if decides(key)},
        commands=sweep.get("commands") or [],
        hardware=_counted(records, "hardware"), versions=_counted(records, "versions"),
        warnings=_warnings(results), left_out=left_out,
        drawn=_trials(folder, sweep, index), importance=sweep.get("importance") or {},
    )  # fmt: skip


def _trained(compared: list[Setting]) -> list[Setting]:
    """The settings that were trained, where evaluations stand beside them: these are never the best."""
    return [setting for setting in compared if setting.values.get("kind") != EVALUATION]


def _sweep(folder: Path, left_out: list[str]) -> dict[str, Any]:
    try:
        return sweep_file.read(folder) or {}
    except DamagedFile as error:
        left_out.append(str(error))
        return {}


def _metrics(results: Results, splits: list[str], asked: list[str]) -> list[str]:
    """The metrics that the page shows, of those that any run has."""
    wanted = [f"{metric}/{split}" for split in splits for metric in PER_SPLIT]
    wanted += [f"{prefix}{name}" for name in results.default_metrics for prefix in ("", "base/")]
    wanted += [f"base/{metric}/{split}" for split in splits for metric in curves.METRICS]  # where curves begin
    wanted += [metric for metric in results.metrics if metric.startswith("baseline/")]
    wanted += [name for metric in [*ACROSS, *asked] for name in (metric, f"base/{metric}")]
    return [metric for metric in dict.fromkeys(wanted) if metric in results.metrics]


def _trials(folder: Path, sweep: dict[str, Any], settings: dict[str, int]) -> list[int]:
    """The settings of a search (id of a run -> setting) in the order in which they were tried; [] for a grid."""
    if not (folder / STUDY).is_file():
        return []
    return list(dict.fromkeys(settings[id] for id in sweep.get("runs") or {} if id in settings))


def _by_ratio(sweep: dict[str, Any]) -> set[str]:
    """The keys that a search drew on a logarithmic scale: their values in sweep.json end in `, log`."""
    return {key for key, values in (sweep.get("axes") or {}).items() if any(str(v).endswith(", log") for v in values)}


def _never_begun(sweep: dict[str, Any], runs: list[Run]) -> list[str]:
    ids = {run.id for run in runs}
    planned = sweep.get("runs") or {}
    return [str(run.get("label") or run.get("folder")) for id, run in planned.items() if id not in ids]


def _differing(results: Results) -> dict[str, list[str | None]]:
    """Config key -> its value in each run, None where the config could not be read."""
    readable = has_config(results)
    return {
        key: [shown(value) if read else None for value, read in zip(column, readable, strict=True)]
        for key, column in results.table.loc[:, results.config_keys].items()
        if key not in NOT_SHOWN and not str(key).startswith("track.") and column.nunique(dropna=False) > 1
    }


def _warnings(results: Results) -> list[tuple[int, str]]:
    """The runs' warnings, the most frequent first; those that differ only in numbers are counted as one."""
    texts = results.finished["warnings"].dropna().str.split("\n").explode().tolist()
    kinds = [re.sub(r"\d+(\.\d+)?", "#", text) for text in texts]
    first: dict[str, str] = {}  # of each kind
    for kind, text in zip(kinds, texts, strict=True):
        first.setdefault(kind, text)
    return [(count, first[kind]) for kind, count in Counter(kinds).most_common()]


def _in_order(results: Results) -> Results:
    """The runs ordered by their swept keys, then seeds, then folders."""
    keys = [key for key in [*results.settings, *results.keys] if len({*map(type, results.table[key])}) == 1]
    table = results.table.sort_values(list(dict.fromkeys(keys)), kind="stable") if keys else results.table
    return Results(table.reset_index(drop=True), results.repeated)


def _run(row: dict[str, Any], setting: int | None, keys: list[str], metrics: list[str]) -> Run:
    finished = row["state"] == "FINISHED"
    label = row.get("label")
    return Run(
        id=row["id"], state=row["state"],
        label=str(label if isinstance(label, str) and label else row["name"])[:LONGEST],
        error=str(row["error"] or "").strip().split("\n")[0][:LONGEST] if not finished else "",
        setting=setting, values={key: row[key] for key in keys},
        metrics={metric: short(row.get(metric)) if finished else None for metric in [*metrics, *SPENT]},
        command="",
    )  # fmt: skip


def _tell_apart(runs: list[Run]) -> None:
    """Give runs that are called alike the values of what differs between them."""
    counts = Counter(run.label for run in runs)
    for name in [name for name, count in counts.items() if count > 1]:
        alike = [run for run in runs if run.label == name]
        differing = [key for key in alike[0].values if len({shown(run.values[key]) for run in alike}) > 1]
        for run in alike:
            values = [f"{key.removesuffix('.name').rpartition('.')[2]}={shown(run.values[key])}" for key in differing]
            run.label = " ".join([name, *values])


def _records(results: Results, runs: list[Run]) -> dict[str, dict[str, Any]]:
    """The result.json of each run that has one, by id."""
    return {
        run.id: read_record(Path(folder))
        for folder, run in zip(results.table["folder"], runs, strict=True)
        if run.state not in WITHOUT_RESULT
    }


def _command(record: dict[str, Any], conf_folders: list[Path]) -> str:
    if record.get("kind", TRAINING) != TRAINING:
        return ""  # of an evaluation, whose config trains nothing
    with suppress(ConfigError):  # another version's keys
        return command(record["config"], conf_folders)
    return ""


def _data(records: dict[str, dict[str, Any]]) -> DataConfig | None:
    """The data of the first run, which holds the camps of the names; None if this version cannot read its config."""
    with suppress(ConfigError, StopIteration):
        return from_dict(next(iter(records.values()))["config"]).data
    return None


def _details(results: Results, runs: list[Run], records: dict[str, dict[str, Any]], left_out: list[str]) -> Beliefs:
    """Read the finished runs' own files, into `run.detail` for some of them; returns the margins of all.

    Appends to `left_out` a sentence for each kind of file that could not be read.
    """
    detailed = _in_turns(runs)
    beliefs = Beliefs()
    unread: dict[str, list[str]] = {}
    for run, folder in zip(runs, map(Path, results.table["folder"]), strict=True):
        if run.state != "FINISHED":
            continue
        data = str((records[run.id].get("asked") or {}).get("data_sha256", ""))
        readers = {"graph": (ITEMS, partial(beliefs.add, run.label, folder, run.id in detailed, data))}
        if run.id in detailed:
            readers |= {"curves": (HISTORY, partial(curves.read, folder))}
            readers |= {"generations": (GENERATIONS, partial(_generations, folder))}
        contents: dict[str, Any] = dict.fromkeys(readers)
        for part, (file, read) in readers.items():
            try:
                contents[part] = read()
            except (OSError, ValueError) as error:
                reason = "not there" if isinstance(error, FileNotFoundError) else first_line(error)
                unread.setdefault(file, []).append(f"{run.label}: {reason}")
        if run.id in detailed:
            run.detail = contents
    for file, problems in unread.items():
        others = " and others" if len(problems) > 1 else ""
        left_out.append(
            f"{file} of {plural(len(problems), 'finished run')} cannot be read, so its contents are left out "
            f"({problems[0]}{others})."
        )
    finished = sum(run.state == "FINISHED" for run in runs)
    if finished > len(detailed):
        left_out.append(
            f"Curves, graphs and generations are here for {len(detailed)} of {finished} finished runs, each setting's "
            "in turn; tables, means and the counts per fact are of all runs."
        )
    return beliefs


def _in_turns(runs: list[Run]) -> set[str]:
    """Ids of at most DETAILED finished runs: the first of each setting, then the second of each, and so on."""
    turns: Counter[int | None] = Counter()
    order = []
    for run in runs:
        if run.state == "FINISHED":
            order.append((turns[run.setting], len(order), run.id))
            turns[run.setting] += 1
    return {id for _, _, id in sorted(order)[:DETAILED]}


def _generations(folder: Path) -> list[list[Any]]:
    """(split, prompt, fact, continuation by the base, by the trained model) of each row; ValueError for other JSON."""
    rows = json.loads((folder / GENERATIONS).read_text(encoding="utf-8"))
    try:
        return [[row[key] for key in ("split", "prompt", "fact", "base", "trained")] for row in rows]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a list of generations ({type(error).__name__}: {error})") from None


def _counted(records: dict[str, dict[str, Any]], key: str) -> list[tuple[int, dict[str, Any]]]:
    """The distinct values of a key of the records with the number of runs, the most frequent first."""
    counts = Counter(json.dumps(result[key]) for result in records.values() if result.get(key))
    return [(count, json.loads(value)) for value, count in counts.most_common()]
