"""The tables of `factdpo results`: groups of runs, single runs or two sides compared, with lines above and below."""

import math
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from factdpo.config.overrides import decides, flat
from factdpo.config.schema import Config, to_dict
from factdpo.config.validate import validate
from factdpo.console import plural
from factdpo.results.compare import Side, paired
from factdpo.results.intervals import with_interval
from factdpo.results.means import BOTH, COUNTS, OVER_FACTS, OVER_SEEDS, as_cell, means, number
from factdpo.results.tables import Results, as_typed, or_none, shown
from factdpo.store.index import ABOUT

if TYPE_CHECKING:
    import pandas as pd

LISTED = 10  # runs without metrics, and warnings, that are listed; the rest is counted
CELL, LINE, COLUMNS = 200, 4000, 100  # most characters of a cell and of a line, and columns: names may be anybody\'s


@dataclass
class View:
    """A table whose first `keys` columns identify the row, with lines above and below it."""

    frame: "pd.DataFrame"  # the unformatted numbers, for files
    headings: list[str]  # wrapped after the last `/`, `.` or newline
    rows: list[list[str]]
    keys: int
    above: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)


# What the brackets and the half-widths in a table mean; only those that it has are printed.
NOTES = {
    BOTH: "[95 %]: of the mean, for other facts and other seeds",
    COUNTS: "[95 %] by counts alone, for other facts and other seeds, as if all runs gave the same answers: wider",
    OVER_FACTS: "[95 %] of a single run: Wilson's, for other facts; how far seeds differ is unknown",
    OVER_SEEDS: "mean ± half of its 95 % interval over runs (Student's t); a single run has none",
}
POOLED = "no interval where a row pools runs that differ in more than their seed"


def groups(results: Results, by: list[str], metrics: list[str]) -> View:
    """A row per group of runs: mean and interval of each metric over its runs."""
    frame = means(results, by, metrics)
    cells = [as_cell(**mean) for mean in frame.loc[:, ["metric", "mean", "low", "high"]].to_dict("records")]
    groups = [group for _, group in results.table.groupby(by, dropna=False)]  # in the order of `means`
    rows = []
    for place, group in enumerate(groups):
        values = map(shown, group.loc[:, by].to_numpy(dtype=object)[0])
        rows.append([*values, f"{len(group)}{_unfinished(group)}", *cells[place :: len(groups)]])
    view = View(frame, [*by, "runs", *metrics], rows, len(by) + 1, [_count(results)])
    if shared := _shared(results):
        view.above.append(f"the same in all: {' '.join(shared)}")
    view.below = [note for over, note in NOTES.items() if over in set(frame["over"])]
    if any(mean["n"] > 1 and not mean["over"] for mean in frame.to_dict("records")):
        view.below.append(POOLED)
    return view


def runs(results: Results, metrics: list[str]) -> View:
    """A row per run."""
    frame = results.table.loc[:, [*ABOUT, *results.keys, *metrics]]
    columns = ["id", "state", *(["kind"] if results.has_both_kinds else []), *results.keys]
    keys = [[shown(value) for value in row] for row in frame.loc[:, columns].to_numpy(dtype=object)]
    numbers = [[number(value) for value in row] for row in frame.loc[:, metrics].to_numpy(dtype=float)]
    rows = [key + row for key, row in zip(keys, numbers, strict=True)]
    return View(frame, [*columns, *metrics], rows, len(columns), [_count(results)])


def comparison(a: Side, b: Side) -> View:
    """A row per split, and per seed where there are several: accuracies on the same facts, and their difference."""
    frame = paired(a, b)
    headings = ["split", "facts", "A", "B", "B - A [95 %]", "only\nA", "only\nB", "p"]
    view = View(frame, headings, [_compared(row) for row in frame.to_dict("records")], keys=1)
    view.above = [_described("A", a), _described("B", b)]
    if len(a.runs) == len(b.runs) == 1:
        if a.seeds != b.seeds:
            view.below.append("the seeds differ: compared are the facts that both have in the same split")
    elif one_sided := sorted({*a.seeds} ^ {*b.seeds}):
        view.below.append(f"left out, since only one side has it: seed {', '.join(one_sided)}")
    scored = [split for split in Results(a.runs).splits_scored if f"accuracy/{split}" in Results(b.runs).metrics]
    if apart := [split for split in scored if split not in set(frame["split"])]:
        view.below.append(f"no fact in common, so nothing to compare: {', '.join(apart)}")
    view.below += [
        "A, B: accuracy on the facts in common. [95 %]: bootstrap over facts, seeds as given (9,999 resamples, seed 0)",
        "only A, only B: answers that one side alone has right. p: exact McNemar test, per seed (each fact once)",
    ]
    return view


def _compared(row: dict[str, Any]) -> list[str]:
    """The cells of a row of `paired`."""
    facts, of_a, of_b = row["facts"], row["facts_a"], row["facts_b"]
    sizes = "" if facts == of_a == of_b else f" of {of_a}" if of_a == of_b else f" of {of_a} and {of_b}"
    answers = f" ({row['pairs']} answers)" if row["pairs"] != facts else ""
    name = f"  seed {row['seed']}" if row["seed"] else row["split"]
    accuracies = [number(row["accuracy_a"]), number(row["accuracy_b"])]
    difference = with_interval(row["difference"], row["low"], row["high"], "+", 3)
    p = "" if math.isnan(row["p"]) else f"{row['p']:.3f}" if row["p"] >= 0.001 else "<0.001"
    return [name, f"{facts}{sizes}{answers}", *accuracies, difference, str(row["only_a"]), str(row["only_b"]), p]


def _described(letter: str, side: Side) -> str:
    seeds = f"seed{'' if len(side.seeds) == 1 else 's'} {', '.join(side.seeds)}"
    unfinished = f"; {side.unfinished} more without numbers" if side.unfinished else ""
    return f"{letter}  {side.name}  ({plural(len(side.runs), 'run')}, {seeds}{unfinished})"


def caveats(results: Results) -> list[str]:
    """What a table of means hides: runs without numbers, and warnings."""
    return [*_without_numbers(results), *_warnings(results), *_unproven(results)]


def _unproven(results: Results) -> list[str]:
    runs = plural(results.unproven, "record")
    why = f"warning: {runs} of an earlier version without a sha256: a change of it would go unnoticed"
    return [why] if results.unproven else []


def _count(results: Results) -> str:
    repeated = f"; {results.repeated} more are the same runs in other folders" if results.repeated else ""
    return f"{plural(len(results.table), 'run')}{_unfinished(results.table)}{repeated}"


def _unfinished(runs: "pd.DataFrame") -> str:
    """` (1 DIVERGED)`: the states of the runs that are not FINISHED, with their number; empty without any."""
    counts = runs["state"].value_counts().drop("FINISHED", errors="ignore")
    return f" ({', '.join(f'{count} {state}' for state, count in counts.items())})" if len(counts) else ""


def _shared(results: Results) -> list[str]:
    """`key=value` of the settings that all runs share and that are not the default; the engine is no setting."""
    default = flat(to_dict(validate(Config())))
    return [
        f"{key}={shown(value)}"
        for key, value in results.shared.items()
        if decides(key) and key != "engine.name" and key in default and shown(value) != as_typed(default[key])
    ]


def _without_numbers(results: Results) -> list[str]:
    """Runs that are not FINISHED, with the reason."""
    runs = results.table.loc[results.table["state"] != "FINISHED"].to_dict("records")
    lines = []
    for run in runs[:LISTED]:
        reason = str(or_none(run["error"]) or "").split("\n")[0]
        lines.append(f"{run['state']}  {run['folder']}" + (f": {reason}" if reason else ""))
    more = len(runs) - LISTED
    return [*lines, f"and {more} more; --runs lists all"] if more > 0 else lines


def _warnings(results: Results) -> list[str]:
    """Each warning once, with the number of runs that have it, or of several runs the one that has."""
    runs = results.finished
    each = runs.assign(warnings=runs["warnings"].str.split("\n")).explode("warnings").dropna(subset=["warnings"])
    several = len(runs) > 1
    lines = []
    for text, count in each["warnings"].value_counts().items():
        whose = f"{count} runs" if count > 1 else each.loc[each["warnings"] == text, "name"].iloc[0]
        lines.append(f"warning: {text} ({whose})" if several else f"warning: {text}")
    return [*lines[:LISTED], f"and {len(lines) - LISTED} more warnings"] if len(lines) > LISTED else lines


def show(view: View, console: Console) -> None:
    """Print the view: on a terminal in as many tables as its width needs, elsewhere in one, unstyled."""

    def line(text: str, style: str = "") -> None:  # never wrapped: paths and commands must stay whole
        console.print(Text(_cut(text.rstrip(), LINE), style), soft_wrap=True)

    shown = view.headings[:COLUMNS]
    headings = _wrapped([_cut(heading, CELL) for heading in shown])
    table = [*headings, *([_cut(cell, CELL) for cell in row[:COLUMNS]] for row in view.rows)]
    widths = [max(map(cell_len, cells)) for cells in zip(*table, strict=True)]
    room = console.width if console.is_terminal else sys.maxsize
    for text in view.above:
        line(text)
    for columns in _blocks(widths, view.keys, room):
        line("")
        for place, cells in enumerate(table):
            padded = [_padded(cells[column], widths[column], left=column < view.keys) for column in columns]
            line("  ".join(padded), "bold" if place < len(headings) else "")
    if len(view.headings) > COLUMNS:
        line(f"and {len(view.headings) - COLUMNS} more columns; --csv and --json have all")
    if view.below[:1] != [""]:
        line("")
    for text in view.below:
        line(text, "yellow" if text.startswith("warning: ") else "")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def _wrapped(headings: list[str]) -> list[list[str]]:
    """The headings in two lines, as `accuracy/` and `test`, so that a column is as narrow as its numbers; or in one."""
    parts = [re.fullmatch(r"(?:(.*[/.])|(.*)\n)?(.+)", heading) for heading in headings]
    upper = [match[1] or match[2] or "" for match in parts if match]
    lower = [match[3] for match in parts if match]
    return [upper, lower] if any(upper) else [lower]


def _blocks(widths: list[int], keys: int, room: int) -> list[list[int]]:
    """The columns of each table: the first `keys` in all of them, and as many of the others as fit."""
    blocks: list[list[int]] = [[]]
    for column in range(keys, len(widths)):
        wide = sum(widths[c] + 2 for c in (*range(keys), *blocks[-1], column)) - 2
        if blocks[-1] and wide > room:
            blocks.append([])
        blocks[-1].append(column)
    return [[*range(keys), *block] for block in blocks]


def _padded(cell: str, width: int, left: bool) -> str:
    blank = " " * (width - cell_len(cell))
    return cell + blank if left else blank + cell
