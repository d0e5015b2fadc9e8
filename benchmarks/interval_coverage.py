"""How often does the 95 % interval of a setting's mean accuracy hold the truth? 1,000 simulated sweeps per line.

    python benchmarks/interval_coverage.py [simulations]        ~2 min on one core; result: LOG.md, 2026-11-26

A run has its own accuracy, drawn from a beta distribution with mean p and standard deviation `sd` over seeds. It
answers n facts, which are `drawn` for each seed, the `same` for all, or `overlap` as 561 of 861 facts drawn for each
seed do. A fact is easier or harder for all runs alike: a run gets it right where sqrt(1/2) of the fact's normal score
plus sqrt(1/2) of its own is below the quantile of the run's accuracy. The truth is p.

`with facts` is the interval of factdpo/results/intervals.py; `counts` is the same without the facts of each run, as
where items.parquet is gone; `Student` is the mean -+ t sd / sqrt(S) that it has replaced. Widths are medians.
"""

import sys
from collections.abc import Iterator

import numpy as np
from scipy.special import ndtri, stdtrit

from factdpo.results.intervals import Answers, share_interval

OVERLAP = 561 / 861
SHARED = 0.5  # of the variance of a fact's normal score, the part that all runs share


def main(simulations: int) -> None:
    """Print the table."""
    print("   p    sd     n  seeds  facts    with facts  width  counts  width  Student  width")
    for p in (0.5, 0.9, 1.0):
        for sd in (0.0, 0.03, 0.1) if p < 1 else (0.0,):
            for n in (20, 100, 561):
                for seeds in (2, 3, 10):
                    for facts in ("drawn", "same", "overlap") if n == 561 else ("drawn", "same"):
                        line(p, sd, n, seeds, facts, simulations)


def line(p: float, sd: float, n: int, seeds: int, facts: str, simulations: int) -> None:
    settings = list(sweeps(p, sd, n, seeds, facts, simulations))
    shares = np.array([[run.right.mean() for run in runs] for runs in settings])
    half = stdtrit(seeds - 1, 0.975) * shares.std(axis=1, ddof=1) / seeds**0.5
    methods = (
        np.array([share_interval(row, [n] * seeds, runs) for row, runs in zip(shares.tolist(), settings, strict=True)]),
        np.array([share_interval(row, [n] * seeds) for row in shares.tolist()]),
        np.column_stack([shares.mean(axis=1) - half, shares.mean(axis=1) + half]),
    )
    cells = []
    for room, found in zip((11, 6, 7), methods, strict=True):
        covered = (found[:, 0] <= p + 1e-9) & (found[:, 1] >= p - 1e-9)
        cells.append(f"{100 * covered.mean():>{room}.1f}  {np.median(found[:, 1] - found[:, 0]):5.2f}")
    print(f"{p:4.1f}  {sd:4.2f}  {n:4d}  {seeds:5d}  {facts:7s} {'  '.join(cells)}", flush=True)


def sweeps(p: float, sd: float, n: int, seeds: int, facts: str, simulations: int) -> Iterator[list[Answers]]:
    """One setting of each simulated sweep: its runs' answers."""
    rng = np.random.default_rng(0)
    size = p * (1 - p) / sd**2 - 1 if sd else 0.0  # of the beta distribution with this mean and deviation
    pool = {"drawn": n * seeds, "same": n, "overlap": round(n / OVERLAP)}[facts]
    for _ in range(simulations):
        accuracies = rng.beta(p * size, (1 - p) * size, seeds) if sd else np.full(seeds, p)
        shared = rng.standard_normal(pool)
        runs = []
        for seed, accuracy in enumerate(accuracies):
            asked = rng.permutation(pool)[:n] if facts == "overlap" else np.arange(n) + seed * n * (facts == "drawn")
            score = SHARED**0.5 * shared[asked] + (1 - SHARED) ** 0.5 * rng.standard_normal(n)
            runs.append(Answers(asked, score < ndtri(accuracy)))
        yield runs


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
