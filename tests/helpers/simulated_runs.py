"""Trainings, scorings and continuations on the simulated device and on the CPU, as one JSON object on standard output.

    python -m tests.helpers.simulated_runs <folder>

A process of its own, since the simulated device is for good (tests/helpers/simulated_device.py).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from factdpo.evaluation.generation import continuations, retention_nats_per_token
from factdpo.models.base import Base
from factdpo.models.scoring import pair_logps
from factdpo.store.history import Row
from factdpo.training.batched import capacity
from factdpo.training.batched import engine as batched
from factdpo.training.batched.cohort import Cohort
from factdpo.training.engine import Member, Trained
from tests.helpers.simulated_device import Device, moved_there
from tests.helpers.tiny import tiny_base, tiny_config, tiny_pairs

RUNS = 4


def members(rows: list[Row], **changes: Any) -> list[Member]:
    """Runs of other ranks, lengths and seeds, every second one with dropout, scored on the way."""
    made = []
    for number in range(RUNS):
        cfg = tiny_config(
            lora_rank=2 + number, lora_dropout=0.2 * (number % 2), dpo_seed=number, dpo_max_steps=2 + number // 2,
            eval_every="2", engine_max_tokens=512, **changes,
        )  # fmt: skip
        pairs, curve = tiny_pairs(12, longest=3, seed=number), {"test": tiny_pairs(5, longest=2, seed=9)}
        refs = pair_logps(tiny_base().model, pairs, 64)

        def describe(scores: Any) -> Row:
            return {"eval": scores["test"].chosen.mean().item()}

        def record(*new: Row, number: int = number) -> None:
            rows.extend({"run": number, **row, "time_seconds": 0.0} for row in new)

        made.append(Member(str(number), cfg, pairs, refs, curve, describe, record))
    return made


def train(base: Base, folder: Path, **changes: Any) -> dict[str, Any]:
    """The histories of the runs, how each ended, and the scores of what it learned by another way through the code."""
    rows: list[Row] = []
    ended: dict[str, Any] = {}
    for group in batched.fit_many(base, members(rows, **changes), folder / "batches"):
        for member, ending in group:
            ended[member.key] = ending if isinstance(ending, Trained) else repr(ending)
    together = [e.facts["trained_together"] if isinstance(e, Trained) else e for _, e in sorted(ended.items())]
    return {"rows": sorted(rows, key=lambda row: (row["run"], row["step"], len(row))), "together": together} | {
        "sums": [
            sum(weight.double().sum().item() for pair in e.weights.layers.values() for weight in pair)  # type: ignore
            for _, e in sorted(ended.items())
            if isinstance(e, Trained)
        ]
    }


def speak(base: Base) -> dict[str, Any]:
    """Greedy continuations, retention, and the plain scoring of pairs."""
    return {
        "says": continuations(base.model, base, [[5, 6, 7], [8, 9]], 4),
        "retention": retention_nats_per_token(base.model, base)[0],
        "scores": pair_logps(base.model, tiny_pairs(5, longest=3), 2).chosen.tolist(),
    }


@contextmanager
def steps_watched(device: Device, steps: list[dict[str, Any]]) -> Iterator[None]:
    """Note what crosses the bus in each step of a cohort, for as long as the context lasts."""
    own = Cohort.step

    def step(self: Cohort) -> None:
        reads, copies = len(device.reads), len(device.to_device)
        own(self)
        steps.append({"reads": device.reads[reads:], "copies": len(device.to_device) - copies})

    Cohort.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Cohort.step = own  # type: ignore[method-assign]


def on_device(run: Callable[[Base], dict[str, Any]], memory_bytes: float = float("inf"), **base: Any) -> dict[str, Any]:
    """What a run says of the base on a device with so much memory, and what crossed the bus in its steps."""
    there = tiny_base(**base)
    steps: list[dict[str, Any]] = []
    with Device(memory_bytes) as device, steps_watched(device, steps):
        moved_there(there.model)
        capacity.free_bytes = lambda _: int(min(device.memory_bytes, 2**40) - device.used_bytes)  # type: ignore
        weights = device.used_bytes
        return run(there) | {"steps": steps, "base_bytes": weights, "peak_bytes": device.peak_bytes}


def main(folder: Path) -> None:
    generator = torch.Generator
    torch.Generator = lambda device="cpu": generator()  # type: ignore  # a backend in Python has no random numbers
    free = capacity.free_bytes
    said: dict[str, Any] = {"cpu": train(tiny_base(), folder / "cpu"), "cpu_says": speak(tiny_base())}
    said["device"] = on_device(lambda base: train(base, folder / "device"))
    said["device_says"] = on_device(speak)
    said["bf16"] = on_device(lambda base: train(base, folder / "bf16", dpo_bf16=True), dtype=torch.bfloat16)
    whole, of_base = said["device"]["peak_bytes"], said["device"]["base_bytes"]
    part = of_base + (whole - of_base) * 6 // 10
    said["planned"] = on_device(lambda base: train(base, folder / "planned"), part) | {"memory_bytes": part}
    plan, batched.runs_at_once = batched.runs_at_once, lambda base, runs: len(runs)
    said["unplanned"] = on_device(lambda base: train(base, folder / "unplanned"), part)
    batched.runs_at_once, capacity.free_bytes = plan, free
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
