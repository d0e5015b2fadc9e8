"""`factdpo results`: many runs as one printed table or a file, and two of them side by side."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo import console as display
from factdpo.commands.parser import Parser
from factdpo.config.folders import conf_folders
from factdpo.config.schema import ConfigError
from factdpo.results import views, winners
from factdpo.results.best import NEITHER, metric_of
from factdpo.results.compare import side
from factdpo.results.tables import load
from factdpo.results.views import View, show
from factdpo.store import sweep_file
from factdpo.store.shapes import DamagedFile
from factdpo.store.sweep_file import Metric, metrics_asked

if TYPE_CHECKING:
    import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # OWASP, CSV injection
FORMATS = ("csv", "json", "markdown", "parquet")


def main(arguments: list[str]) -> None:
    """Prints or writes a table of runs; raises ConfigError for what cannot be done."""
    args = make_parser().parse_intermixed_args(arguments)
    kind, file = next(((kind, file) for kind in FORMATS if (file := getattr(args, kind))), ("", ""))
    if file and Path(file).is_dir():
        raise ConfigError(f"--{kind} {file}: a folder; name the folders of runs before --{kind}, and a file after it")
    results = load(*args.folders)
    metrics = [metric for name in _names(args.metric) for metric in results.metrics_of(name)]
    if args.compare:
        if metrics:
            raise ConfigError("--metric: --compare compares accuracies, on every split; leave --metric out")
        view = views.comparison(*(side(results, name) for name in args.compare))
    else:
        by = [results.key(key) for key in _names(args.by)] or results.settings or ["model.name"]
        asked, problems = _asked(args.folders)
        if metrics:  # ranked by these, each the way the sweep says
            signs = {metric.name: metric for metric in asked}
            asked = [signs.get(name, metric_of(name)) for name in metrics if not name.startswith(NEITHER)]
        measured = [metric.name for metric in asked if metric.name in results.metrics]
        metrics = metrics or list(dict.fromkeys([*measured, *results.default_metrics]))
        view = views.groups(results, by, metrics) if metrics and not args.runs else views.runs(results, metrics)
        view.below += [*views.caveats(results), *problems, *winners.lines(results, asked, conf_folders())]
        if args.runs and not args.metric:
            view.frame = results.runs
    if kind:
        _export(view, kind, file)
    else:
        show(view, display.console)


def make_parser() -> Parser:
    parser = Parser(
        "results",
        "Many runs as one table: means over seeds with 95 % intervals, and how to get the best runs again.",
        """examples:
  factdpo results outputs/sweeps/beta                      groups by what was swept; accuracy on every split
  factdpo results outputs/sweeps/beta --by model,dpo.beta --metric accuracy/test,margin_nats
  factdpo results outputs/sweeps/* --runs --csv all.csv    every run, every number
  factdpo results outputs/sweeps/beta --compare dpo.beta=0.1 dpo.beta=0.5
  factdpo results --compare 3f2a9c1b7d20 8a1f              two runs, by id or its beginning

From Python: factdpo.load("outputs/sweeps/beta") has .runs, .splits, .items and .history as pandas DataFrames.""",
    )
    parser.add_folders("of runs, of sweeps, or of both (default: outputs)")
    parser.add_argument("--metric", metavar="NAMES", help="as in W&B, comma-separated; accuracy is that of every split")
    rows = parser.add_mutually_exclusive_group()
    by = "what makes a group, comma-separated; default: what differs, less seeds"
    rows.add_argument("--by", metavar="KEYS", help=by)
    rows.add_argument("--runs", action="store_true", help="a row per run, and no means")
    sides = "on the same facts: ids, folders, or filters as dpo.beta=0.1,model=nano"
    rows.add_argument("--compare", nargs=2, metavar=("A", "B"), help=sides)
    files = parser.add_mutually_exclusive_group()
    instead = "in place of the table; no FILE: printed"
    for kind in FORMATS[:-1]:
        files.add_argument(f"--{kind}", nargs="?", const="-", metavar="FILE", help=instead)
    files.add_argument("--parquet", metavar="FILE", help="in place of the table")
    return parser


def _asked(folders: list[str]) -> tuple[list[Metric], list[str]]:
    """The numbers that the sweeps in these folders ask about, each once; and what is wrong with a sweep.json."""
    asked: list[Metric] = []
    problems = []
    for folder in folders:
        try:
            asked += metrics_asked(sweep_file.read(Path(folder)))
        except DamagedFile as error:  # of this one, which hides no other
            problems.append(f"warning: {error}")
    return list({metric.name: metric for metric in reversed(asked)}.values())[::-1], problems


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def _export(view: View, kind: str, file: str) -> None:
    """The view's numbers, or for Markdown its table, into a file or (`-`) printed."""
    try:
        if kind == "parquet":
            view.frame.to_parquet(file, index=False)
        elif file == "-":
            text = _text(view, kind)
            sys.stdout.write(display.printable(text) if sys.stdout.isatty() else text)
        else:
            Path(file).write_text(_text(view, kind), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--{kind} {file}: cannot be written ({error})") from None
    if file != "-":
        display.say(f"{file}: {len(view.frame)} rows")


def _without_formulas(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The table with an apostrophe before what a spreadsheet would compute: text that begins with = + - @ or a tab."""
    frame = frame.rename(columns=_as_text)
    return frame.map(_as_text)


def _as_text(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def _text(view: View, kind: str) -> str:
    if kind == "csv":
        return _without_formulas(view.frame).to_csv(index=False)
    if kind == "json":
        cells = view.frame.astype(object).where(view.frame.notna(), None)
        return json.dumps(cells.to_dict("records"), indent=1, ensure_ascii=False) + "\n"
    ruler = ["---" if number < view.keys else "---:" for number in range(len(view.headings))]
    lines = [[text.replace("\n", " ") for text in view.headings], ruler, *view.rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines)
