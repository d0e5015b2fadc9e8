"""Where the names of a belief graph stand, and in which colour each answer is drawn: the same in all of its figures."""

import math
from collections import Counter
from dataclasses import dataclass, field

# Okabe and Ito's colours, which colour-blind readers can tell apart, less their yellow, which is lost on white.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OTHER = "#999999"  # the eighth answer and on
MOST_NAMES = 120  # more cannot be read on one circle
LONGEST_NAME = 32  # characters; longer ones are cut in the figures
GAP_DEGREES = 26.0  # between two camps


@dataclass(frozen=True)
class Edge:
    """A fact between two names: the true answer, and the one that a model prefers."""

    subject: str
    object: str
    truth: str
    belief: str
    hover: str = field(compare=False)  # other log-probs do not change the picture

    @property
    def right(self) -> bool:
        return self.belief == self.truth


@dataclass(frozen=True)
class Layout:
    """Positions of the names on the unit circle, and the colour of each answer."""

    angle: dict[str, float]  # radians
    colour: dict[str, str]
    note: str  # what was left out

    def __hash__(self) -> int:  # pictures are cached by what they show
        return hash((*self.angle.items(), *self.colour.items(), self.note))

    def point(self, name: str) -> tuple[float, float]:
        return math.cos(self.angle[name]), math.sin(self.angle[name])

    def visible(self, edges: list[Edge]) -> tuple[Edge, ...]:
        """The edges of which both names have a position."""
        return tuple(edge for edge in edges if edge.subject in self.angle and edge.object in self.angle)


def lay_out(truth: list[Edge], edges: list[Edge], sides: dict[str, int]) -> Layout:
    """Camps on arcs of one circle, the first on the left, names in alphabetical order from the top.

    The names are those of `truth`; the answers of all `edges` get colours, the commonest first.
    """
    degree = Counter(name for edge in truth for name in (edge.subject, edge.object))
    names = sorted(sorted(degree), key=lambda name: -degree[name])[:MOST_NAMES]
    note = f"{len(names)} of {len(degree)} names drawn, the most connected" if len(names) < len(degree) else ""
    order = sorted({sides.get(name) for name in names}, key=lambda camp: (camp is None, camp))
    camps = [sorted(name for name in names if sides.get(name) == camp) for camp in order]
    answers = Counter(answer for edge in edges for answer in (edge.truth, edge.belief))
    common = sorted(answer for answer, _ in answers.most_common(len(COLOURS)))
    colour = dict.fromkeys(answers, OTHER) | dict(zip(common, COLOURS, strict=False))
    return Layout(_angles(camps), colour, note)


def _angles(camps: list[list[str]]) -> dict[str, float]:
    """The angle of each name, radians counterclockwise; the middle of the first camp lies at the left."""
    gap = math.radians(GAP_DEGREES) if len(camps) > 1 else 0.0
    per_name = (2 * math.pi - gap * len(camps)) / sum(map(len, camps))
    start = math.pi - per_name * len(camps[0]) / 2
    angles: dict[str, float] = {}
    for camp in camps:
        middle = start + per_name * len(camp) / 2
        downwards = camp if math.cos(middle) <= 0 else camp[::-1]
        angles |= {name: start + per_name * (i + 0.5) for i, name in enumerate(downwards)}
        start += per_name * len(camp) + gap
    return angles


def shorten(name: str) -> str:
    """The name on one line, cut to LONGEST_NAME characters."""
    name = " ".join(name.split())
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
