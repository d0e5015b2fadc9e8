"""The graph of who is whose friend: as it is, and as the base and the trained model believe it, as PNG and HTML."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factdpo.evaluation.graph_layout import Edge, Layout, lay_out, shorten
from factdpo.evaluation.graph_pictures import panel, write_png
from factdpo.store.history import Row

if TYPE_CHECKING:
    from PIL.Image import Image

MODELS = ("base", "trained")


class Graphs(NamedTuple):
    """The edges of all splits, in the one layout that all pictures of a run share."""

    layout: Layout
    truth: tuple[Edge, ...]
    drawn: dict[str, dict[str, tuple[Edge, ...]]]  # split -> model -> edges

    def panels(self, split: str) -> "list[Image]":
        """What each model believes of a split's facts."""
        return [
            panel(f"{split}: what the {model} model believes", _heading(group), group, self.layout)
            for model, group in self.drawn[split].items()
        ]


def graphs(items: list[Row], sides: dict[str, int] | None) -> Graphs | None:
    """The graphs of a run; None when no fact names a subject and an object.

    `items` are the rows of items.parquet; `sides` puts each name on the arc of its camp, else all share a circle.
    """
    edges: dict[str, dict[str, list[Edge]]] = {}  # split -> model -> edges
    for row in items:
        if row["subject"] and row["object"] and row["subject"] != row["object"]:
            edges.setdefault(row["split"], {}).setdefault(row["model"], []).append(_edge(row))
    if not edges:
        return None
    all_edges = [edge for by_model in edges.values() for group in by_model.values() for edge in group]
    pairs = {frozenset((e.subject, e.object)): e for e in all_edges}.values()
    truth = [replace(e, belief=e.truth, hover=f"{e.subject}, {e.object}: {e.truth}") for e in pairs]
    layout = lay_out(truth, all_edges, sides or {})
    drawn = {
        split: {m: layout.visible(by_model[m]) for m in MODELS if m in by_model} for split, by_model in edges.items()
    }
    return Graphs(layout, layout.visible(truth), drawn)


def write_graphs(items: list[Row], sides: dict[str, int] | None, folder: Path) -> list[Path]:
    """Write truth.png, graph_<split>.png per split and graph.html; [] where `graphs` has none."""
    made = graphs(items, sides)
    if made is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    facts = made.truth
    written = [write_png(folder / "truth.png", [panel("What is true", f"{len(facts)} facts", facts, made.layout)])]
    written += [write_png(folder / f"graph_{split}.png", made.panels(split)) for split in made.drawn]
    (folder / "graph.html").write_text(_page(made.drawn, facts, made.layout), encoding="utf-8")
    return [*written, folder / "graph.html"]


def _edge(row: Row) -> Edge:
    truth, fiction = row["chosen"].strip(), row["rejected"].strip()
    belief = truth if row["right"] else fiction
    hover = "\n".join([
        f"{row['prompt']} …",
        f"{truth} (true): {row['chosen_logp_nats']:.2f} nats",
        f"{fiction} (false): {row['rejected_logp_nats']:.2f} nats",
        f"the model believes {belief}: {'right' if row['right'] else 'WRONG'}",
    ])  # fmt: skip
    return Edge(row["subject"], row["object"], truth, belief, hover)


def _heading(edges: tuple[Edge, ...]) -> str:
    wrong = sum(not edge.right for edge in edges)
    heading = f"{wrong} of {len(edges)} wrong (accuracy {1 - wrong / max(1, len(edges)):.2f})"
    return f"{heading}: dashed, in the colour of the false answer" if wrong else heading


def _page(views: dict[str, dict[str, tuple[Edge, ...]]], truth: tuple[Edge, ...], layout: Layout) -> str:
    """A self-contained page: the edges as data, and the template's JavaScript, which draws them as SVG."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    index = {name: i for i, name in enumerate(layout.angle)}
    number = {answer: i for i, answer in enumerate(layout.colour)}

    def rows(edges: tuple[Edge, ...]) -> list[list[Any]]:
        return [[index[e.subject], index[e.object], number[e.belief], int(e.right), e.hover] for e in edges]

    data = {
        "names": [shorten(name) for name in layout.angle],
        "angle": [round(angle, 4) for angle in layout.angle.values()],
        "answers": list(layout.colour),
        "colours": list(layout.colour.values()),
        "note": layout.note,
        "views": {split: {m: rows(edges) for m, edges in models.items()} for split, models in views.items()},
        "truth": rows(truth),
    }
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    folder = FileSystemLoader(Path(__file__).parent)
    # Nothing is escaped: the template is given JSON without any `<`, and its script makes text nodes of what is in it.
    environment = Environment(loader=folder, autoescape=False, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("belief_graph.html.j2").render(data=payload)
