"""What W&B shows of a run: its config, rows under the names that TRL's own runs have there, and what one compares."""

from typing import Any

from factdpo.config.overrides import decides
from factdpo.config.schema import Config, to_dict
from factdpo.store.history import Row
from factdpo.store.result import OF_NO_SPLIT, accuracy_metric, headline_row, summary, without_equal_lengths

STEP = "train/global_step"  # the axis of every curve, as transformers' callback has it
AXES = (STEP, "train/epoch")  # to draw curves over, and no curves themselves
# Curves that stand in the summary, with their last and their highest value; of all others the table has the end.
SUMMED = ("loss", "accuracies", "margins", "accuracy", "accuracy_per_token")
# Beside accuracies on every split: what is compared on the facts trained on and on those held out.
COMPARED = ("reward_accuracy", "greedy_accuracy", "margin_nats", "p_other")
SPLITS = ("train", "validation", "test")
NAMES = ("model.name",)  # keys that decide no number, and without which nobody knows a run


def config_of(cfg: Config, run_id: str) -> Row:
    """The run's id and config, nested, less the keys that only place, name or repeat a run."""

    def kept(values: Row, above: str) -> Row:
        row: Row = {}
        for key, value in values.items():
            name = f"{above}{key}"
            if isinstance(value, dict) and (inner := kept(value, f"{name}.")):
                row[key] = inner
            elif not isinstance(value, dict) and (decides(name) or name in NAMES):
                row[key] = value
        return row

    return {"id": run_id, **kept(to_dict(cfg), "")}


def row_of(row: Row) -> Row:
    """A row of the history: `step` is `train/global_step`, and `train/` stands before all but `eval/`."""
    names = {"step": STEP}
    return {names.get(name) or (name if name.startswith("eval/") else f"train/{name}"): v for name, v in row.items()}


def summary_of(metric: str) -> str | None:
    """How a curve of this name in W&B is summed up there; None: its last value."""
    last = metric.rpartition("/")[2]
    if last not in SUMMED:
        return "none"
    return "last,max" if last.startswith("accurac") else None


def compared(result: Row) -> Row:
    """The few numbers of a result that one compares between runs."""
    every = summary(result)
    accuracies = {"accuracy", accuracy_metric([headline_row(result)])}
    names = ["state"]
    for split in result.get("trained") or {}:
        names += [f"{prefix}{metric}/{split}" for metric in sorted(accuracies) for prefix in ("", "base/")]
        names += [f"{metric}/{split}" for metric in COMPARED if split in SPLITS]
    names += [name for name in every if name.startswith("across/")]
    names += ["base/across/retention_nats_per_token", "timing/total_seconds", "training/peak_gib"]
    return {name: every[name] for name in names if name in every}


def scores(result: Row) -> list[list[Any]]:
    """Every score of a result, a row each: number, split, and its value for the base and for the trained model.

    A baseline is neither: its value stands in the trained model's place.
    """
    every = without_equal_lengths(summary(result))
    names = dict.fromkeys(name.removeprefix("base/") for name in every if "/" in name)
    return [[*_number_and_split(name), every.get(f"base/{name}"), every.get(name)] for name in names]


def _number_and_split(name: str) -> tuple[str, str]:
    number, _, split = name.rpartition("/")
    return (name, "") if name.startswith(OF_NO_SPLIT) else (number, split)


SCORES = ["number", "split", "base", "trained"]  # columns of `scores`
