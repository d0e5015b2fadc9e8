"""Estimates of a run's time and memory, from finished runs in the same `out`. Light: imports no torch."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factdpo.config.schema import Boundary, DpoConfig, EvalConfig, to_dict
from factdpo.runs.identity import RunSpec
from factdpo.store import cache
from factdpo.store.result import AS_TRAINED, record_or_none
from factdpo.training.schedule import planned_steps, steps_of_run, steps_per_epoch

LATEST = 300  # finished runs that estimates are made from
STEP = 3  # a pair in a training step costs so many forward passes: the backward pass takes two (arXiv:2001.08361, 2.1)


@dataclass(frozen=True)
class Work:
    """What a run computes, in pairs."""

    training: int  # forward passes of pairs in training, its evaluations included
    scored: int  # pairs of all its splits, which the trained model scores


@dataclass(frozen=True)
class Example:
    """What estimates use of a finished run."""

    kind: list[Any]  # equal for runs that can be compared
    together: int  # runs of its batch
    rank: int
    work: Work
    train_seconds: float  # its share of its batch; 0 if the cache had its weights
    score_seconds: float
    peak_gib: float | None  # of its whole batch


@dataclass(frozen=True)
class Stored:
    """A finished run in the same `out`."""

    asked: dict[str, Any]
    example: Example
    log_every: int
    weights: set[str]  # sha256 of the files


@dataclass(frozen=True)
class Estimate:
    """Expected time and memory of a run: medians over the examples that are most like it."""

    seconds: float
    peak_gib: float | None  # of its whole batch
    examples: int
    together: int  # runs of the examples' batches


def read_stored(out: Path) -> list[Stored]:
    """The latest finished runs below `out`, without those that cannot be read or are an older version's."""
    paths = [*out.glob("runs/*/result.json"), *out.glob("sweeps/*/*/result.json")]
    runs = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)[:LATEST]:
        try:
            result = record_or_none(path.parent)
            if result is not None and result["state"] == "FINISHED":
                asked = json.loads((path.parent / "asked.json").read_text(encoding="utf-8"))
                runs.append(Stored(asked, _example(result), result["config"]["track"]["log_every"], _weights(result)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return runs


def estimates(
    runs: list[RunSpec], stored: dict[str, list[Stored]], together: dict[str, int]
) -> dict[str, Estimate | None]:
    """Id -> estimate of these runs, which all train; `together` is the size of each one's batch."""
    scored = {out: {_inputs(other.asked) for other in others} for out, others in stored.items()}  # by the base
    expected = {}
    for run in runs:
        inputs, out = _inputs(run.asked), run.cfg.out
        work = work_of(sizes_of(run), run.cfg.dpo, run.cfg.eval, steps_of_run(run.sizes["train"], run.cfg))
        by_base = 0 if inputs in scored[out] else work.scored
        scored[out].add(inputs)
        examples = [other.example for other in stored[out]]
        expected[run.id] = estimate(run, work, by_base, examples, together[run.id])
    return expected


def _inputs(asked: dict[str, Any]) -> str:
    """Equal for runs on the same pairs and the same base, which scores them once."""
    config = asked["config"]
    return cache.signature([asked["data"], asked["model"], config["data"], config["split"], config["model"]])


def estimate(run: RunSpec, work: Work, by_base: int, examples: list[Example], together: int) -> Estimate | None:
    """Estimate a run from the examples most like it; None if there is none of its kind.

    `by_base` are the pairs that the base scores for it, `together` is the size of its batch, itself included. Training
    is estimated from batches of like size, and of these from the nearest rank; scoring from runs with like many pairs.
    """
    kind, rank = _kind(to_dict(run.trains), run.asked["model"]), run.cfg.lora.rank
    alike = [example for example in examples if example.kind == kind and example.train_seconds > 0]
    if not alike:
        return None
    scored = _nearest(alike, lambda one: (_octaves(one.work.scored, work.scored), 0.0))
    trained = _nearest(alike, lambda one: (_octaves(one.together, together), abs(math.log2(one.rank / rank))))
    per_pair = statistics.median(one.score_seconds / one.work.scored for one in scored)
    per_pass = statistics.median(one.train_seconds / one.work.training for one in trained)
    peaks = [one.peak_gib for one in trained if one.peak_gib is not None]
    return Estimate(
        per_pass * work.training + per_pair * (work.scored + by_base),
        statistics.median(peaks) if peaks else None,
        len(trained),
        trained[0].together,
    )


def _nearest(examples: list[Example], distance: Callable[[Example], tuple[int, float]]) -> list[Example]:
    nearest = min(map(distance, examples))
    return [example for example in examples if distance(example) == nearest]


def _octaves(a: int, b: int) -> int:
    """How often one of two numbers is to be doubled to be about the other."""
    return round(abs(math.log2(a / b)))


def work_of(sizes: dict[str, int], dpo: DpoConfig, eval: EvalConfig, steps: int | None = None) -> Work:
    """What a run computes on splits of these sizes, in `steps` optimizer steps or as many as are planned."""
    pairs = sizes.get(AS_TRAINED, sizes["train"])
    steps = planned_steps(pairs, dpo) if steps is None else steps
    often = {"never": 0, "epoch": math.ceil(steps / steps_per_epoch(pairs, dpo))}
    evaluations = often[eval.every] if eval.every in often else steps // int(eval.every)
    curves = evaluations * sum(min(size, eval.max_facts) for size in sizes.values())
    return Work(STEP * steps * dpo.batch_size * dpo.gradient_accumulation_steps + curves, sum(sizes.values()))


def sizes_of(run: RunSpec) -> dict[str, int]:
    """Pairs of each split of a run that is to do."""
    return run.sizes | ({AS_TRAINED: run.sizes["train"]} if run.cfg.data.boundary is Boundary.none else {})


def _example(result: dict[str, Any]) -> Example:
    config, training, timing = result["config"], result["training"], result["timing"]
    sizes = {split: scores["n"] for split, scores in result["trained"].items()}
    dpo = DpoConfig(**{key: config["dpo"][key] for key in ("batch_size", "gradient_accumulation_steps")})
    of_eval = EvalConfig(**{key: config["eval"][key] for key in ("every", "max_facts")})
    return Example(
        _kind(config, result["asked"]["model"], result.get("engine")),
        training["trained_together"],
        config["lora"]["rank"],
        work_of(sizes, dpo, of_eval, training["steps"]),
        timing["train_seconds"] if "batch_seconds" in timing else 0.0,  # an older record has its batch's
        timing["score_seconds"],
        training["peak_gib"],
    )


def _kind(config: dict[str, Any], model: dict[str, Any], trained_by: str | None = None) -> list[Any]:
    """`trained_by`: the engine of a record, which is not the config's where the base needed TRL."""
    engine = config["engine"]
    name = trained_by.split()[0] if trained_by else engine["name"]
    alike = [engine["device"], engine.get("processes", 1), config["lora"]["method"], config["dpo"]["bf16"]]
    return [model, name, *alike]


def _weights(result: dict[str, Any]) -> set[str]:
    """sha256 of a finished run's weights."""
    return {sha for name, sha in result["files"].items() if name.endswith(".safetensors")}
