"""The logical closure of training facts about sides: which other facts they imply, for any number of sides."""

from dataclasses import dataclass, replace

import networkx as nx

from factdpo.data.facts import Fact, normalised


@dataclass(frozen=True)
class Closure:
    """What facts of the kind "A and B are, or are not, on the same side" imply.

    With `colour`, a pair is decided if its names are connected: a group is then a component, and each name has a colour
    of it. Without, a group is what "same side" connects, and two groups with a "different" fact between them differ.
    """

    sides: int | None  # that are taken for given; None: more than two, and no fact shows how many
    known: bool  # whether the data itself says how many there are
    group: dict[str, int]
    colour: dict[str, int]
    different: set[frozenset[int]]  # pairs of groups
    contradictions: int = 0  # training facts that disagree with it

    def same_side(self, fact: Fact) -> bool | None:
        """Whether subject and object are on the same side; None where the training facts do not decide it."""
        a, b = self.group.get(_name(fact.subject)), self.group.get(_name(fact.object))
        if a is None or b is None:
            return None
        if a == b:
            return not self.colour or self.colour[_name(fact.subject)] == self.colour[_name(fact.object)]
        return False if frozenset((a, b)) in self.different else None


def closure(train: list[Fact], sides: int | None = None) -> Closure | None:
    """The closure of the training facts, in whatever order they come; None unless each has names and `same_side`.

    `sides` is how many there are, where the data knows it. Else two are assumed unless more leave fewer training facts
    contradicted, as where three are each other's enemies; then as many as there are such enemies (`_sides`). Facts that
    contradict each other are counted and outvoted.
    """
    if not all(fact.subject and fact.object and fact.same_side is not None for fact in train):
        return None
    graph = _graph(train)
    if sides is not None and sides <= 2:
        return _counted(_coloured(graph, 2, known=True), train)
    grouped = _counted(_grouped(graph, sides), train)
    if sides is not None and not grouped.contradictions:
        return grouped
    coloured = _counted(_coloured(graph, sides or 2, known=sides is not None), train)
    return min((coloured, grouped), key=lambda closure: closure.contradictions)


def _name(name: str | None) -> str:
    return normalised(name or "")


def _graph(train: list[Fact]) -> nx.Graph:
    """A node per name and an edge per pair, both sorted; `sign`: facts that say "same" less those that do not."""
    signs: dict[tuple[str, str], int] = {}
    for fact in train:
        a, b = sorted((_name(fact.subject), _name(fact.object)))
        signs[a, b] = signs.get((a, b), 0) + (1 if fact.same_side else -1)
    graph = nx.Graph()
    graph.add_nodes_from(sorted({name for pair in signs for name in pair}))
    graph.add_edges_from((a, b, {"sign": sign}) for (a, b), sign in sorted(signs.items()) if sign)  # 0 says nothing
    return graph


def _coloured(graph: nx.Graph, sides: int, known: bool) -> Closure:
    """A colouring: along a tree of each component, then each name changes sides while that settles more of its facts.

    With two sides and no contradictions the tree decides. With them the result is a local optimum (of the maximum
    balanced subgraph, which is NP-hard: Barahona 1982), so their number is an upper bound of the frustration index.
    """
    colour: dict[str, int] = {}

    def votes(name: str) -> list[int]:
        """Of the coloured neighbours, for each side."""
        found = [0] * sides
        for other, edge in graph[name].items():
            if other in colour:
                found[colour[other]] += edge["sign"]
        return found

    for first in graph:
        if first not in colour:
            colour[first] = 0
            for a, b in nx.bfs_edges(graph, first):
                of_others = votes(b)
                others = [side for side in range(sides) if side != colour[a]]
                colour[b] = colour[a] if graph[a][b]["sign"] > 0 else max(others, key=of_others.__getitem__)
    waiting = dict.fromkeys(graph)
    while waiting:
        name = next(iter(waiting))
        del waiting[name]
        of_each = votes(name)
        best = max(range(sides), key=of_each.__getitem__)
        if of_each[best] > of_each[colour[name]]:
            colour[name] = best
            waiting |= dict.fromkeys(graph[name])
    return Closure(sides, known, _groups(graph), colour, set())


def _grouped(graph: nx.Graph, known: int | None) -> Closure:
    """Groups by union-find over "same side", and edges between groups; then the known sides, or those that show."""
    same = nx.Graph()
    same.add_nodes_from(graph)
    same.add_edges_from((a, b) for a, b, sign in graph.edges(data="sign") if sign > 0)
    group = _groups(same)
    apart = nx.Graph(
        (group[a], group[b]) for a, b, sign in graph.edges(data="sign") if sign < 0 and group[a] != group[b]
    )
    sides = _sides(apart, known)
    number = {name: sides.get(of_name, of_name) for name, of_name in group.items()}
    different = {frozenset((sides.get(a, a), sides.get(b, b))) for a, b in apart.edges}
    return Closure(known or len(set(sides.values())) or None, known is not None, number, {}, different)


def _sides(apart: nx.Graph, known: int | None) -> dict[int, int]:
    """Group -> a group on its side, for groups of which that follows from how many sides there are.

    Not known, that is as many as the facts show: k groups that are all different from each other (a clique, found
    greedily) show k sides. A group that differs from all sides but one is on that. {} where the facts show fewer than
    three, or fewer than are known, or where a group differs from all of them.
    """
    clique: list[int] = []
    for group in sorted(apart, key=lambda group: (-apart.degree[group], group)):
        if all(apart.has_edge(group, other) for other in clique):
            clique.append(group)
    if len(clique) != (known or max(3, len(clique))):
        return {}
    side = {group: group for group in clique}
    waiting = list(clique)
    while waiting:
        for group in set(apart[waiting.pop()]) - side.keys():
            left = set(clique) - {side[other] for other in apart[group] if other in side}
            if not left:
                return {}
            if len(left) == 1:
                side[group] = left.pop()
                waiting.append(group)
    return side


def _groups(graph: nx.Graph) -> dict[str, int]:
    """Name -> number of its component."""
    return {name: number for number, names in enumerate(nx.connected_components(graph)) for name in names}


def _counted(closure: Closure, train: list[Fact]) -> Closure:
    """With the number of contradictions; undecided in training are only pairs of which half the facts say the other."""
    sides = [(closure.same_side(fact), fact.same_side) for fact in train]
    wrong = sum(0.5 if side is None else float(side != said) for side, said in sides)
    return replace(closure, contradictions=int(wrong))
