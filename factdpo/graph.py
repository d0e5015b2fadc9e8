"""The graph of who is whose friend, as it is and as the base and the trained model believe it, as PNG and HTML."""

import html
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Point = tuple[float, float]

# Okabe and Ito's colours, which colour-blind readers can tell apart, less their yellow, which is lost on white.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OTHER = "#999999"  # the eighth answer and on
MODELS = ("base", "trained")
MOST_NAMES = 120  # more cannot be read on one circle
LONGEST_NAME = 32  # characters; longer ones are cut in the figures
GAP_DEGREES = 26.0  # between two camps
BEND = 0.28  # of an edge's middle towards the centre: 1 is a straight line


@dataclass(frozen=True)
class Edge:
    subject: str
    object: str
    truth: str
    belief: str
    hover: str

    @property
    def right(self) -> bool:
        return self.belief == self.truth


@dataclass(frozen=True)
class Layout:
    """Where the names stand on the unit circle, and which colour an answer has; the same in every figure of a run."""

    angle: dict[str, float]  # radians
    colour: dict[str, str]
    note: str  # what was left out, for the titles

    def point(self, name: str) -> Point:
        return math.cos(self.angle[name]), math.sin(self.angle[name])


def write_graphs(items: list[Row], sides: dict[str, int] | None, folder: Path) -> list[Path]:
    """truth.png, graph_<split>.png per split and graph.html in the folder; none, and [], when no fact names two things.

    `items` are the rows of items.parquet; `sides` puts each name on the arc of its camp, else all share a circle.
    """
    views: dict[str, dict[str, list[Edge]]] = {}
    for row in items:
        if row["subject"] and row["object"] and row["subject"] != row["object"]:
            views.setdefault(row["split"], {}).setdefault(row["model"], []).append(_edge(row))
    if not views:
        return []
    every = [edge for models in views.values() for edges in models.values() for edge in edges]
    truth = list(
        {frozenset((e.subject, e.object)): Edge(e.subject, e.object, e.truth, e.truth, "") for e in every}.values()
    )
    layout = _layout(truth, every, sides or {})
    truth = _drawn(truth, layout)
    views = {split: {m: _drawn(models[m], layout) for m in MODELS if m in models} for split, models in views.items()}
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write_png(folder / "truth.png", "What is true", {f"{len(truth)} facts": truth}, layout)]
    for split, models in views.items():
        panels = {_title(model, edges): edges for model, edges in models.items()}
        written.append(_write_png(folder / f"graph_{split}.png", f"What the model believes: {split}", panels, layout))
    page = folder / "graph.html"
    page.write_text(_page(views, truth, layout), encoding="utf-8")
    return [*written, page]


def _edge(row: Row) -> Edge:
    truth, other = row["chosen"].strip(), row["rejected"].strip()
    hover = "\n".join([
        f"{row['prompt']} …",
        f"{truth} (true): {row['chosen_logp_nats']:.2f} nats",
        f"{other} (false): {row['rejected_logp_nats']:.2f} nats",
        f"the model believes {truth if row['right'] else other}: {'right' if row['right'] else 'WRONG'}",
    ])  # fmt: skip
    return Edge(row["subject"], row["object"], truth, truth if row["right"] else other, hover)


def _true(edge: Edge) -> Edge:
    return replace(edge, belief=edge.truth, hover=f"{edge.subject}, {edge.object}: {edge.truth}")


def _drawn(edges: list[Edge], layout: Layout) -> list[Edge]:
    """The edges between names that are drawn, wrong ones last, so that they lie on top."""
    return sorted(
        (e for e in edges if e.subject in layout.angle and e.object in layout.angle), key=lambda e: not e.right
    )


def _title(model: str, edges: list[Edge]) -> str:
    wrong = sum(not edge.right for edge in edges)
    return f"{model}: {wrong} of {len(edges)} wrong (accuracy {1 - wrong / len(edges):.2f})"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _layout(truth: list[Edge], every: list[Edge], sides: dict[str, int]) -> Layout:
    """Camps on arcs of one circle, the first on the left, names in alphabetical order from the top."""
    degree = Counter(name for edge in truth for name in (edge.subject, edge.object))
    names = sorted(sorted(degree), key=lambda name: -degree[name])[:MOST_NAMES]
    note = f"{len(names)} of {len(degree)} names drawn, the most connected" if len(names) < len(degree) else ""
    camps: dict[int | None, list[str]] = {}
    for name in sorted(names):
        camps.setdefault(sides.get(name), []).append(name)
    gap = math.radians(GAP_DEGREES) if len(camps) > 1 else 0.0
    per_name = (2 * math.pi - gap * len(camps)) / len(names)
    ordered = [camp for _, camp in sorted(camps.items(), key=lambda pair: (pair[0] is None, pair[0]))]
    angle, at = {}, math.pi - per_name * len(ordered[0]) / 2  # counterclockwise, the first camp's middle at the left
    for camp in ordered:
        middle = at + per_name * len(camp) / 2
        downwards = camp if math.cos(middle) <= 0 else camp[::-1]
        for i, name in enumerate(downwards):
            angle[name] = at + per_name * (i + 0.5)
        at += per_name * len(camp) + gap
    answers = Counter(answer for edge in every for answer in (edge.truth, edge.belief))
    common = sorted(answer for answer, _ in answers.most_common(len(COLOURS)))
    colour = dict.fromkeys(answers, OTHER) | dict(zip(common, COLOURS, strict=False))
    return Layout(angle, colour, note)


def _curve(start: Point, end: Point, steps: int = 14) -> list[Point]:
    """Points of a quadratic Bézier curve that bends towards the centre of the circle."""
    (x0, y0), (x2, y2) = start, end
    x1, y1 = BEND * (x0 + x2) / 2, BEND * (y0 + y2) / 2
    return [
        ((1 - t) ** 2 * x0 + 2 * t * (1 - t) * x1 + t * t * x2, (1 - t) ** 2 * y0 + 2 * t * (1 - t) * y1 + t * t * y2)
        for t in (i / steps for i in range(steps + 1))
    ]


def _write_png(path: Path, title: str, panels: dict[str, list[Edge]], layout: Layout) -> Path:
    """One figure, its panels side by side."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no global state, and Agg whatever the caller's backend
    from matplotlib.lines import Line2D
    from PIL import Image

    figure = Figure(figsize=(8.6 * len(panels), 9.2), dpi=105, facecolor="white")
    for i, (heading, edges) in enumerate(panels.items()):
        axes = figure.add_axes((i / len(panels), 0.05, 1 / len(panels), 0.86))
        _draw(axes, edges, layout)
        axes.set_title(heading, fontsize=13, color="#222222", pad=4, parse_math=False)
    figure.suptitle(title + (f" ({layout.note})" if layout.note else ""), fontsize=15, y=0.975, parse_math=False)
    believed = {edge.belief for edges in panels.values() for edge in edges}
    handles = [
        Line2D([], [], color=layout.colour[a], lw=2.5, label=a) for a in sorted(believed) if layout.colour[a] != OTHER
    ]
    if any(layout.colour[a] == OTHER for a in believed):
        handles.append(Line2D([], [], color=OTHER, lw=2.5, label="other answers"))
    if any(not edge.right for edges in panels.values() for edge in edges):
        handles.append(
            Line2D([], [], color="#222222", lw=1.6, ls=(0, (4, 2)), label="wrong, in the colour of the false answer")
        )
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=12)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # a name in a script that the font lacks: boxes
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path)  # a quarter of the bytes
    return path


def _draw(axes: Any, edges: Iterable[Edge], layout: Layout) -> None:
    from matplotlib.collections import LineCollection

    edges = list(edges)
    for right in (True, False):
        some = [edge for edge in edges if edge.right is right]
        few = min(
            1.0, math.sqrt(60 / max(1, len(some)))
        )  # many wrong ones are drawn thinner, else they hide each other
        axes.add_collection(
            LineCollection(
                [_curve(layout.point(e.subject), layout.point(e.object)) for e in some],
                colors=[layout.colour[e.belief] for e in some],
                linewidths=0.7 if right else 0.3 + 1.3 * few,
                alpha=0.35 if right else 0.95,
                linestyles="solid" if right else (0, (4, 2)),
            )
        )
    axes.plot(*zip(*map(layout.point, layout.angle), strict=True), "o", ms=3.5, color="#444444")
    size = min(9.0, 600 / len(layout.angle))
    for name, angle in layout.angle.items():
        x, y = layout.point(name)
        left = x < 0
        axes.text(
            1.035 * x, 1.035 * y, _short(name), fontsize=size, color="#111111", parse_math=False,
            rotation=math.degrees(angle) + (180 if left else 0), rotation_mode="anchor",
            ha="right" if left else "left", va="center",
        )  # fmt: skip
    reach = 1.12 + 0.0022 * size * min(LONGEST_NAME, max(map(len, layout.angle)))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.axis("off")


def _page(views: dict[str, dict[str, list[Edge]]], truth: list[Edge], layout: Layout) -> str:
    """A self-contained page: plotly.js once, the edges as data, the drawing in a few lines of JavaScript."""
    from plotly.offline import get_plotlyjs

    names = list(layout.angle)
    index = {name: i for i, name in enumerate(names)}
    answers = list(layout.colour)
    number = {answer: i for i, answer in enumerate(answers)}

    def text(words: str) -> str:  # plotly reads labels as HTML
        return html.escape(words).replace("\n", "<br>")

    def rows(edges: list[Edge]) -> list[list[Any]]:
        return [[index[e.subject], index[e.object], number[e.belief], int(e.right), text(e.hover)] for e in edges]

    data = {
        "names": [text(_short(name)) for name in names],
        "angle": [round(layout.angle[name], 4) for name in names],
        "answers": [text(answer) for answer in answers],
        "colours": [layout.colour[answer] for answer in answers],
        "bend": BEND,
        "note": text(layout.note),
        "views": {text(split): {m: rows(edges) for m, edges in models.items()} for split, models in views.items()},
        "truth": rows(truth),
    }  # fmt: skip
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return _PAGE.replace("/*PLOTLY*/", get_plotlyjs()).replace("/*DATA*/", payload)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>What the model believes</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>
body{font:15px/1.4 system-ui,sans-serif;margin:0;color:#222;background:#fff}
header{display:flex;flex-wrap:wrap;gap:.5em 1.6em;align-items:center;padding:.7em 1.2em;border-bottom:1px solid #ddd}
h1{font-size:17px;margin:0} select{font:inherit;padding:.15em .4em} #head{font-weight:600} #note{color:#666}
#graph{height:calc(100vh - 56px);min-height:640px}
</style>
<script>/*PLOTLY*/</script></head><body>
<header><h1>What the model believes</h1>
<label>split <select id="split"></select></label>
<label>model <select id="model"></select></label>
<label><input type="checkbox" id="wrong"> only what is wrong</label>
<span id="head"></span> <span id="note"></span></header>
<div id="graph"></div>
<script>
const D = /*DATA*/;
const $ = id => document.getElementById(id);
const X = D.angle.map(Math.cos), Y = D.angle.map(Math.sin), SIZE = D.names.length > 60 ? 9 : 12;

function option(select, html, value) {
  const o = document.createElement('option');
  o.innerHTML = html; o.value = value; select.append(o);
}
function listModels() {
  const before = $('model').value, models = Object.keys(D.views[$('split').value]);
  $('model').innerHTML = '';
  models.forEach(m => option($('model'), m, m));
  option($('model'), 'the truth, all splits', 'truth');
  $('model').value = [...models, 'truth'].includes(before) ? before : models.at(-1);
}
function lines(edges, answer, right) {
  const x = [], y = [], text = [], steps = 16;
  for (const [i, j, , , hover] of edges) {
    const cx = D.bend * (X[i] + X[j]) / 2, cy = D.bend * (Y[i] + Y[j]) / 2;
    for (let k = 0; k <= steps; k++) {
      const t = k / steps, u = 1 - t;
      x.push(u * u * X[i] + 2 * u * t * cx + t * t * X[j]);
      y.push(u * u * Y[i] + 2 * u * t * cy + t * t * Y[j]);
      text.push(hover);
    }
    x.push(null); y.push(null); text.push('');
  }
  const line = {color: D.colours[answer], width: right ? 1 : 2, dash: right ? 'solid' : '6px,3px'};
  const name = D.answers[answer] + (right ? '' : ', wrong') + ' (' + edges.length + ')';
  return {x, y, text, name, line, mode: 'lines', hoverinfo: 'text', opacity: right ? 0.4 : 0.95};
}
const pen = document.createElement('canvas').getContext('2d');
pen.font = SIZE + 'px sans-serif';
function label(html, i) {  // plotly turns a label around its middle: push the middle outwards by half its length
  const plain = new DOMParser().parseFromString(html, 'text/html').body.textContent;
  const away = pen.measureText(plain).width / 2 + 10, turn = -D.angle[i] * 180 / Math.PI + (X[i] < 0 ? 180 : 0);
  return {x: X[i], y: Y[i], xshift: away * X[i], yshift: away * Y[i], text: html, textangle: turn, showarrow: false,
    xanchor: 'center', yanchor: 'middle', font: {size: SIZE, family: 'sans-serif', color: '#111'}};
}
function draw() {
  const truth = $('model').value === 'truth';
  const all = truth ? D.truth : D.views[$('split').value][$('model').value], wrong = all.filter(e => !e[3]);
  const shown = $('wrong').checked && !truth ? wrong : all, traces = [];
  $('head').textContent = truth ? all.length + ' facts' : wrong.length + ' of ' + all.length + ' wrong';
  $('note').innerHTML = D.note;
  $('split').disabled = $('wrong').disabled = truth;
  for (const right of [1, 0]) D.answers.forEach((_, answer) => {
    const edges = shown.filter(e => e[2] === answer && e[3] === right);
    if (edges.length) traces.push(lines(edges, answer, right));
  });
  traces.push({x: X, y: Y, text: D.names, mode: 'markers', hoverinfo: 'text', showlegend: false,
    marker: {size: 7, color: '#444'}});
  const axis = {visible: false, range: [-1.03, 1.03]}, margin = {l: 20, r: 20, t: 155, b: 155};
  Plotly.react('graph', traces, {margin, xaxis: axis, yaxis: {...axis, scaleanchor: 'x'},
    annotations: D.names.map(label),
    hovermode: 'closest', hoverlabel: {align: 'left', bgcolor: '#fff', font: {color: '#111'}},
    showlegend: true, legend: {x: 0.01, y: 0.99, yref: 'container'}},
    {responsive: true, displaylogo: false, modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']]});
}
$('split').onchange = () => { listModels(); draw(); };
$('model').onchange = $('wrong').onchange = draw;
Object.keys(D.views).forEach(split => option($('split'), split, split));
listModels();
draw();
</script></body></html>
"""
