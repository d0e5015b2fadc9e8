"""Where a search draws its settings from: Optuna's distributions, by config key."""

from collections.abc import Iterator

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from factdpo.config.overrides import typed

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]  # of choices each is a text in Hydra's grammar

BETWEEN = 0.3819  # of the way from one end of a range to the other
DIGITS = 4  # of a number drawn from an interval: what tables show is what ran


def words(distribution: Distribution) -> str:
    """A distribution in words: `0.01 to 1, log`, `8, 16, 32` or `2 to 8 in steps of 2`."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(values(distribution))
    usual = 1 if isinstance(distribution, IntDistribution) else None
    steps = "" if distribution.step == usual else f" in steps of {typed(distribution.step)}"
    ends = f"{typed(distribution.low)} to {typed(distribution.high)}"
    return f"{ends}{steps}{', log' if distribution.log else ''}"


def values(distribution: Distribution) -> list[str]:
    """The choices, or a range in words, for sweep.json."""
    choices = isinstance(distribution, CategoricalDistribution)
    return [str(choice) for choice in distribution.choices] if choices else [words(distribution)]


def text(distribution: Distribution, value: str | int | float) -> str:
    """A drawn value in Hydra's grammar, rounded as it is run."""
    if not isinstance(distribution, FloatDistribution):
        return str(value)
    digits = DIGITS if distribution.step is None else 12  # a multiple of a step is not exact in binary
    rounded = float(f"{value:.{digits}g}")
    return typed(min(max(rounded, distribution.low), distribution.high))


def edges(space: Space) -> Iterator[dict[str, str]]:
    """Settings that together cover every choice, and of each range both ends and a number in between.

    In each of them one key varies and the others have their first value. The number in between is not an integer where
    the range is continuous.
    """
    ends: dict[str, list[str]] = {}
    for key, range_ in space.items():
        if isinstance(range_, CategoricalDistribution):
            ends[key] = values(range_)
        else:
            low, high = range_.low, range_.high
            between = [low + (high - low) * BETWEEN] if range_.step is None else []
            ends[key] = [text(range_, value) for value in (low, *between, high)]
    first = {key: settings[0] for key, settings in ends.items()}
    yield first
    for key, others in ends.items():
        yield from (first | {key: value} for value in others[1:])
