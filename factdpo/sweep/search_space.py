"""Where a search draws its settings from: Optuna's distributions, by config key."""

from collections.abc import Iterator

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from factdpo.config.overrides import typed

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]  # of choices each is a text in Hydra's grammar

BETWEEN = 0.3819  # of the way from one end of a range to the other
DIGITS = 4  # of a number drawn from an interval: what tables show is what ran


def words(distribution: Distribution) -> str:
    """A distribution as people read it: `0.01 to 1, log`, `8, 16, 32` or `2 to 8 in steps of 2`."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(values(distribution))
    usual = 1 if isinstance(distribution, IntDistribution) else None
    steps = "" if distribution.step == usual else f" in steps of {typed(distribution.step)}"
    ends = f"{typed(distribution.low)} to {typed(distribution.high)}"
    return f"{ends}{steps}{', log' if distribution.log else ''}"


def values(distribution: Distribution) -> list[str]:
    """The choices, or a range in words: what sweep.json says was swept."""
    choices = isinstance(distribution, CategoricalDistribution)
    return [str(choice) for choice in distribution.choices] if choices else [words(distribution)]


def text(distribution: Distribution, value: str | int | float) -> str:
    """A drawn value as it is run, in Hydra's grammar."""
    if not isinstance(distribution, FloatDistribution):
        return str(value)
    digits = DIGITS if distribution.step is None else 12  # a multiple of a step is not exact in binary
    rounded = float(f"{value:.{digits}g}")
    return typed(min(max(rounded, distribution.low), distribution.high))


def edges(space: Space) -> Iterator[dict[str, str]]:
    """Settings that between them have every choice, and of each range both ends and a number between.

    The other keys are at their first value in each. The number between is no whole one where the range has others.
    """
    ends: dict[str, list[str]] = {}
    for key, of in space.items():
        if isinstance(of, CategoricalDistribution):
            ends[key] = values(of)
        else:
            between = [of.low + (of.high - of.low) * BETWEEN] if of.step is None else []
            ends[key] = [text(of, value) for value in (of.low, *between, of.high)]
    first = {key: found[0] for key, found in ends.items()}
    yield first
    for key, others in ends.items():
        yield from (first | {key: value} for value in others[1:])
