"""Where a search draws its settings from: Optuna's distributions, by config key."""

from collections.abc import Iterator

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from factdpo.overrides import typed

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]  # of choices each is a text in Hydra's grammar

DIGITS = 4  # of a number drawn from an interval: what tables show is what ran


def words(distribution: Distribution) -> str:
    """A distribution as people read it: `0.01 to 1, log`, `8, 16, 32` or `2 to 8 in steps of 2`."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    usual = 1 if isinstance(distribution, IntDistribution) else None
    steps = "" if distribution.step == usual else f" in steps of {typed(distribution.step)}"
    ends = f"{typed(distribution.low)} to {typed(distribution.high)}"
    return f"{ends}{steps}{', log' if distribution.log else ''}"


def text(distribution: Distribution, value: str | int | float) -> str:
    """A drawn value as it is run, in Hydra's grammar."""
    if not isinstance(distribution, FloatDistribution):
        return str(value)
    digits = DIGITS if distribution.step is None else 12  # a multiple of a step is not exact in binary
    rounded = float(f"{value:.{digits}g}")
    return typed(min(max(rounded, distribution.low), distribution.high))


def edges(space: Space) -> Iterator[dict[str, str]]:
    """Settings that between them have both ends of each range and every choice, the other keys at their first."""
    ends: dict[str, list[str]] = {}
    for key, of in space.items():
        values = of.choices if isinstance(of, CategoricalDistribution) else (of.low, of.high)
        ends[key] = [text(of, value) for value in values if isinstance(value, str | int | float)]
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        yield from (first | {key: value} for value in values[1:])
