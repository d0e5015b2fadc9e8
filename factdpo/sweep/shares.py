"""The runs of a command, cut into shares of about equal work, one for each worker."""

import statistics
from pathlib import Path

from factdpo.config.schema import to_dict
from factdpo.models import weights
from factdpo.runs.identity import RunSpec, cohorts
from factdpo.store import cache
from factdpo.sweep.estimates import estimates, read_stored, sizes_of, work_of
from factdpo.training.schedule import steps_of_run


def cut(specs: list[RunSpec], workers: int, costs: dict[str, float] | None = None) -> list[list[RunSpec]]:
    """At most so many shares, none of them empty; all runs are to do. `costs`: id -> what a run costs, as `costs_of`.

    The runs are put in line as one process would train them, cohort by cohort and in each the longest first, and the
    line is cut into equal parts of work: so at most workers - 1 cohorts are divided, and runs on a base stay together.
    """
    line = [spec for cohort in cohorts(specs) for spec in sorted(cohort, key=lambda spec: -steps_of(spec))]
    work = [_passes(spec) if costs is None else costs[spec.id] for spec in line]
    shares: list[list[RunSpec]] = [[] for _ in range(workers)]
    before = 0.0
    for spec, of_run in zip(line, work, strict=True):
        shares[int(workers * (before + of_run / 2) / sum(work))].append(spec)
        before += of_run
    return [share for share in shares if share]


def costs_of(specs: list[RunSpec], workers: int) -> dict[str, float]:
    """Id -> what a run costs: the seconds that finished runs of its kind tell, else by passes and the model's size.

    A forward pass of a pair takes time in proportion to the parameters (2 FLOPs each a token, arXiv 2001.08361, 2.1);
    where the seconds of some runs are known, those of the others are in proportion to theirs.
    """
    together = {spec.id: max(1, len(cohort) // workers) for cohort in cohorts(specs) for spec in cohort}
    stored = {out: read_stored(Path(out)) for out in {spec.cfg.out for spec in specs}}
    expected = {id: each.seconds for id, each in estimates(specs, stored, together).items() if each is not None}
    model_of = {spec.id: cache.signature(to_dict(spec.cfg.model)) for spec in specs}
    models = {model_of[spec.id]: spec.cfg.model for spec in specs}
    sizes = {name: weights.size_bytes(weights.locate(model)) for name, model in models.items()}
    usual = statistics.median([size for size in sizes.values() if size] or [1])
    by_size = {spec.id: _passes(spec) * float(sizes[model_of[spec.id]] or usual) for spec in specs}
    rate = statistics.median([expected[id] / by_size[id] for id in expected] or [1.0])
    return {id: expected.get(id, work * rate) for id, work in by_size.items()}


def steps_of(spec: RunSpec) -> int:
    """The optimizer steps that a run to do has."""
    return steps_of_run(spec.sizes["train"], spec.cfg)


def _passes(spec: RunSpec) -> int:
    """Forward passes of pairs that a run takes."""
    work = work_of(sizes_of(spec), spec.cfg.dpo, spec.cfg.eval, steps_of(spec))
    return work.training + work.scored
