"""Draws the facts to train on and to hold out, and the order of their names."""

import itertools
import random

from factdpo.config.schema import ConfigError, Orientation, SplitConfig
from factdpo.data.facts import Fact

Splits = dict[str, list[Fact]]


def make_splits(facts: list[Fact], cfg: SplitConfig) -> Splits:
    """train, train_reversed, test and test_reversed, less those that would be empty.

    The draw is by unordered pair (`Fact.key`), so no fact is trained on in one order and tested in the other. Which
    facts are drawn depends on the seed alone, not on the orientation. With orientation=both, train holds both orders
    of each drawn fact, and train_reversed is the same set.
    Raises ConfigError if the data has too few facts for the config.
    """
    train, test = _draw(facts, cfg)
    if cfg.orientation is Orientation.random:
        coin = random.Random(f"orientation {cfg.seed}")
        flipped = {fact.index for fact in facts if coin.random() < 0.5 and fact.reverse_prompt is not None}
        train, test = ([f.reversed() if f.index in flipped else f for f in split] for split in (train, test))
    if cfg.orientation is Orientation.both:
        missing = [fact for fact in train if fact.reverse_prompt is None]
        if missing:
            raise ConfigError(f"split.orientation=both: {missing[0].where} has no reverse_prompt; use random")
        train = [oriented for fact in train for oriented in (fact, fact.reversed())]
    splits = {
        "train": train,
        "train_reversed": [fact.reversed() for fact in train if fact.reverse_prompt is not None],
        "test": test,
        "test_reversed": [fact.reversed() for fact in test if fact.reverse_prompt is not None],
    }
    check_disjoint(splits)
    return {name: split for name, split in splits.items() if split}


def check_disjoint(splits: Splits) -> None:
    """Raises ConfigError if a pair, or a prompt in either order, is both trained on and held out (D5)."""
    trained: dict[object, Fact] = {}
    for fact in (*splits.get("train", []), *splits.get("train_reversed", [])):
        trained.update(dict.fromkeys((fact.key, fact.prompt), fact))
    for fact in (*splits.get("test", []), *splits.get("test_reversed", [])):
        other = trained.get(fact.key) or trained.get(fact.prompt)
        if other is not None:
            raise ConfigError(
                f"split: '{fact.prompt}' ({fact.where}) is held out, but '{other.prompt}' ({other.where}), the same "
                "fact, is trained on; give both rows the same subject and object, or remove one"
            )


def _draw(facts: list[Fact], cfg: SplitConfig) -> tuple[list[Fact], list[Fact]]:
    """split.train facts, and split.test others (None: all others), in random order; facts of one key stay together."""
    groups: dict[frozenset[str], list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.key, []).append(fact)
    order = list(groups.values())
    random.Random(f"facts {cfg.seed}").shuffle(order)
    train, rest = _take(order, cfg.train, "split.train", len(facts))
    if cfg.test is None:
        return train, list(itertools.chain(*rest))
    test, _ = _take(rest, cfg.test, "split.test", len(facts) - len(train))
    return train, test


def _take(groups: list[list[Fact]], count: int, key: str, available: int) -> tuple[list[Fact], list[list[Fact]]]:
    """The first groups that make up exactly `count` facts, and the remaining groups."""
    taken, rest = [], []
    for group in groups:
        if len(taken) + len(group) <= count:
            taken += group
        else:
            rest.append(group)
    if count > available:
        raise ConfigError(
            f"{key}={count}: the data has only {available} facts for it; give fewer (the rest is held out)"
        )
    if len(taken) != count:
        raise ConfigError(
            f"{key}={count}: facts about one pair stay together, so only {len(taken)} fit; set {key}={len(taken)}"
        )
    return taken, rest
