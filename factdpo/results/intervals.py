"""95 % intervals: of the mean of a share over runs, which holds facts and seeds, and Student's for other numbers."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Z = 1.959964  # 97.5 % point of the normal distribution
NONE = (math.nan, math.nan)


@dataclass(frozen=True)
class Answers:
    """One run's answers on one split."""

    facts: "np.ndarray"  # [N] int, the fact of each answer; runs that share a number were asked the same fact
    right: "np.ndarray"  # [N] bool


def wilson(share: float, n: int | float, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a share of n (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4); n may be a fraction."""
    z2 = z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # holds share in spite of rounding


def share_interval(shares: list[float], sizes: list[int], answers: list[Answers] | None = None) -> tuple[float, float]:
    """The 95 % interval of the mean of a share over runs that differ in their seed only, within [0, 1].

    `shares` has a value per run, `sizes` the number of facts that it is a share of, `answers` the facts themselves. It
    speaks of other facts and of other seeds. From one run it is Wilson's, which knows nothing of other seeds.

    Wilson's interval at the effective number of facts z^2 p (1 - p) / half^2 (as Kott and Carr 1997 do for surveys),
    where half^2 adds up both sources, each with its own quantile (Howe 1974):

        half^2 = max(t^2 s^2 / S + z^2 C, z^2 V)

    s^2 is the variance of the S runs' shares, t Student's quantile with S - 1 degrees of freedom. V is the variance of
    the mean if seeds added nothing, clustered by fact (`variance_over_facts`), and C >= 0 its part from facts that
    several runs share, which s^2 does not see. So it is never narrower than facts alone make it. The effective number
    is at least S, since no variance of a share is above p (1 - p), and the mean number of facts of a run where all
    answers are right or all wrong. Without `answers` the runs are taken to share all facts and to answer them alike,
    which is the widest. Coverage: benchmarks/interval_coverage.py.
    """
    from scipy.special import stdtrit

    count = len(shares)
    mean = sum(shares) / count
    size = sum(sizes) / count
    if count == 1 or not 0 < mean < 1:
        return wilson(mean, size)
    within = sum(share * (1 - share) / n for share, n in zip(shares, sizes, strict=True)) / count**2
    alone, shared = within, (count - 1) * within
    if answers is not None:
        alone, shared = variance_over_facts(answers, [1 / count] * count)
        shared = min(max(0.0, shared), (count - 1) * alone)
    of_seeds = sum((share - mean) ** 2 for share in shares) / (count - 1) / count
    half2 = max(float(stdtrit(count - 1, 0.975)) ** 2 * of_seeds + Z * Z * shared, Z * Z * (alone + shared))
    return wilson(mean, max(count, Z * Z * mean * (1 - mean) / half2))


def variance_over_facts(answers: list[Answers], weights: list[float]) -> tuple[float, float]:
    """The variance of a weighted sum of runs' shares over other facts, seeds as given, in two parts.

    The first takes each run's facts to be its own. The second is what facts that several runs were asked add to it; it
    is negative where they cancel out, as in the difference of two runs. Each fact is a cluster of all answers on it
    (Cameron, Gelbach and Miller 2011).
    """
    import numpy as np
    import pandas as pd

    residuals, numbers = [], []
    for number, (run, weight) in enumerate(zip(answers, weights, strict=True)):
        n = len(run.right)
        right = np.count_nonzero(run.right) / n
        residuals.append((run.right - right) * weight / math.sqrt(n * max(1, n - 1)))
        numbers.append(np.full(n, number))
    fact, residual = pd.factorize(np.concatenate([run.facts for run in answers]))[0], np.concatenate(residuals)
    of_fact = np.bincount(fact, residual)
    of_fact_in_run = np.bincount(fact * len(answers) + np.concatenate(numbers), residual)
    alone = float(of_fact_in_run @ of_fact_in_run)
    return alone, float(of_fact @ of_fact) - alone


def student_interval(mean: float, sd: float, n: int) -> tuple[float, float]:
    """mean -+ t(0.975, n - 1) sd / sqrt(n) (NIST/SEMATECH e-Handbook, 1.3.5.2), over other seeds; NaN from one run."""
    from scipy.special import stdtrit

    if n < 2:
        return NONE
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return mean - half, mean + half


def with_interval(value: float, low: float, high: float, sign: str = "", digits: int = 2) -> str:
    """`0.97 [0.95, 0.98]`, or the value alone where low is NaN; `sign` is `+` for a difference.

    As many more digits as keep the ends apart, and on the side of 0 on which they are: the text says what the numbers
    decide.
    """
    if math.isnan(low):
        return plain(value, sign, digits)
    while digits < 6 and not _faithful(low, high, digits):
        digits += 1
    return f"{plain(value, sign, digits)} [{plain(low, sign, digits)}, {plain(high, sign, digits)}]"


def plain(value: float, sign: str = "", digits: int = 2) -> str:
    """The number with two decimals, and no minus before zero."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def _faithful(low: float, high: float, digits: int) -> bool:
    """Whether the rounded ends are apart where the ends are, and each is zero only if it is."""
    ends = {low: round(low, digits), high: round(high, digits)}
    apart = low == high or ends[low] < ends[high]
    return apart and all((rounded == 0) == (end == 0) for end, rounded in ends.items())
