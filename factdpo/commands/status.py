"""`factdpo status`: which runs of a sweep are done, which are being done and how far they are, from any terminal."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from factdpo import console as display
from factdpo.commands.parser import Parser
from factdpo.results import run_status
from factdpo.results.run_status import RunStatus
from factdpo.results.sweep_status import Runs, look, plain
from factdpo.store.result import KILLED, RUNNING, STATES, TO_DO

REDRAWN_SECONDS = 2.0
UNLIMITED = 10_000  # columns, where there is no screen
ROWS = 40  # where there is no screen that they have to fit on
REASONS = 5  # why runs did not finish, before the rest is only counted
WIDE = 110  # columns of a screen that has room for the reversed splits
COLOURS = ("green", "cyan", "bold cyan", "bold red", "bold red", "yellow", "yellow", "dim")
STYLES: dict[str, str] = dict(zip(STATES, COLOURS, strict=True))


def main(arguments: list[str]) -> None:
    """Prints how the runs stand, again and again while one is being done; raises ConfigError if a folder is none."""
    args = make_parser().parse_intermixed_args(arguments)
    folders = [run_status.named(Path(folder)) for folder in args.folders]
    cache: run_status.Cache = {}
    console = display.console
    if args.json:
        print(json.dumps([plain(group) for group in look(folders, cache)], indent=1, ensure_ascii=False))
    elif args.once or args.all or not (sys.stdout.isatty() and console.is_interactive):
        _print(view(look(folders, cache), console, every=args.all), console)
    else:
        _watch(folders, cache, console)


def make_parser() -> Parser:
    parser = Parser(
        "status",
        "How runs stand: which are done, which are being done and how far, what failed and why.\n"
        "On a terminal it is drawn anew every 2 seconds until no run is being done; Ctrl-C leaves, and stops no run.",
        """states:
  FINISHED   it has its result
  STOPPED    halving ended it before its last step: other settings did better
  running    a process is doing it now
  FAILED     an error ended it; DIVERGED: NaN or infinity did; PREEMPTED: a signal did
  killed     started but never finished, and its process is gone: rerun the command to redo it
  to do      planned by its sweep, not opened yet

examples:
  factdpo status                                 the sweeps in outputs/, the newest first
  factdpo status outputs/sweeps/beta             run by run
  factdpo status outputs/sweeps/beta --json | jq '.[0].counts'""",
    )
    parser.add_folders("a sweep, a run, or what they lie in (default: outputs)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="print it once, also on a terminal")
    how.add_argument("--all", action="store_true", help="print it once, with every run")
    how.add_argument("--json", action="store_true", help="print it once, every run, for scripts")
    return parser


def _watch(folders: list[Path], cache: run_status.Cache, console: Console) -> None:
    """Draw what lies in the folders until twice in a row no run is being done: a sweep may be between two of them."""
    running = False
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                groups = look(folders, cache)
                live.update(view(groups, console), refresh=True)
                running, before = any(group.is_running() for group in groups), running
                if not (running or before) or not console.is_terminal:
                    return
                time.sleep(REDRAWN_SECONDS)
    except KeyboardInterrupt:
        pass  # who has seen enough leaves so


def view(groups: list[Runs], console: Console, every: bool = False) -> RenderableType:
    """The status drawn: run by run for one group, else a line per group; on a terminal cut to fit, unless `every`."""
    most = max([len(groups), *(len(group.runs) for group in groups)])
    rows = most if every else min(most, console.height if console.is_terminal else ROWS)
    splits = {split for group in groups for run in group.runs for split in run.accuracies}
    if console.is_terminal and console.width < WIDE:
        splits = {split for split in splits if split in ("train", "test")}
    while True:
        drawn = _detail(groups[0], rows, splits) if len(groups) == 1 else _overview(groups, rows)
        if every or not console.is_terminal or rows == 1:
            return drawn
        lines = len(console.render_lines(drawn, pad=False))
        if (excess := lines - (console.height - 1)) <= 0:
            return drawn
        rows -= max(1, rows * excess // lines)  # a run with a long name takes several lines


def _print(drawn: RenderableType, console: Console) -> None:
    """Where there is no screen, nothing is wrapped or cut off."""
    wide = console if console.is_terminal else display.SafeConsole(width=UNLIMITED)
    wide.print(drawn, soft_wrap=not console.is_terminal)


def _detail(group: Runs, rows: int, splits: Iterable[str]) -> RenderableType:
    runs = group.runs
    place = runs[0].folder if len(runs) == 1 else group.folder
    above = [Text(str(place), "bold", overflow="fold")]
    if group.question:
        above.append(Text(group.question))
    if group.problem:
        above.append(Text(group.problem, "yellow"))
    above.append(Text(f"{display.plural(len(runs), 'run')}: ") + _counted(group.counts()))
    if progress := _progress(group):
        above.append(Text(progress))
    if (best := group.best()) and len(runs) > 1:
        mean = f" (mean of {best.runs} runs)" if best.runs > 1 else ""
        above.append(
            Text(f"best {_short(best.metric)} {best.mean:.2f}  {best.label}{mean}{'' if best.final else ', so far'}")
        )
    shown = _chosen(runs, rows)
    below: list[Text] = []
    if left := len(runs) - len(shown):
        counts = Counter(group.counts())
        counts.subtract(run.state for run in shown)
        below.append(Text(f"and {left} more: ", "dim") + _counted(counts) + Text("; --all shows every run", "dim"))
    return Group(*above, Text(), _table(shown, splits), *below, *_reasons(runs))


def _steps(run: RunStatus) -> str:
    if run.state == TO_DO or not (run.step or run.steps):  # an evaluation has none
        return ""
    return f"{run.step}/{'?' if run.steps is None else run.steps}"


def _table(runs: list[RunStatus], splits: Iterable[str]) -> Table:
    order = [split for split in ("train", "train_reversed", "test", "test_reversed") if split in splits]
    order += sorted({*splits} - {*order})
    scores = [f"{'accuracy' if split == order[0] else ''}\n{split}" for split in order]
    table = _columns([Column("state", no_wrap=True), Column("run", overflow="fold")], ["step", "loss", *scores, "time"])
    for run in runs:
        table.add_row(
            Text(run.state, STYLES[run.state]), Text(run.label),
            _steps(run),
            "" if run.loss is None else f"{run.loss:.3f}",
            *(f"{run.accuracies[split]:.2f}" if split in run.accuracies else "" for split in order),
            "" if run.seconds is None else display.duration(run.seconds),
        )  # fmt: skip
    return table


def _overview(groups: list[Runs], rows: int) -> RenderableType:
    states = [name for name in STYLES if any(name in group.counts() for group in groups)]
    table = _columns([Column(overflow="fold")], ["runs", *states, "left", "best"])
    for group in groups[:rows]:
        counts, left, best = group.counts(), group.left_seconds(), group.best()
        table.add_row(
            Text(str(group.folder)), str(len(group.runs)),
            *(Text(str(counts.get(name, "")), STYLES[name]) for name in states),
            "" if left is None else f"~{display.duration(left)}",
            f"{_short(best.metric)} {best.mean:.2f}" if best else "",
        )  # fmt: skip
    below = [Text(group.problem, "yellow") for group in groups[:rows] if group.problem]
    if (hidden := len(groups) - rows) > 0:
        below.append(Text(f"and {hidden} older ones; --all shows them", "dim"))
    return Group(table, *below)


def _short(metric: str) -> str:
    """`test` for accuracy/test, `test, per token` for accuracy_per_token/test; others by their name."""
    kind, _, split = metric.rpartition("/")
    return {"accuracy": split, "accuracy_per_token": f"{split}, per token"}.get(kind, metric)


def _columns(left: list[Column], numbers: list[str]) -> Table:
    """An empty table: columns of text, then right-aligned ones with these headings."""
    right = [Column(heading, justify="right", no_wrap=True) for heading in numbers]
    return Table(*left, *right, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _chosen(runs: list[RunStatus], rows: int) -> list[RunStatus]:
    """At most `rows` runs, in their order: a fair share each of those that failed, that run and that finished last."""
    if len(runs) <= rows:
        return runs
    last = sorted(runs, key=lambda run: -(run.changed or 0.0))
    running, to_do = ([run for run in last if run.state == name] for name in (RUNNING, TO_DO))
    finished = [run for run in last if run.state in ("FINISHED", "STOPPED")]
    ended_badly = [run for run in last if run.state not in ("FINISHED", "STOPPED", RUNNING, TO_DO)]
    turns = chain.from_iterable(zip_longest(ended_badly, running, finished))
    taken = {run.id for run in [run for run in (*turns, *to_do) if run is not None][:rows]}
    return [run for run in runs if run.id in taken]


def _reasons(runs: list[RunStatus]) -> list[Text]:
    """Why runs did not finish, each reason once, with the log of the first run that it ended."""
    alike: dict[tuple[str, str], list[RunStatus]] = {}
    for run in runs:
        if run.error:
            alike.setdefault((run.state, run.error.splitlines()[0]), []).append(run)
    lines = [Text()] if alike else []
    for (state, error), (first, *rest) in list(alike.items())[:REASONS]:
        others = f" and {display.plural(len(rest), 'other')}" if rest else ""
        reason = f"{state}  {first.label}{others}: {error}"
        lines.append(Text(reason, STYLES[state], no_wrap=True, overflow="ellipsis"))
        lines.append(Text(f"  {first.folder / 'run.log'}", overflow="fold"))
    if len(alike) > REASONS:
        lines.append(Text(f"and {display.plural(len(alike) - REASONS, 'other reason')}; --json has all", "dim"))
    if any(run.state == KILLED for run in runs):
        lines += [Text(), Text("killed: its process is gone; rerun the command to redo it", "dim")]
    return lines


def _progress(group: Runs) -> str:
    """How far the group is, while any of its runs is being done."""
    steps, left = group.steps(), group.left_seconds()
    if not group.is_running() or steps is None:
        return ""
    text = f"{steps[0]} of {steps[1]} optimizer steps ({steps[0] / max(1, steps[1]):.0%})"
    return text if left is None else f"{text}, about {display.duration(left)} left"


def _counted(counts: dict[str, int]) -> Text:
    """`3 FINISHED, 1 running`, each in its colour."""
    return Text(", ").join(Text(f"{count} {name}", STYLES[name]) for name, count in counts.items() if count)
