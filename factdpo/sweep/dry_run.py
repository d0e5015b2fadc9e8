"""dry_run=true: the runs that a command asks for, which of them would train together, and what they may take.

Nothing is trained, written or imported that is heavy. What they may take is told from finished runs like them.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.text import Text

from factdpo import console
from factdpo.config.schema import EngineName, Orientation, to_dict
from factdpo.runs.identity import RunSpec, can_train_together
from factdpo.store import cache
from factdpo.training.schedule import planned_steps

LATEST = 300  # finished runs that estimates are made from
HEADINGS = ("id", "state", "engine", "group", "time", "memory", "run")


class Example(NamedTuple):
    """A finished run, as far as it tells what others may take."""

    kind: list[Any]  # what runs must share for that
    together: int  # runs of its batch
    rank: int
    seconds_per_row: float  # its share of its batch's training, per pair that a step took
    other_seconds: float  # before and after the training
    peak_gib: float | None  # of its whole batch


class Estimate(NamedTuple):
    """What a run may take: the medians of the examples that are most like it."""

    seconds: float
    peak_gib: float | None  # of its whole batch
    examples: int
    together: int  # runs of the examples' batches


def print_plan(runs: Sequence[RunSpec]) -> None:
    """The runs in a table: id, state, engine, the group it would train with, about what it takes, and what it is."""
    states = {run.id: run.state() for run in runs}
    to_do = [run for run in runs if states[run.id] != "FINISHED"]
    signatures = {run.id: cache.signature(can_train_together(run.cfg)) for run in to_do if _batched(run)}
    sizes = Counter(signatures.values())
    numbers = {signature: str(number) for number, signature in enumerate(sizes, start=1)}
    examples = {out: _examples(Path(out)) for out in {run.cfg.out for run in to_do}}
    estimates = {run.id: estimate(run, examples[run.cfg.out], sizes[signatures.get(run.id, "")] or 1) for run in to_do}
    rows: list[tuple[str, ...]] = [HEADINGS]
    for run in runs:
        group, found = numbers.get(signatures.get(run.id, ""), "-"), estimates.get(run.id)
        time = f"~{console.duration(found.seconds)}" if found else "-"
        memory = f"~{found.peak_gib:.1f} GiB" if found and found.peak_gib else "-"
        what = run.cfg.label or run.name
        rows.append((run.id, states[run.id], run.cfg.engine.name.name, group, time, memory, what))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console.console.print()
    for number, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.console.print(Text(line, "" if number else "bold"), soft_wrap=True)  # never cut, however narrow
    console.console.print()
    for line in _summary(to_do, len(numbers), estimates):
        console.console.print(Text(line), soft_wrap=True)


def estimate(run: RunSpec, examples: list[Example], together: int) -> Estimate | None:
    """From the examples that trained with most nearly as many runs and most nearly its rank; None without any.

    `together` is how many runs would train with it, itself included.
    """
    dpo, lora = run.cfg.dpo, run.cfg.lora
    alike = [example for example in examples if example.kind == _kind(to_dict(run.cfg), run.asked["model"])]
    if not alike:
        return None

    def distance(example: Example) -> float:
        return abs(math.log2(example.together / together)) + abs(math.log2(example.rank / lora.rank))

    nearest = min(map(distance, alike))
    alike = [example for example in alike if distance(example) == nearest]
    pairs = run.cfg.split.train * (2 if run.cfg.split.orientation is Orientation.both else 1)
    rows = planned_steps(pairs, dpo) * dpo.batch_size * dpo.gradient_accumulation_steps
    peaks = [example.peak_gib for example in alike if example.peak_gib is not None]
    return Estimate(
        statistics.median(example.seconds_per_row * rows + example.other_seconds for example in alike),
        statistics.median(peaks) if peaks else None,
        len(alike),
        alike[0].together,
    )


def _summary(to_do: list[RunSpec], groups: int, estimates: dict[str, Estimate | None]) -> list[str]:
    if not to_do:
        return ["dry_run=true: nothing was run; nothing is to do"]
    count = f"{len(to_do)} run{'s' * (len(to_do) > 1)} to do"
    known = [found for found in estimates.values() if found]
    said = [f"dry_run=true: nothing was run; {count}"]
    if len(known) == len(to_do):
        said[0] += f", about {console.duration(sum(found.seconds for found in known))} in all"
    if groups and len(to_do) > 1:
        said.append("group: runs with the same number can train together, in batches that fit into memory")
    if known:
        most = max(known, key=lambda found: found.examples)
        of = f"{most.examples} finished run{'s' * (most.examples > 1)} of that model and engine in this out"
        said.append(f"time and memory: as of {of}, which trained {most.together} at a time")
    if len(known) < len(to_do):
        said.append(
            "time, memory -: this out has no finished run of the same model and engine; the first one gives them"
        )
    return said


def _batched(run: RunSpec) -> bool:
    return run.cfg.engine.name is EngineName.batched


def _examples(out: Path) -> list[Example]:
    """The latest finished runs below `out`; a result that cannot be read, or is an older version's, is no example."""
    paths = [*out.glob("runs/*/result.json"), *out.glob("sweeps/*/*/result.json")]
    found = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)[:LATEST]:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["state"] == "FINISHED":
                found.append(_example(result))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _example(result: dict[str, Any]) -> Example:
    config, training, timing = result["config"], result["training"], result["timing"]
    rows = training["steps"] * config["dpo"]["batch_size"] * config["dpo"]["gradient_accumulation_steps"]
    return Example(
        _kind(config, result["asked"]["model"]),
        training["trained_together"],
        config["lora"]["rank"],
        timing["train_seconds"] / training["trained_together"] / rows,
        timing["reference_seconds"] + timing["score_seconds"],
        training["peak_gib"],
    )


def _kind(config: dict[str, Any], model: dict[str, Any]) -> list[Any]:
    engine = config["engine"]
    return [model, engine["name"], engine["device"], config["lora"]["method"], config["dpo"]["bf16"]]
