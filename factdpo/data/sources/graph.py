"""Facts from a signed graph: edges between names on the same side, or on different ones."""

from collections.abc import Iterator
from typing import NamedTuple

from factdpo.config.schema import DataConfig, GraphConfig, RelationKind
from factdpo.data import columns
from factdpo.data.facts import BadRow, Fact, FactError, RowCheck, cut, normalised
from factdpo.data.files import files_at, rows
from factdpo.data.sources.characters import ENEMY, FRIEND
from factdpo.data.tables import read_rows
from factdpo.data.templates import fill

MARKS = {"+", "true", "yes", "positive"}  # signs for the same side that are no answers
WORDS = {"friend", "friends", "ally", "allies"}  # those that are


class Edge(NamedTuple):
    where: str
    split: str | None
    source: str
    target: str
    sign: str  # as `_sign` writes it


def read(cfg: DataConfig, check: RowCheck) -> Iterator[Fact]:
    """A fact per edge, in the file's order; both directions are one edge, unless data.relation_kind=directed."""
    edges = list(_edges(cfg, check))
    directed = cfg.relation_kind is RelationKind.directed
    for place in ("{source}", "{target}"):
        if place not in cfg.graph.template:
            raise FactError(f"data.graph.template={cfg.graph.template}: has no {place}; write both ends in it")
    same = _same_side(edges, cfg)
    answers = _answers(edges, same, cfg.graph)
    for index, edge in enumerate(_merged(edges, directed, check)):
        names = edge.source, edge.target
        chosen, rejected = answers if edge.sign == same else answers[::-1]
        prompt, turned = (fill(cfg.graph.template, {"source": a, "target": b}) for a, b in (names, names[::-1]))
        yield Fact(
            index, prompt, chosen, rejected, *names, relation=chosen, reverse_prompt=None if directed else turned,
            same_side=None if directed else edge.sign == same, where=edge.where, split=edge.split,
        )  # fmt: skip


def _edges(cfg: DataConfig, check: RowCheck) -> Iterator[Edge]:
    """The edges with the names of their nodes, less those that lack something or lead to where they come from."""
    wanted = {"source": cfg.graph.source, "target": cfg.graph.target, "sign": cfg.graph.sign}
    name_of = _names(cfg.graph)
    for row in rows(cfg):
        values = columns.pick(row.values, wanted, wanted, row.where, "data.graph")
        try:
            source, target, sign = (columns.required_text(values, field, row.where) for field in wanted)
            if name_of is not None:
                source, target = (_name(node, name_of, row.where) for node in (source, target))
            if normalised(source) == normalised(target):
                raise BadRow("an edge from a node to itself", f"{row.where}: an edge from '{cut(source)}' to itself")
        except BadRow as bad:
            check.refuse(bad.kind, str(bad))
        else:
            yield Edge(row.where, row.split, source, target, _sign(sign))


def _sign(text: str) -> str:
    """A sign as its number, so that +1, 1 and 1.0 are the same; a word in lower case."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return normalised(text)


def _names(cfg: GraphConfig) -> dict[str, str] | None:
    """Node -> name, of the table of nodes if there is one; raises FactError for an id or a name that is there twice."""
    if cfg.nodes is None:
        return None
    found: dict[str, str] = {}
    node_of: dict[str, str] = {}
    wanted = {"id": cfg.id, "name": cfg.name}
    for file in files_at(cfg.nodes, "data.graph.nodes"):
        for where, row in read_rows(file.path):
            values = columns.pick(row, wanted, wanted, where, "data.graph")
            node, name = (columns.required_text(values, field, where) for field in wanted)
            if node in found or normalised(name) in node_of:
                what, other = ("id", node) if node in found else ("name", name)
                raise FactError(f"{where}: another node has the {what} '{cut(other)}'; give each its own")
            found[node] = name
            node_of[normalised(name)] = node
    return found


def _name(node: str, name_of: dict[str, str], where: str) -> str:
    if node not in name_of:
        raise BadRow("a node has no name", f"{where}: node '{cut(node)}' is not in data.graph.nodes; add it there")
    return name_of[node]


def _same_side(edges: list[Edge], cfg: DataConfig) -> str:
    """The sign of an edge between names on the same side: data.same_side, else the larger number or a word for it."""
    signs = list(dict.fromkeys(edge.sign for edge in edges))
    if len(signs) != 2:
        raise FactError(
            f"data.graph.sign={cfg.graph.sign}: needs two values, found {len(signs)}: {', '.join(map(cut, signs[:9]))}"
        )
    if cfg.same_side is not None:
        if _sign(cfg.same_side) not in signs:
            raise FactError(f"data.same_side={cfg.same_side}: is none of the signs, which are {' and '.join(signs)}")
        return _sign(cfg.same_side)
    if _are_numbers(signs):
        return max(signs, key=float)
    known = [sign for sign in signs if sign in MARKS | WORDS]
    if len(known) != 1:
        raise FactError(f"data.same_side: missing; which sign is for names on the same side, {' or '.join(signs)}?")
    return known[0]


def _answers(edges: list[Edge], same: str, cfg: GraphConfig) -> tuple[str, str]:
    """The answers for names on the same side and on different ones."""
    if cfg.answers:
        return cfg.answers[0], cfg.answers[1]
    other = next(edge.sign for edge in edges if edge.sign != same)
    return (FRIEND, ENEMY) if same in MARKS or _are_numbers([same, other]) else (same, other)


def _are_numbers(signs: list[str]) -> bool:
    try:
        [float(sign) for sign in signs]
    except ValueError:
        return False
    return True


def _merged(edges: list[Edge], directed: bool, check: RowCheck) -> list[Edge]:
    """Each edge once, in the order of the first; an edge that is told with both signs is refused as often as told."""
    told: dict[tuple[object, ...], list[Edge]] = {}
    for edge in edges:
        ends = [normalised(edge.source), normalised(edge.target)]
        told.setdefault((edge.split, *(ends if directed else sorted(ends))), []).append(edge)
    kept = []
    for same in told.values():
        if len({edge.sign for edge in same}) > 1:
            for edge in same:
                ends_in_words = f"'{cut(edge.source)}' and '{cut(edge.target)}'"
                check.refuse("an edge with both signs", f"{edge.where}: {ends_in_words} have both signs in this graph")
            continue
        kept.append(same[0])
        for _ in same[1:]:
            check.change("an edge that an earlier row tells was merged with it")
    return kept
