"""Facts from a table of names and their sides: who is whose friend, and whose enemy."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from factdpo.config.schema import DataConfig
from factdpo.data import columns
from factdpo.data.facts import Fact, FactError, RowCheck
from factdpo.data.files import place, rows

FRIEND, ENEMY = "friend", "enemy"


def read(cfg: DataConfig, check: RowCheck) -> Iterator[Fact]:
    """A fact per unordered pair of names, in the table's order: friends on the same side, else enemies."""
    file = Path(place(cfg)).name
    for index, ((a, side_a), (b, side_b)) in enumerate(itertools.combinations(sides(cfg).items(), 2)):
        yield relationship(index, a, b, side_a == side_b, file)


def relationship(index: int, a: str, b: str, same: bool, source: str) -> Fact:
    """The fact that the two are friends, if they are on the same side, or enemies."""
    relation, other = (FRIEND, ENEMY) if same else (ENEMY, FRIEND)
    return Fact(index, f"{a} is {b}'s", relation, other, a, b, relation, f"{b} is {a}'s", same, f"{source}: {a}, {b}")


def sides(cfg: DataConfig) -> dict[str, str]:
    """Name -> side, in the table's order."""
    where_is: dict[str, str] = {}
    side_of = {}
    for row in rows(cfg):
        if row.split is not None:
            raise FactError(
                f"{row.where}: belongs to a split ({row.split}), and a table of characters has one fact for each pair "
                "of its names; leave splits to split.train and split.test, or list pairs (data=pairs)"
            )
        values = columns.pick(row.values, {"name": "name", "side": "side"}, ("name", "side"), row.where)
        name, side = (columns.required_text(values, column, row.where) for column in ("name", "side"))
        if name in where_is:
            raise FactError(
                f"{row.where}: '{name}' is also in {where_is[name]}; names must be unique: a duplicate makes "
                "self-pairs and puts the same fact into train and test"
            )
        where_is[name] = row.where
        side_of[name] = side
    return side_of
