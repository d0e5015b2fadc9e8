"""What a report says, gathered from the folders of runs: plain data, ready to be written into a page."""

import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from factdpo.config.overrides import command, decides
from factdpo.config.schema import ConfigError, DataConfig
from factdpo.config.validate import from_dict
from factdpo.report.answer import Answer, answer
from factdpo.report.beliefs import Beliefs, Hard
from factdpo.report.settings import Axis, Setting, axes, has_config, settings
from factdpo.results import curves
from factdpo.results.compare import shown
from factdpo.results.curves import short
from factdpo.results.tables import SPLITS, Results, load
from factdpo.store import sweep_file
from factdpo.store.history import HISTORY
from factdpo.store.index import WITHOUT_RESULT

DETAILED = 200  # runs with curves, graph and generations in the page; of more the settings take turns
PER_SPLIT = (
    "accuracy", "balanced_accuracy", "greedy_accuracy", "reward_accuracy", "margin_nats", "chosen_logp_nats",
    "rejected_logp_nats", "p_other", "wrong_to_right", "right_to_wrong", "n",
)  # fmt: skip
ACROSS = ("across/symmetry_train", "across/symmetry_test", "across/retention_nats_per_token")
ITEMS, SAID = "items.parquet", "generations.json"
NOT_SHOWN = {"label", "out", "sweep"}  # keys that say where a run lies, which is no difference between two


@dataclass
class Run:
    """One row of the table of runs."""

    id: str
    label: str
    state: str
    error: str  # its first line
    setting: int | None  # its place among the settings
    values: dict[str, Any]  # the keys that differ
    metrics: dict[str, float | None]
    command: str  # that asks for it again; empty if that cannot be told
    detail: dict[str, Any] = field(default_factory=dict)  # its graph, curves and generations, if they are in the page


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
    settings: list[Setting]
    axes: list[Axis]
    metrics: list[str]
    runs: list[Run]
    states: dict[str, int]
    never_begun: list[str]  # labels of runs that sweep.json knows and no folder holds
    hard: dict[str, Hard]
    graph: dict[str, Any]
    differing: dict[str, list[str | None]]  # config key -> its value in each run
    shared: dict[str, str]
    commands: list[dict[str, Any]]  # of the sweep, as sweep.json has them
    hardware: list[tuple[int, dict[str, Any]]]  # runs on it, and what it is
    versions: list[tuple[int, dict[str, Any]]]
    warnings: list[tuple[int, str]]  # runs that have it, and what it says
    left_out: list[str]  # sentences


def gather(folder: Path, conf_folders: list[Path]) -> Contents:
    """Read everything below a sweep's or a run's folder; ConfigError if no run is there."""
    results = load(folder)
    asked = sweep_file.read(folder) or {}
    results = _in_order(results)
    splits = [split for split in SPLITS if f"accuracy/{split}" in results.metrics]
    splits += [m.split("/")[1] for m in results.metrics if m.startswith("accuracy/") and m.split("/")[1] not in SPLITS]
    wanted = [f"{metric}/{split}" for split in splits for metric in PER_SPLIT]
    wanted += [f"base/accuracy/{split}" for split in splits]
    wanted += [m for m in results.metrics if m.startswith("baseline/")]
    wanted += [name for metric in ACROSS for name in (metric, f"base/{metric}")]
    metrics = [metric for metric in wanted if metric in results.metrics]
    compared = settings(results, metrics)
    left_out: list[str] = []
    place = {id: number for number, setting in enumerate(compared) for id in setting.ids}
    rows = results.table.to_dict("records")
    runs = [_run(row, place.get(row["id"]), results.keys, metrics) for row in rows]
    stored = _stored(results, runs, conf_folders)
    beliefs = _details(results, runs, left_out)
    return Contents(
        folder=folder,
        title=str(asked.get("name") or (runs[0].label if len(runs) == 1 else folder.resolve().name)),
        question=asked.get("question"),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        answer=answer(results, compared, splits),
        results=results,
        splits=splits,
        settings=compared,
        axes=axes(compared),
        metrics=metrics,
        runs=runs,
        states=dict(Counter(run.state for run in runs).most_common()),
        never_begun=[
            str(run.get("label") or run.get("folder"))
            for id, run in (asked.get("runs") or {}).items()
            if id not in {run.id for run in runs}
        ],
        hard={split: beliefs.hard(split) for split in splits if any(s == split for s, _ in beliefs.tallies)},
        graph=beliefs.page(_data(stored)),
        differing={
            key: [shown(value) if decided else None for value, decided in zip(column, has_config(results), strict=True)]
            for key, column in results.table.loc[:, results.config_keys].items()
            if key not in NOT_SHOWN and not str(key).startswith("track.") and column.nunique(dropna=False) > 1
        },
        shared={key: shown(value) for key, value in results.shared.items() if decides(key)},
        commands=asked.get("commands") or [],
        hardware=_counted(stored, "hardware"),
        versions=_counted(stored, "versions"),
        warnings=_warnings(results),
        left_out=left_out,
    )


def _warnings(results: Results) -> list[tuple[int, str]]:
    """The runs' warnings, the most frequent first; those that differ in numbers alone only once."""
    texts = results.finished["warnings"].dropna().str.split("\n").explode().tolist()
    alike = {re.sub(r"\d+(\.\d+)?", "#", text): text for text in reversed(texts)}
    return [(count, alike[key]) for key, count in Counter(re.sub(r"\d+(\.\d+)?", "#", t) for t in texts).most_common()]


def _in_order(results: Results) -> Results:
    """The runs by their swept keys and then their seeds; by folder where those are alike or not known."""
    keys = [key for key in [*results.settings, *results.keys] if len({*map(type, results.table[key])}) == 1]
    table = results.table.sort_values(list(dict.fromkeys(keys)), kind="stable") if keys else results.table
    return Results(table.reset_index(drop=True), results.repeated)


def _run(row: dict[str, Any], setting: int | None, keys: list[str], metrics: list[str]) -> Run:
    finished = row["state"] == "FINISHED"
    label = row.get("label")
    return Run(
        id=row["id"],
        label=str(label if isinstance(label, str) and label else row["name"]),
        state=row["state"],
        error=str(row["error"] or "").strip().split("\n")[0] if not finished else "",
        setting=setting,
        values={key: row[key] for key in keys},
        metrics={metric: short(row.get(metric)) if finished else None for metric in [*metrics, "timing/total_seconds"]},
        command="",
    )


def _stored(results: Results, runs: list[Run], conf_folders: list[Path]) -> list[dict[str, Any]]:
    """The runs' result.json; and the runs' commands from them."""
    found = []
    for folder, run in zip(results.table["folder"], runs, strict=True):
        if run.state in WITHOUT_RESULT:  # it has none that can be read
            continue
        found.append(json.loads((Path(folder) / "result.json").read_text(encoding="utf-8")))
        with suppress(ConfigError):  # asked for by another version, in keys that today's does not know: no command
            run.command = command(found[-1]["config"], conf_folders)
    return found


def _data(stored: list[dict[str, Any]]) -> DataConfig | None:
    """Where the facts come from, which tells who stands on which side; None if today's version cannot say."""
    with suppress(ConfigError, IndexError):
        return from_dict(stored[0]["config"]).data
    return None


def _details(results: Results, runs: list[Run], left_out: list[str]) -> Beliefs:
    """What is read from the finished runs' own files: into `run.detail`, and what is known of each fact."""
    kept = _in_turns(runs)
    beliefs = Beliefs()
    unread: dict[str, list[str]] = {}
    for run, folder in zip(runs, map(Path, results.table["folder"]), strict=True):
        if run.state != "FINISHED":
            continue
        readers: dict[str, Callable[[], Any]] = {ITEMS: partial(beliefs.add, run.label, folder, run.id in kept)}
        if run.id in kept:
            readers |= {HISTORY: partial(curves.read, folder), SAID: partial(_said, folder)}
        found: dict[str, Any] = {}
        for file, read in readers.items():
            try:
                found[file] = read()
            except (OSError, ValueError) as error:
                reason = "not there" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
                unread.setdefault(file, []).append(f"{run.label}: {reason}")
        if run.id in kept:
            run.detail = {"graph": found.get(ITEMS), "curves": found.get(HISTORY), "said": found.get(SAID)}
    for file, lines in unread.items():
        left_out.append(
            f"{file} of {len(lines)} finished run{'s' * (len(lines) > 1)} cannot be read, and what it says is left out "
            f"({lines[0]}{' and others' * (len(lines) > 1)})."
        )
    finished = sum(run.state == "FINISHED" for run in runs)
    if finished > len(kept):
        left_out.append(
            f"Curves, graphs and generations are here for {len(kept)} of {finished} finished runs, each setting's "
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


def _said(folder: Path) -> list[list[Any]]:
    rows = json.loads((folder / SAID).read_text(encoding="utf-8"))
    try:
        return [[row[key] for key in ("split", "prompt", "fact", "base", "trained")] for row in rows]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a list of generations ({type(error).__name__}: {error})") from None


def _counted(stored: list[dict[str, Any]], key: str) -> list[tuple[int, dict[str, Any]]]:
    """The different values that runs have, the most frequent first."""
    counts = Counter(json.dumps(result[key]) for result in stored if result.get(key))
    return [(count, json.loads(value)) for value, count in counts.most_common()]
