"""The runs of a command, cut into shares of about equal work, one for each worker."""

from factdpo.runs.identity import RunSpec, cohorts
from factdpo.sweep.estimates import sizes_of, work_of
from factdpo.training.schedule import steps_of_run


def cut(specs: list[RunSpec], workers: int) -> list[list[RunSpec]]:
    """At most so many shares, none of them empty; all runs are to do.

    The runs are put in line as one process would train them, cohort by cohort and in each the longest first, and the
    line is cut into equal parts of work: so at most workers - 1 cohorts are divided, and runs on a base stay together.
    """
    line = [spec for cohort in cohorts(specs) for spec in sorted(cohort, key=lambda spec: -steps_of(spec))]
    work = [_work(spec) for spec in line]
    shares: list[list[RunSpec]] = [[] for _ in range(workers)]
    before = 0
    for spec, of_run in zip(line, work, strict=True):
        shares[int(workers * (before + of_run / 2) / sum(work))].append(spec)
        before += of_run
    return [share for share in shares if share]


def steps_of(spec: RunSpec) -> int:
    """The optimizer steps that a run to do has."""
    return steps_of_run(spec.sizes["train"], spec.cfg)


def _work(spec: RunSpec) -> int:
    """What a run costs, in forward passes of pairs."""
    work = work_of(sizes_of(spec), spec.cfg.dpo, spec.cfg.eval, steps_of(spec))
    return work.training + work.scored
