"""dry_run=true: prints the runs of a command, their cohorts, and estimates of time and memory.

Nothing is trained, and no run is written. Estimates come from finished runs of the same kind. Nothing heavy is imported
but to ask a base that was not asked before, and is on this machine, which engine can train it.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factdpo import console
from factdpo.config.schema import EngineName, Executor, ModelSource, to_dict
from factdpo.models import weights
from factdpo.runs import session, verdict
from factdpo.runs.identity import RunSpec, can_train_together
from factdpo.store import cache, layout
from factdpo.sweep.estimates import Estimate, Stored, estimates, read_stored

HEADINGS = ("id", "state", "engine", "group", "time", "memory", "run")
CACHED = "in cache"  # state of a run to do for which another one has left the weights in the cache
TEXTS = ("generations", "max_new_tokens")  # keys of eval that decide what is continued, and nothing of the training


def print_plan(runs: Sequence[RunSpec]) -> None:
    """Print a table of the runs: id, state, engine, group, estimated time and memory, and name."""
    stored = {out: read_stored(Path(out)) for out in {run.cfg.out for run in runs}}
    states, trained = _states(runs, stored)
    to_do = [run for run in runs if states[run.id] != "FINISHED"]
    _ask_bases(to_do)
    signatures = {
        run.id: cache.signature(can_train_together(run.cfg))
        for run in trained
        if run.trains.engine.name is EngineName.batched
    }
    sizes = Counter(signatures.values())
    numbers = {signature: str(number) for number, signature in enumerate(sizes, start=1)}
    together = {run.id: sizes[signatures[run.id]] if run.id in signatures else 1 for run in trained}
    expected = estimates(trained, stored, together)
    rows: list[tuple[str, ...]] = [HEADINGS]
    for run in runs:
        group, estimate = numbers.get(signatures.get(run.id, ""), "-"), expected.get(run.id)
        time = f"~{console.duration(estimate.seconds)}" if estimate else "-"
        memory = f"~{estimate.peak_gib:.1f} GiB" if estimate and estimate.peak_gib else "-"
        name = run.cfg.label or run.name
        rows.append((run.id, states[run.id], run.trains.engine.name.name, group, time, memory, name))
    _print_table(rows)
    for sizes in dict.fromkeys(", ".join(f"{n} {split}" for split, n in run.sizes.items()) for run in to_do):
        console.say(f"facts: {sizes}")
    for why in dict.fromkeys(run.engine for run in to_do if run.needs_trl):
        console.say(f"engine: {why}", "yellow")
    for note in dict.fromkeys(note for run in runs for note in run.notes):
        console.say(note, "yellow")
    for line in _summary(len(to_do), len(numbers), list(expected.values())):
        console.say(line)


def _ask_bases(runs: list[RunSpec]) -> None:
    """Have each base that is at hand say which engine can train it, once for runs that differ in their splits alone.

    Raises ConfigError for a base that none can. Not asked are nano, which the tests ask, and bases of runs that another
    machine does.
    """
    known = {_question(run): found for run in runs if (found := verdict.stored_verdict(run.asked, run.cfg))}
    for run in runs:
        cfg, question = run.cfg, _question(run)
        if cfg.model.source is ModelSource.nano or cfg.engine.executor is not Executor.local:
            continue
        if question not in known and weights.are_here(weights.locate(cfg.model)):
            with warnings.catch_warnings(action="ignore"):  # of libraries, for a run's log: none is written here
                known[question] = _ask(run)
        if question in known:
            verdict.apply(known[question], run)


def _ask(run: RunSpec) -> verdict.Verdict:
    """What the base of a run says; it is loaded, and nothing of the data is scored."""
    from factdpo.runs.stages import Inputs, Prepared, splits_of, tokenised  # only now: torch

    cfg, ours = run.trains, session.current()
    base = ours.base(cfg)
    checked, splits, notes = splits_of(cfg, base, ours.facts)
    prepared = Prepared(cfg, base, Inputs(cfg.data, checked, splits, tokenised(splits, base, cfg), {}, notes))
    return verdict.verdict(prepared, run.asked, ours.verdicts)


def _question(run: RunSpec) -> str:
    """Equal for runs that ask a base the same, the draw of their splits apart."""
    cfg = run.cfg
    asked = [run.asked["model"], run.asked["data"], to_dict(cfg.data), to_dict(cfg.lora), cfg.dpo.weight_decay > 0]
    return cache.signature([*asked, cfg.engine.name.name, cfg.engine.device, cfg.eval.max_new_tokens])


def _print_table(rows: list[tuple[str, ...]]) -> None:
    """The first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console.say("")
    for number, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.say(line, "" if number else "bold")
    console.say("")


def _summary(to_do: int, groups: int, estimates: list[Estimate | None]) -> list[str]:
    """`estimates` are those of the runs that train."""
    if not to_do:
        return ["dry_run=true: nothing was run; nothing is to do"]
    known = [estimate for estimate in estimates if estimate]
    lines = [f"dry_run=true: nothing was run; {console.plural(to_do, 'run')} to do"]
    if cached := to_do - len(estimates):
        lines[0] += f", {cached} of them without training: the weights are in the cache, or those of another of them"
    if known and len(known) == len(estimates):
        lines[0] += f", about {console.duration(sum(each.seconds for each in known))} in all"
    if groups and len(estimates) > 1:
        lines.append("group: runs with the same number can train together, in cohorts that fit into memory")
    if known:
        most = max(known, key=lambda each: each.examples)
        source = f"{console.plural(most.examples, 'finished run')} of that model and engine in this out"
        lines.append(f"time and memory: as of {source}, which trained {most.together} at a time")
    if len(known) < len(estimates):
        lines.append("time, memory -: unknown until a run of the same model and engine has finished in this out")
    return lines


# ------------------------------------------------------------------------------------------------------ what is there


def _states(runs: Sequence[RunSpec], stored: dict[str, list[Stored]]) -> tuple[dict[str, str], list[RunSpec]]:
    """Id -> state; and the runs to do that train, since neither the cache nor a run before them has their weights."""
    states, trained = {run.id: run.state() for run in runs}, []
    for out, others in stored.items():
        manifests = Path(out).glob(f"cache/adapters/*/{cache.MANIFEST}")
        weights = {sha for path in manifests for sha in (layout.read_json(path) or {}).values()}
        had = {_training(other.asked, other.log_every) for other in others if other.weights & weights}
        coming: set[str] = set()
        for run in (run for run in runs if run.cfg.out == out and states[run.id] != "FINISHED"):
            training = _training(run.asked, run.cfg.track.log_every)
            if training in had:
                states[run.id] = CACHED
            elif training not in coming:
                trained.append(run)
            coming.add(training)
    return states, trained


def _training(asked: dict[str, Any], log_every: int) -> str:
    """Equal for runs that want the same weights: what is continued after the training is nothing to them."""
    config = asked["config"]
    scored = {key: value for key, value in config["eval"].items() if key not in TEXTS}
    return cache.signature([asked | {"config": config | {"eval": scored}}, log_every])
