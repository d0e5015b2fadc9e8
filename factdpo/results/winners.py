"""The best settings of a table of results, and the command that repeats each."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo.config.overrides import command
from factdpo.console import plural
from factdpo.results.best import FLATTERED, best_in
from factdpo.results.means import as_cell, means
from factdpo.results.tables import SEEDS, Results, shown

if TYPE_CHECKING:
    import pandas as pd


def lines(results: Results, metrics: list[str], conf_folders: list[Path]) -> list[str]:
    """The best setting by each metric, by its mean over seeds, with the command that repeats it.

    A setting that is best by several is named once. With a validation split, test metrics choose nothing: they are
    reported for the setting that is best on the validation facts. With one setting there is only the command.
    """
    if not metrics or not len(results.finished):
        return []
    if not results.settings:
        return ["", "to repeat it:", f"  {command_of(results.finished, conf_folders)}"]
    validation = f"{results.accuracy}/validation"
    tests = [name for name in metrics if is_test(name)] if validation in results.metrics else []
    choosing = [name for name in metrics if name not in tests] + ([validation] if tests else [])
    praises: dict[int, list[str]] = {}  # number of a setting -> the metrics by which it is best
    notes: dict[int, list[str]] = {}
    flattered: list[str] = []
    for metric in dict.fromkeys(choosing):
        rows = means(results, results.settings, [metric]).to_dict("records")
        values = {number: row["mean"] for number, row in enumerate(rows) if row["n"]}
        places = best_in(metric, values)
        if not places:
            continue
        others = f" (as {plural(len(places) - 1, 'other')})" if len(places) > 1 else ""
        praises.setdefault(places[0], []).append(f"{metric} {_cell(rows[places[0]])}{others}")
        if metric == validation:
            scores = (means(results, results.settings, [test]).to_dict("records")[places[0]] for test in tests)
            notes[places[0]] = [
                f"chosen on the validation facts; {score['metric']} {_cell(score)}" for score in scores if score["n"]
            ]
        elif is_test(metric) and len(values) > 1:
            flattered.append(metric)
    text = []
    groups = [group for _, group in results.table.groupby(results.settings, dropna=False)]  # in the order of `means`
    for number, praise in praises.items():
        label = " ".join(f"{key}={shown(groups[number][key].iloc[0])}" for key in results.settings)
        text += ["", f"best {', '.join(praise)}: {label}", f"  {command_of(groups[number], conf_folders)}"]
        text += [f"  {note}" for note in notes.get(number, [])]
    return [*text, "", f"by {', '.join(flattered)}: {FLATTERED}"] if flattered else text


def is_test(metric: str) -> bool:
    """Whether a metric is of facts that are held out to be reported, and not to choose on."""
    return metric.rpartition("/")[2].startswith("test")


def command_of(runs: "pd.DataFrame", conf_folders: list[Path]) -> str:
    """The command that repeats the finished runs of one setting, with all their seeds; or why there is none."""
    runs = runs.loc[runs["state"] == "FINISHED"]
    try:
        path = Path(runs["folder"].iloc[0]) / "result.json"
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        return repeat(config, {key: list(map(shown, runs[key].unique())) for key in _swept_seeds(runs)}, conf_folders)
    except (OSError, ValueError) as error:  # ConfigError is a ValueError: a key of another version
        return f"no command: {error}"


def _swept_seeds(runs: "pd.DataFrame") -> list[str]:
    """The seeds that differ between runs: `seed` where it is that of everything."""
    values = {key: runs[key].tolist() for key in SEEDS}
    differing = [key for key in SEEDS if len({*values[key]}) > 1]
    if differing and all(values[key] == values["seed"] for key in SEEDS):
        return ["seed"]
    return [key for key in differing if key != "seed"]


def repeat(config: dict[str, Any], seeds: dict[str, list[str]], conf_folders: list[Path]) -> str:
    """The command of the run with this config, or of as many as there are combinations of these seeds.

    Raises ConfigError if today's schema does not know the config.
    """
    of_run = command(config, conf_folders)
    if not seeds:
        return of_run
    others = [word for word in shlex.split(of_run)[1:] if word.partition("=")[0] not in seeds]
    return shlex.join(["factdpo", "-m", *others, *(f"{key}={','.join(values)}" for key, values in seeds.items())])


def _cell(row: dict[str, Any]) -> str:
    return as_cell(*(row[name] for name in ("metric", "mean", "low", "high")))
