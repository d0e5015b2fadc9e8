"""A run's numbers as a person reads them in the terminal."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factdpo.store.result import AS_TRAINED, Result, best_baseline

LEFT = ["n", "base", "accuracy\ntrained [95 %]"]  # columns of the splits' table; on a narrow terminal it is two
RIGHT = ["balanced", "best\nbaseline", "flips"]


def print_result(result: Result, folder: Path, console: Console, stored: bool = False) -> None:
    """A run's numbers and where the rest is, or why it did not finish; a stored answer says that it is one."""

    def line(text: str = "", style: str = "") -> None:  # never wrapped: paths and commands must stay whole
        console.print(Text(text, style=style), soft_wrap=True)

    line()
    if result["state"] != "FINISHED":
        line(f"{result['name']} ({result['id']})  {result['state']}", "bold red")
        line(result.get("error") or "no reason was written down")
        line(f"log      {folder / 'run.log'}")
        if stored:
            line(f"stored   this answer is from {_when(result)}; retry_diverged=true does the run again")
        return
    line(f"{result['name']} ({result['id']})", "bold")
    whole = _splits_table(result, [*LEFT, *RIGHT])
    fits = console.measure(whole, options=console.options.update(max_width=1000)).maximum <= console.width
    for table in [whole] if fits else [_splits_table(result, LEFT), _splits_table(result, RIGHT)]:
        console.print(table)
    line()
    console.print(_more_table(result))
    if AS_TRAINED in result["trained"]:
        line("as trained: the facts of train as training saw them, without the space", "dim")
    for warning in result["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))
    line()
    if stored:
        line(f"stored   this answer is from {_when(result)}; nothing was run now")
    line(f"folder   {folder}")
    if (folder / "figures").is_dir():
        line(f"figures  {folder / 'figures'}")
    if any((folder / "wandb").glob("*run-*/*.wandb")):
        line(f"curves   wandb leet {folder / 'wandb'}")
    line(f"rescore  factdpo eval {folder}")


def _when(result: Result) -> str:
    """`2026-11-25 14:03 UTC`, or that it is not known."""
    return f"{result['started'][:10]} {result['started'][11:16]} UTC" if result.get("started") else "an unknown day"


def print_line(result: Result, folder: Path, console: Console) -> None:
    """One run of a sweep in one line: its state, what distinguishes it, and its accuracies or why it failed."""
    what = result["config"]["label"] or result["name"]
    if result["state"] != "FINISHED":
        text = f"{result['state']}  {what}  {result.get('error') or 'no reason was written down'}  {folder / 'run.log'}"
        console.print(Text(text, style="bold red"), soft_wrap=True)
        return
    scores = "  ".join(f"{split} {values['accuracy']:.2f}" for split, values in result["trained"].items())
    console.print(Text(f"FINISHED  {what}  {scores}  {result['timing']['total_seconds']:.1f} s"), soft_wrap=True)


def _splits_table(result: Result, columns: list[str]) -> Table:
    """A row per split with these columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for split, after in result["trained"].items():
        before, rules = result["base"][split], result["baselines"].get(split, {})
        best = best_baseline(rules)
        trained = Text(f"{after['accuracy']:.2f} [{after['accuracy_low']:.2f}, {after['accuracy_high']:.2f}]")
        if best is not None and not after["accuracy_low"] <= best[1] <= after["accuracy_high"]:
            trained.stylize("green" if after["accuracy"] > best[1] else "red")
        cells: dict[str, str | Text] = {
            "n": str(after["n"]),
            "base": f"{before['accuracy']:.2f}",
            "accuracy\ntrained [95 %]": trained,
            "balanced": f"{before['balanced_accuracy']:.2f}->{after['balanced_accuracy']:.2f}",
            "best\nbaseline": f"{best[0].removesuffix('_name')} {best[1]:.2f}" if best else "-",
            "flips": f"+{after['wrong_to_right']} -{after['right_to_wrong']}",
        }
        name = "as trained" if split == AS_TRAINED else split
        table.add_row(name, *(cells[heading] for heading in columns))
    return table


def _more_table(result: Result) -> Table:
    """What does not fit into one row per split."""
    base, trained, across = result["base"], result["trained"], result["across"]

    def arrows(values: dict[str, tuple[float | None, float | None]]) -> str:
        return "   ".join(f"{k} {b:.2f} -> {a:.2f}" for k, (b, a) in values.items() if b is not None and a is not None)

    splits = [split for split in ("train", "test") if split in trained]
    implied = {split: result["baselines"].get(split, {}).get("implied") for split in splits}
    nats = [across[model]["retention_nats_per_token"] for model in ("base", "trained")]
    rows = {
        "greedy accuracy": arrows({s: (base[s]["greedy_accuracy"], trained[s]["greedy_accuracy"]) for s in splits}),
        "order consistency": arrows(
            {s: (across["base"][f"symmetry_{s}"], across["trained"][f"symmetry_{s}"]) for s in ("train", "test")}
        ),
        "reward accuracy": "   ".join(f"{s} {trained[s]['reward_accuracy']:.2f}" for s in splits),
        "logical closure": "   ".join(f"{s} {value:.2f}" for s, value in implied.items() if value is not None),
        "retention": f"{nats[0]:.2f} -> {nats[1]:.2f} nats per token",
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, text in rows.items():
        if text:
            table.add_row(Text(name, style="dim"), Text(text))
    return table
