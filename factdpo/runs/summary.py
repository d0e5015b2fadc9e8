"""A run's numbers as a person reads them in the terminal."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factdpo.store.result import (
    AS_TRAINED,
    TRAINING,
    Result,
    accuracy_metric,
    best_baseline,
    headline_row,
    lengths_differ,
)

HEADINGS = {"accuracy": "accuracy", "accuracy_per_token": "per token"}
TRAINED = "trained [95 %]"
RETENTION, GREEDY = "retention_nats_per_token", "greedy_accuracy"
LEFT, OTHER = ["n", "base", TRAINED], "other"  # columns of the splits' table; on a narrow terminal it is two
RIGHT = ["balanced", "best\nbaseline", "flips"]
RULES = {"answer_counts": "counts", "bag_of_names": "bag", "first_name": "first", "second_name": "second"}  # for short


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
    left = [*LEFT, OTHER] if any(lengths_differ(headline_row(result)).values()) else LEFT
    whole = _splits_table(result, [*left, *RIGHT])
    fits = console.measure(whole, options=console.options.update(max_width=1000)).maximum <= console.width
    for table in [whole] if fits else [_splits_table(result, left), _splits_table(result, RIGHT)]:
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
    if result.get("kind", TRAINING) == TRAINING:
        line(f"rescore  factdpo eval {folder}")


def _when(result: Result) -> str:
    """`2026-11-25 14:03 UTC`, or that it is not known."""
    return f"{result['started'][:10]} {result['started'][11:16]} UTC" if result.get("started") else "an unknown day"


def print_line(result: Result, folder: Path, console: Console) -> None:
    """One run of a sweep in one line: its state, what distinguishes it, and its accuracies or why it failed."""
    what = result["config"]["label"] or result["name"]
    if result["state"] != "FINISHED":
        text = f"{result['state']}  {what}  {result.get('error') or 'no reason was written down'}  {folder / 'run.log'}"
        style = "dim" if result["state"] == "STOPPED" else "bold red"
        console.print(Text(text, style=style), soft_wrap=True)
        return
    metric = accuracy_metric([headline_row(result)])
    scores = [f"{split} {values[metric]:.2f}" for split, values in result["trained"].items()]
    if metric != "accuracy":
        scores.append("(per token)")
    text = f"FINISHED  {what}  {'  '.join(scores)}  {result['timing']['total_seconds']:.1f} s"
    console.print(Text(text), soft_wrap=True)


def _splits_table(result: Result, columns: list[str]) -> Table:
    """A row per split with these columns."""
    metric = accuracy_metric([headline_row(result)])
    other = "accuracy" if metric == "accuracy_per_token" else "accuracy_per_token"
    headings = {TRAINED: f"{HEADINGS[metric]}\n{TRAINED}", OTHER: "summed" if other == "accuracy" else "per token"}
    if metric != "accuracy":  # these two are of the summed log-probs all the same
        headings |= {"balanced": "summed,\nbalanced", "flips": "summed,\nflips"}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for column in columns:
        table.add_column(headings.get(column, column), justify="right", no_wrap=True)
    for split, after in result["trained"].items():
        before, best = result["base"].get(split), best_baseline(result["baselines"].get(split, {}))
        low, high = after[f"{metric}_low"], after[f"{metric}_high"]
        trained = Text(f"{after[metric]:.2f} [{low:.2f}, {high:.2f}]")
        if best is not None and not low <= best[1] <= high:
            trained.stylize("green" if after[metric] > best[1] else "red")
        cells: dict[str, str | Text] = {
            "n": str(after["n"]),
            "base": f"{before[metric]:.2f}" if before else "-",
            TRAINED: trained,
            OTHER: _arrow(before, after, other) if OTHER in columns else "",
            "balanced": _arrow(before, after, "balanced_accuracy"),
            "best\nbaseline": f"{RULES.get(best[0], best[0])} {best[1]:.2f}" if best else "-",
            "flips": f"+{after['wrong_to_right']} -{after['right_to_wrong']}" if before else "-",
        }
        name = "as trained" if split == AS_TRAINED else split
        table.add_row(name, *(cells[column] for column in columns))
    return table


def _arrow(before: Result | None, after: Result, metric: str) -> str:
    """`0.50->0.75`; of a model that was scored without a base its number alone."""
    return f"{before[metric]:.2f}->{after[metric]:.2f}" if before else f"{after[metric]:.2f}"


def _more_table(result: Result) -> Table:
    """What does not fit into one row per split."""
    base, trained, across = result["base"], result["trained"], result["across"]

    def arrows(values: dict[str, tuple[float | None, float | None]]) -> str:
        known = {name: (before, after) for name, (before, after) in values.items() if after is not None}
        return "   ".join(
            f"{name} {after:.2f}" if before is None else f"{name} {before:.2f} -> {after:.2f}"
            for name, (before, after) in known.items()
        )

    def orders(split: str) -> tuple[float | None, float | None]:
        return across.get("base", {}).get(f"symmetry_{split}"), across["trained"][f"symmetry_{split}"]

    splits = [split for split in ("train", "test") if split in trained]
    nats = {"": (across.get("base", {}).get(RETENTION), across["trained"][RETENTION])}
    rows = {
        "greedy accuracy": arrows({s: (base.get(s, {}).get(GREEDY), trained[s][GREEDY]) for s in splits}),
        "order consistency": arrows({s: orders(s) for s in ("train", "test")}),
        "reward accuracy": "   ".join(f"{s} {trained[s]['reward_accuracy']:.2f}" for s in splits if s in base),
        **{f"by length, {s}": _by_length(trained[s]) for s in splits},
        "logical closure": _logic(result, splits),
        "names": _without_names(result, splits),
        "retention": f"{arrows(nats).strip()} nats per token",
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, text in rows.items():
        if text:
            table.add_row(Text(name, style="dim"), Text(text))
    return table


def _by_length(scores: Result) -> str:
    """Summed / per-token accuracy (and n) where the true answer is the shorter, and so on; empty if all are equal."""
    classes = [name for name in ("shorter", "equal", "longer") if scores.get(f"n_{name}")]
    if classes in ([], ["equal"]):
        return ""
    parts = [
        f"{name} {scores[f'accuracy_{name}']:.2f}/{scores[f'accuracy_per_token_{name}']:.2f} ({scores[f'n_{name}']})"
        for name in classes
    ]
    return f"{'  '.join(parts)}  sum/mean"


def _logic(result: Result, splits: list[str]) -> str:
    """What the training facts imply, how many of them contradict the others, and what is assumed of the sides."""
    implied = {split: result["baselines"].get(split, {}).get("implied") for split in splits}
    text = "   ".join(f"{split} {value:.2f}" for split, value in implied.items() if value is not None)
    of_train = result.get("coverage", {}).get("train", {})
    against, sides = of_train.get("contradictions"), of_train.get("sides") or ""  # which older records have not
    if text and sides.startswith("assuming"):
        text += f"   {sides}"
    if text and against:
        text += f"   {against} of {result['trained']['train']['n']} training facts contradict the others"
    return text


def _without_names(result: Result, splits: list[str]) -> str:
    """On how many facts the rules about names are a tie, where they say anything of others."""
    named = {s: result.get("coverage", {}).get(s, {}).get("named") for s in splits}
    if not any(named.values()) or all(named[s] == result["trained"][s]["n"] for s in splits):
        return ""
    return "   ".join(f"{s} {named[s]} of {result['trained'][s]['n']} prompts hold both" for s in splits)
