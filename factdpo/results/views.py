"""What `factdpo results` shows: groups of runs, runs one by one or two sides compared, and lines around the table."""

import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from factdpo.config.overrides import command, decides, flat, typed
from factdpo.config.schema import Config, to_dict
from factdpo.config.validate import validate
from factdpo.results.compare import Side, means, paired, shown
from factdpo.results.tables import Results, known
from factdpo.store.index import ABOUT

if TYPE_CHECKING:
    import pandas as pd

LISTED = 10  # runs without numbers, and warnings, before the rest is only counted
LOWER_IS_BETTER = ("p_other/", "rejected_logp_nats/", "right_to_wrong/", "across/retention", "timing/")
NEITHER = ("base/", "baseline/", "n/", "answer_shares.")  # not of the trained model, or neither good nor bad


@dataclass
class View:
    """What is printed: lines, a table whose first `keys` columns say what a row is of, and lines."""

    frame: "pd.DataFrame"  # the same as numbers, for files
    headings: list[str]  # broken after the last `/`, `.` or newline
    rows: list[list[str]]
    keys: int
    above: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)


def groups(results: Results, by: list[str], metrics: list[str]) -> View:
    """A row per group of runs: mean and interval of each metric over its runs."""
    frame = means(results.table, by, metrics)
    cells = [_interval(**mean) for mean in frame.loc[:, ["n", "mean", "high"]].to_dict("records")]
    members = [members for _, members in results.table.groupby(by, dropna=False)]  # in the order of `means`
    rows = [
        [*map(shown, group.loc[:, by].to_numpy(dtype=object)[0]), _states(group), *cells[number :: len(members)]]
        for number, group in enumerate(members)
    ]
    view = View(frame, [*by, "runs", *metrics], rows, len(by) + 1, [_found(results)])
    if same := _same(results):
        view.above.append(f"the same in all: {' '.join(same)}")
    view.below.append("mean ± half of its 95 % interval over runs (Student's t); a single run has none")
    return view


def runs(results: Results, metrics: list[str]) -> View:
    """A row per run."""
    frame = results.table.loc[:, [*ABOUT, *results.keys, *metrics]]
    columns = ["id", "state", *results.keys]
    keys = [[shown(value) for value in row] for row in frame.loc[:, columns].to_numpy(dtype=object)]
    numbers = [[_number(value) for value in row] for row in frame.loc[:, metrics].to_numpy(dtype=float)]
    rows = [key + row for key, row in zip(keys, numbers, strict=True)]
    return View(frame, [*columns, *metrics], rows, len(columns), [_found(results)])


def comparison(a: Side, b: Side) -> View:
    """A row per split, and per seed where there are several: who ranks what right that the other does not."""
    frame = paired(a, b)
    rows = []
    for row in frame.to_dict("records"):
        of = f"{row['of_a']}" if row["of_a"] == row["of_b"] else f"{row['of_a']} and {row['of_b']}"
        facts = f"{row['pairs']}" if row["pairs"] == row["of_a"] == row["of_b"] else f"{row['pairs']} of {of}"
        difference = f"{row['difference']:+.3f}"
        if not math.isnan(row["low"]):
            difference += f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        p = "" if math.isnan(row["p"]) else f"{row['p']:.3f}" if row["p"] >= 0.001 else "<0.001"
        accuracies = [_number(row["accuracy_a"]), _number(row["accuracy_b"])]
        discordant = [str(row["only_a"]), str(row["only_b"])]
        what = f"  seed {row['seed']}" if row["seed"] else row["split"]
        rows.append([what, facts, *accuracies, difference, *discordant, p])
    headings = ["split", "facts", "A", "B", "B - A [95 %]", "only\nA", "only\nB", "p"]
    view = View(frame, headings, rows, keys=1)
    for name, one in (("A", a), ("B", b)):
        many = (
            f"{len(one.runs)} run{'s' * (len(one.runs) != 1)}, seed{'s' * (len(one.runs) != 1)} {', '.join(one.seeds)}"
        )
        left = f"; {one.unfinished} more without numbers" if one.unfinished else ""
        view.above.append(f"{name}  {one.asked}  ({many}{left})")
    if len(a.runs) == len(b.runs) == 1:
        if a.seeds != b.seeds:
            view.below.append("the seeds differ: compared are the facts that both have in the same split")
    elif only := sorted({*a.seeds} ^ {*b.seeds}):
        view.below.append(f"left out, since only one side has it: seed {', '.join(only)}")
    view.below += [
        "A, B: accuracy on the facts in common. [95 %]: bootstrap over facts, seeds as given (9,999 resamples, seed 0)",
        "only A, only B: what one alone ranks right. p: exact McNemar test, which needs each fact asked once: per seed",
    ]
    return view


def around(results: Results, metrics: list[str], conf_folders: list[Path]) -> list[str]:
    """What a table of means would hide: runs without numbers, warnings; and the best runs."""
    return [*_without_numbers(results), *_warnings(results), *_best(results, metrics, conf_folders)]


def _found(results: Results) -> str:
    again = f"; {results.repeated} more are the same runs in other folders" if results.repeated else ""
    return f"{_states(results.table, word=True)}{again}"


def _states(runs: "pd.DataFrame", word: bool = False) -> str:
    """`8`, or `8 (1 DIVERGED)` of which 7 have numbers."""
    counts = runs["state"].value_counts().drop("FINISHED", errors="ignore")
    others = f" ({', '.join(f'{count} {state}' for state, count in counts.items())})" if len(counts) else ""
    return f"{len(runs)}{' run' + 's' * (len(runs) != 1) if word else ''}{others}"


def _same(results: Results) -> list[str]:
    """`key=value` of what all runs share and is not the default; which engine trained is no setting."""
    default = flat(to_dict(validate(Config())))
    return [
        f"{key}={shown(value)}"
        for key, value in results.shared.items()
        if decides(key) and key != "engine.name" and key in default and shown(value) != _typed(default[key])
    ]


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else typed(value)


def _without_numbers(results: Results) -> list[str]:
    """Runs that are not FINISHED, by name."""
    runs = results.table.loc[results.table["state"] != "FINISHED"].to_dict("records")
    lines = []
    for run in runs[:LISTED]:
        reason = str(known(run["error"]) or "").split("\n")[0]
        lines.append(f"{run['state']}  {run['folder']}{': ' * bool(reason)}{reason}")
    more = len(runs) - LISTED
    return [*lines, f"and {more} more; --runs lists all"] if more > 0 else lines


def _warnings(results: Results) -> list[str]:
    """The runs' own warnings, each once, with how many runs have it."""
    counts = results.finished["warnings"].dropna().str.split("\n").explode().value_counts()
    lines = [f"warning: {text}" + (f" ({count} runs)" if count > 1 else "") for text, count in counts.items()]
    return [*lines[:LISTED], f"and {len(lines) - LISTED} more warnings"] if len(lines) > LISTED else lines


def _best(results: Results, metrics: list[str], conf_folders: list[Path]) -> list[str]:
    """The best run of each metric and the command that asks for it, a run that is best of several once."""
    best: dict[int, list[str]] = {}  # row of the table -> what it is best of
    for metric in metrics:
        values = results.finished.loc[:, metric].dropna().to_dict()  # row -> value
        if metric.startswith(NEITHER) or not values:
            continue
        value = min(values.values()) if metric.startswith(LOWER_IS_BETTER) else max(values.values())
        rows = [row for row in values if values[row] == value]
        others = f" (as {len(rows) - 1} other{'s' * (len(rows) > 2)})" if len(rows) > 1 else ""
        best.setdefault(rows[0], []).append(f"{metric} {_number(value)}{others}")
    lines = []
    for row, praise in best.items():
        run = results.table.loc[row]
        try:
            config = json.loads((Path(run["folder"]) / "result.json").read_text(encoding="utf-8"))["config"]
            again = command(config, conf_folders)
        except (OSError, ValueError) as error:  # ConfigError is a ValueError: a key of another version
            again = f"no command: {error}"
        lines += ["", f"best {', '.join(praise)}", f"  {run['folder']}", f"  {again}"]
    return lines


def _interval(n: int, mean: float, high: float) -> str:
    return _number(mean) + (f" ± {_number(high - mean)}" if n > 1 else "")


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def show(view: View, console: Console) -> None:
    """The view on a terminal in as many tables as it takes to show every column; plain, in one, anywhere else."""

    def line(text: str, style: str = "") -> None:  # never wrapped: paths and commands must stay whole
        console.print(Text(text.rstrip(), style), soft_wrap=True)

    # A heading has two lines, as in `accuracy/` and `test`, so that it is not wider than its numbers.
    split = [re.fullmatch(r"(?:(.*[/.])|(.*)\n)?(.+)", heading) for heading in view.headings]
    heads = [[match[1] or match[2] or "" for match in split if match], [match[3] for match in split if match]]
    table = [*(heads if any(heads[0]) else heads[1:]), *view.rows]
    above = len(table) - len(view.rows)
    widths = [max(map(cell_len, cells)) for cells in zip(*table, strict=True)]
    room = console.width if console.is_terminal else sys.maxsize
    for text in view.above:
        line(text)
    for columns in _blocks(widths, view.keys, room):
        line("")
        for number, cells in enumerate(table):
            padded = [_padded(cells[column], widths[column], left=column < view.keys) for column in columns]
            line("  ".join(padded), "bold" if number < above else "")
    if view.below[:1] != [""]:
        line("")
    for text in view.below:
        line(text, "yellow" if text.startswith("warning: ") else "")


def _blocks(widths: list[int], keys: int, room: int) -> list[list[int]]:
    """The columns of each table: the first `keys` in all of them, of the others as many as there is room for."""
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
