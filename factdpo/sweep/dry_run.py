"""dry_run=true: prints the runs of a command, their cohorts, and estimates of time and memory.

Nothing is trained or written, and nothing heavy is imported. Estimates come from finished runs of the same kind.
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
from factdpo.config.schema import EngineName, to_dict
from factdpo.runs.identity import RunSpec, can_train_together
from factdpo.store import cache
from factdpo.training.schedule import planned_steps

LATEST = 300  # finished runs that estimates are made from
HEADINGS = ("id", "state", "engine", "group", "time", "memory", "run")


class Example(NamedTuple):
    """What estimates use of a finished run."""

    kind: list[Any]  # equal for runs that can be compared
    together: int  # runs of its cohort
    rank: int
    seconds_per_row: float  # its share of its cohort's training, per pair that a step took
    other_seconds: float  # before and after the training
    peak_gib: float | None  # of its whole cohort


class Estimate(NamedTuple):
    """Expected time and memory of a run: medians over the examples that are most like it."""

    seconds: float
    peak_gib: float | None  # of its whole cohort
    examples: int
    together: int  # runs of the examples' cohorts


def print_plan(runs: Sequence[RunSpec]) -> None:
    """Print a table of the runs: id, state, engine, group, estimated time and memory, and name."""
    states = {run.id: run.state() for run in runs}
    to_do = [run for run in runs if states[run.id] != "FINISHED"]
    signatures = {run.id: cache.signature(can_train_together(run.cfg)) for run in to_do if _batched(run)}
    sizes = Counter(signatures.values())
    numbers = {signature: str(number) for number, signature in enumerate(sizes, start=1)}
    examples = {out: _examples(Path(out)) for out in {run.cfg.out for run in to_do}}
    estimates = {run.id: estimate(run, examples[run.cfg.out], sizes[signatures.get(run.id, "")] or 1) for run in to_do}
    rows: list[tuple[str, ...]] = [HEADINGS]
    for run in runs:
        group, expected = numbers.get(signatures.get(run.id, ""), "-"), estimates.get(run.id)
        time = f"~{console.duration(expected.seconds)}" if expected else "-"
        memory = f"~{expected.peak_gib:.1f} GiB" if expected and expected.peak_gib else "-"
        name = run.cfg.label or run.name
        rows.append((run.id, states[run.id], run.cfg.engine.name.name, group, time, memory, name))
    _print_table(rows)
    for note in dict.fromkeys(note for run in runs for note in run.notes):
        console.console.print(Text(note, "yellow"), soft_wrap=True)
    for line in _summary(to_do, len(numbers), estimates):
        console.console.print(Text(line), soft_wrap=True)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    """The first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console.console.print()
    for number, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.console.print(Text(line, "" if number else "bold"), soft_wrap=True)  # never cut, however narrow
    console.console.print()


def estimate(run: RunSpec, examples: list[Example], together: int) -> Estimate | None:
    """Estimate a run from the examples nearest in cohort size and LoRA rank; None if no example is of its kind.

    `together` is the size of its cohort, itself included.
    """
    dpo, lora = run.cfg.dpo, run.cfg.lora
    alike = [example for example in examples if example.kind == _kind(to_dict(run.cfg), run.asked["model"])]
    if not alike:
        return None

    def distance(example: Example) -> float:
        return abs(math.log2(example.together / together)) + abs(math.log2(example.rank / lora.rank))

    nearest = min(map(distance, alike))
    alike = [example for example in alike if distance(example) == nearest]
    rows = planned_steps(run.sizes["train"], dpo) * dpo.batch_size * dpo.gradient_accumulation_steps
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
    expected = [estimate for estimate in estimates.values() if estimate]
    lines = [f"dry_run=true: nothing was run; {_count(len(to_do), 'run')} to do"]
    if len(expected) == len(to_do):
        lines[0] += f", about {console.duration(sum(each.seconds for each in expected))} in all"
    if groups and len(to_do) > 1:
        lines.append("group: runs with the same number can train together, in cohorts that fit into memory")
    if expected:
        most = max(expected, key=lambda each: each.examples)
        source = f"{_count(most.examples, 'finished run')} of that model and engine in this out"
        lines.append(f"time and memory: as of {source}, which trained {most.together} at a time")
    if len(expected) < len(to_do):
        lines.append("time, memory -: unknown until a run of the same model and engine has finished in this out")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _batched(run: RunSpec) -> bool:
    return run.cfg.engine.name is EngineName.batched


def _examples(out: Path) -> list[Example]:
    """The latest finished runs below `out`, without results that cannot be read or are an older version's."""
    paths = [*out.glob("runs/*/result.json"), *out.glob("sweeps/*/*/result.json")]
    examples = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)[:LATEST]:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["state"] == "FINISHED":
                examples.append(_example(result))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return examples


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
