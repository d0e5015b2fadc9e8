"""The graph of who is whose friend, as it is and as the base and the trained model believe it, as PNG and HTML."""

import html
import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from factdpo.store.history import Row

# Okabe and Ito's colours, which colour-blind readers can tell apart, less their yellow, which is lost on white.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OTHER = "#999999"  # the eighth answer and on
MODELS = ("base", "trained")
MOST_NAMES = 120  # more cannot be read on one circle
LONGEST_NAME = 32  # characters; longer ones are cut in the figures
GAP_DEGREES = 26.0  # between two camps
RADIUS = 250  # of the circle in a PNG, in pixels
SHADES = 128  # of colour in one panel of a PNG; two panels fill a palette


@dataclass(frozen=True)
class Edge:
    subject: str
    object: str
    truth: str
    belief: str
    hover: str = field(compare=False)  # with other log-probs it is still the same picture

    @property
    def right(self) -> bool:
        return self.belief == self.truth


@dataclass(frozen=True)
class Layout:
    """Where the names stand on the unit circle, and which colour an answer has; the same in every figure of a run."""

    angle: dict[str, float]  # radians
    colour: dict[str, str]
    note: str  # what was left out

    def __hash__(self) -> int:  # what is drawn is cached by what it shows
        return hash((*self.angle.items(), *self.colour.items(), self.note))

    def point(self, name: str) -> tuple[float, float]:
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
    pairs = {frozenset((e.subject, e.object)): e for e in every}.values()
    truth = [replace(e, belief=e.truth, hover=f"{e.subject}, {e.object}: {e.truth}") for e in pairs]
    layout = lay_out(truth, every, sides or {})
    facts = _drawn(truth, layout)
    drawn = {split: {m: _drawn(models[m], layout) for m in MODELS if m in models} for split, models in views.items()}
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write_png(folder / "truth.png", [_panel("What is true", f"{len(facts)} facts", facts, layout)])]
    for split, models in drawn.items():
        title = f"{split}: what the %s model believes"
        panels = [_panel(title % model, _heading(edges), edges, layout) for model, edges in models.items()]
        written.append(_write_png(folder / f"graph_{split}.png", panels))
    (folder / "graph.html").write_bytes(_page(drawn, facts, layout))
    return [*written, folder / "graph.html"]


def _edge(row: Row) -> Edge:
    truth, other = row["chosen"].strip(), row["rejected"].strip()
    hover = "\n".join([
        f"{row['prompt']} …",
        f"{truth} (true): {row['chosen_logp_nats']:.2f} nats",
        f"{other} (false): {row['rejected_logp_nats']:.2f} nats",
        f"the model believes {truth if row['right'] else other}: {'right' if row['right'] else 'WRONG'}",
    ])  # fmt: skip
    return Edge(row["subject"], row["object"], truth, truth if row["right"] else other, hover)


def _drawn(edges: list[Edge], layout: Layout) -> tuple[Edge, ...]:
    """The edges between names that are drawn."""
    return tuple(e for e in edges if e.subject in layout.angle and e.object in layout.angle)


def _heading(edges: tuple[Edge, ...]) -> str:
    wrong = sum(not edge.right for edge in edges)
    told = f"{wrong} of {len(edges)} wrong (accuracy {1 - wrong / max(1, len(edges)):.2f})"
    return told + (": dashed, in the colour of the false answer" if wrong else "")


def _short(name: str) -> str:
    name = " ".join(name.split())  # on one line
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def lay_out(truth: list[Edge], every: list[Edge], sides: dict[str, int]) -> Layout:
    """Camps on arcs of one circle, the first on the left, names in alphabetical order from the top."""
    degree = Counter(name for edge in truth for name in (edge.subject, edge.object))
    names = sorted(sorted(degree), key=lambda name: -degree[name])[:MOST_NAMES]
    note = f"{len(names)} of {len(degree)} names drawn, the most connected" if len(names) < len(degree) else ""
    order = sorted({sides.get(name) for name in names}, key=lambda camp: (camp is None, camp))
    camps = [sorted(name for name in names if sides.get(name) == camp) for camp in order]
    gap = math.radians(GAP_DEGREES) if len(camps) > 1 else 0.0
    per_name = (2 * math.pi - gap * len(camps)) / len(names)
    angle, at = {}, math.pi - per_name * len(camps[0]) / 2  # counterclockwise, the first camp's middle at the left
    for camp in camps:
        downwards = camp if math.cos(at + per_name * len(camp) / 2) <= 0 else camp[::-1]
        angle |= {name: at + per_name * (i + 0.5) for i, name in enumerate(downwards)}
        at += per_name * len(camp) + gap
    answers = Counter(answer for edge in every for answer in (edge.truth, edge.belief))
    common = sorted(answer for answer, _ in answers.most_common(len(COLOURS)))
    colour = dict.fromkeys(answers, OTHER) | dict(zip(common, COLOURS, strict=False))
    return Layout(angle, colour, note)


def _write_png(path: Path, panels: list[Image.Image]) -> Path:
    """The panels, one or two, side by side."""
    picture = Image.fromarray(np.hstack([np.asarray(panel) + SHADES * i for i, panel in enumerate(panels)]))
    picture.putpalette(b"".join(bytes(p.getpalette() or ())[: 3 * SHADES].ljust(3 * SHADES) for p in panels))
    picture.save(path, compress_type=3)  # zlib's Z_RLE: a third of the default's time, a tenth more bytes
    return path


@lru_cache(maxsize=32)  # the truth, and what the base believes, are the same for all runs of a sweep on one split
def _panel(title: str, heading: str, edges: tuple[Edge, ...], layout: Layout) -> Image.Image:
    """One graph: the edges within the frame that all graphs of the layout share; in at most SHADES colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure  # no pyplot: no global state, and Agg whatever the caller's backend

    half = RADIUS + 8
    canvas = FigureCanvasAgg(Figure((half / 50, half / 50), dpi=100))
    for right in (True, False):  # the wrong ones on top
        if some := [edge for edge in edges if edge.right is right]:
            few = min(1.0, 60 / len(some))  # many are drawn thinner and paler, else they hide each other
            curves, order = _curves(some, layout)
            width, opacity = (0.6 + 0.9 * few, 0.35 + 0.45 * few) if right else (0.3 + 1.3 * math.sqrt(few), 0.95)
            lines = LineCollection(list(0.5 + curves * RADIUS / half / 2), lw=width, ls="-" if right else (0, (4, 2)))
            lines.set_color([layout.colour[some[i].belief] + f"{round(255 * opacity):02X}" for i in order])
            canvas.figure.add_artist(lines)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    frame, (x, y) = _frame(layout)
    panel, box = frame.copy(), (x - half, y - half, x - half + drawn.width, y - half + drawn.height)
    panel.paste(ImageChops.multiply(drawn, frame.crop(box)), box)
    pen = ImageDraw.Draw(panel)
    pen.text((x, 26), title, "#222222", _font(20), anchor="mm")
    pen.text((x, 52), heading, "#222222", _font(15), anchor="mm")
    return panel.quantize(SHADES, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)  # a quarter of the bytes


def _curves(edges: list[Edge], layout: Layout, steps: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """The edges as points on quadratic Bézier curves, [edge, step, x or y], and which edge each curve is.

    The nearer two names are, the less their curve leaves the rim. Short curves come last, else long ones hide them.
    """
    start = np.array([[layout.point(edge.subject)] for edge in edges])
    end = np.array([[layout.point(edge.object)] for edge in edges])
    near = np.linalg.norm(start + end, axis=2, keepdims=True) / 2
    t = np.linspace(0, 1, steps + 1)[:, None]
    order = np.argsort(near.ravel(), kind="stable")
    return ((1 - t) ** 2 * start + t * (1 - t) * near * (start + end) + t**2 * end)[order], order


@lru_cache(maxsize=4)
def _frame(layout: Layout) -> tuple[Image.Image, tuple[int, int]]:
    """Names, their points and the legend on white, below room for a title; and the circle's centre, in pixels."""
    font, label = _font(min(26, 1750 // len(layout.angle))), _font(30)
    names = [(_short(name), *layout.point(name)) for name in layout.angle]
    reach = [(RADIUS + 20 + font.getlength(name) / 2) * np.abs((cos, sin)) for name, cos, sin in names]
    x, y = (math.ceil(half) for half in np.max(reach, axis=0, initial=RADIUS + 20))
    answers = sorted(layout.colour.items(), key=lambda pair: (pair[1] == OTHER, pair[0]))
    legend = {colour: _short(answer) if colour != OTHER else "other answers" for answer, colour in answers}
    width = sum(110 + label.getlength(answer) for answer in legend.values())
    x, bottom = max(x, math.ceil(width / 4), 320), 4 * y + 160  # wide enough for the legend and the heading
    frame = Image.new("RGB", (4 * x, bottom + 90), "white")  # at twice the size, for smooth edges
    pen, at = ImageDraw.Draw(frame), 2 * x - width / 2
    for colour, answer in legend.items():
        pen.line((at + 10, bottom, at + 65, bottom), colour, 6)
        pen.text((at + 80, bottom), answer, "#222222", label, anchor="lm")
        at += 110 + label.getlength(answer)
    pen.text((2 * x, bottom + 60), layout.note, "#666666", _font(24), anchor="mm")
    for name, cos, sin in names:
        px, py = 2 * (x + RADIUS * cos), 2 * (y + 70 - RADIUS * sin)
        pen.ellipse((px - 7, py - 7, px + 7, py + 7), "#444444")
        text = Image.new("L", (int(font.getlength(name)) + 4, 2 * int(font.size)))
        ImageDraw.Draw(text).text((text.width / 2, text.height / 2), name, 255, font, anchor="mm")
        turn, away = math.degrees(math.atan2(sin, cos)), text.width / 2 + 18
        text = text.rotate(turn + 180 * (cos < 0), Image.Resampling.BICUBIC, expand=True)  # none on its head
        corner = round(px + away * cos - text.width / 2), round(py - away * sin - text.height / 2)
        frame.paste("#111111", corner, text)
    return frame.resize((2 * x, bottom // 2 + 45), Image.Resampling.BOX), (x, y + 70)


def _font(pixels: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", pixels)


def _page(views: dict[str, dict[str, tuple[Edge, ...]]], truth: tuple[Edge, ...], layout: Layout) -> bytes:
    """A self-contained page: plotly.js once, the edges as data, the drawing in a few lines of JavaScript."""
    index = {name: i for i, name in enumerate(layout.angle)}
    number = {answer: i for i, answer in enumerate(layout.colour)}

    def text(words: str) -> str:  # plotly reads labels as HTML
        return html.escape(words).replace("\n", "<br>")

    def rows(edges: tuple[Edge, ...]) -> list[list[Any]]:
        return [[index[e.subject], index[e.object], number[e.belief], int(e.right), text(e.hover)] for e in edges]

    data = {
        "names": [text(_short(name)) for name in layout.angle],
        "angle": [round(angle, 4) for angle in layout.angle.values()],
        "answers": [text(answer) for answer in layout.colour],
        "colours": list(layout.colour.values()),
        "note": text(layout.note),
        "views": {text(split): {m: rows(edges) for m, edges in models.items()} for split, models in views.items()},
        "truth": rows(truth),
    }  # fmt: skip
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    before, after = _PAGE.split("/*PLOTLY*/")
    return b"".join((before.encode(), _plotlyjs(), after.replace("/*DATA*/", payload).encode()))


@lru_cache(maxsize=1)
def _plotlyjs() -> bytes:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().encode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>What the model believes</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>
body{font:15px/1.4 system-ui,sans-serif;margin:0;color:#222;background:#fff;display:flex;flex-flow:column;height:100vh}
header{display:flex;flex-wrap:wrap;gap:.5em 1.6em;align-items:center;padding:.7em 1.2em;border-bottom:1px solid #ddd}
h1{font-size:17px;margin:0} select{font:inherit;padding:.15em .4em} #head{font-weight:600} #note{color:#666}
#graph{flex:1;min-height:640px}
</style>
<script>/*PLOTLY*/</script></head><body>
<header><h1>What the model believes</h1>
<label>split <select id="split"></select></label> <label>model <select id="model"></select></label>
<label><input type="checkbox" id="wrong"> only what is wrong</label>
<span id="head"></span> <span id="note"></span></header>
<div id="graph"></div>
<script>
const D = /*DATA*/;
const $ = id => document.getElementById(id);
const X = D.angle.map(Math.cos), Y = D.angle.map(Math.sin), SIZE = D.names.length > 60 ? 9 : 12;
const STEPS = [...Array(17).keys()].map(k => k / 16);
const plain = html => new DOMParser().parseFromString(html, 'text/html').body.textContent;
const option = (id, html, value) => $(id).add(new Option(plain(html), value));

function listModels() {
  const before = $('model').value, models = [...Object.keys(D.views[$('split').value]), 'truth'];
  $('model').replaceChildren();
  models.forEach(m => option('model', m === 'truth' ? 'the truth, all splits' : m, m));
  $('model').value = models.includes(before) ? before : models.at(-2);
}
function lines(edges, answer, right) {
  const x = [], y = [], text = [], mode = 'lines', legendgroup = answer + '/' + right;
  for (const [i, j, , , hover] of edges) {  // as _curves does
    const near = Math.hypot(X[i] + X[j], Y[i] + Y[j]) / 2;
    const curve = U => STEPS.map(t => (1 - t) ** 2 * U[i] + t * (1 - t) * near * (U[i] + U[j]) + t * t * U[j]);
    x.push(...curve(X), null); y.push(...curve(Y), null); text.push(...STEPS.map(() => hover), '');
  }
  const few = Math.min(1, 60 / edges.length), opacity = right ? 0.4 + 0.4 * few : 0.95;
  const width = right ? 1 + few : 0.8 + 1.4 * Math.sqrt(few);
  const line = {color: D.colours[answer], width, dash: right ? 'solid' : '6px,3px'};
  const name = D.answers[answer] + (right ? '' : ', wrong') + ' (' + edges.length + ')';
  return [{x, y, text, line, mode, legendgroup, showlegend: false, hoverinfo: 'text', opacity},
    {x: [null], y: [null], name, line: {...line, width: 2.5}, mode, legendgroup}];  // the legend, in full colour
}
const pen = Object.assign(document.createElement('canvas').getContext('2d'), {font: SIZE + 'px sans-serif'});
const LENGTH = D.names.map(html => pen.measureText(plain(html)).width);
const room = along => Math.max(...along.map((part, i) => Math.abs(part) * (LENGTH[i] + 24)));  // for the labels
function label(html, i) {  // plotly turns a label around its middle: push the middle outwards by half its length
  const away = LENGTH[i] / 2 + 10, turn = -D.angle[i] * 180 / Math.PI + (X[i] < 0 ? 180 : 0);
  return {x: X[i], y: Y[i], xshift: away * X[i], yshift: away * Y[i], text: html, textangle: turn, showarrow: false,
    xanchor: 'center', yanchor: 'middle', font: {size: SIZE, family: 'sans-serif', color: '#111'}};
}
function draw() {
  const truth = $('model').value === 'truth';
  const all = truth ? D.truth : D.views[$('split').value][$('model').value], wrong = all.filter(e => !e[3]);
  const shown = $('wrong').checked && !truth ? wrong : all, traces = [];
  $('head').textContent = truth ? all.length + ' facts' : wrong.length + ' of ' + all.length + ' wrong';
  $('split').disabled = $('wrong').disabled = truth;
  for (const right of [1, 0]) D.answers.forEach((_, answer) => {
    const edges = shown.filter(e => e[2] === answer && e[3] === right);
    if (edges.length) traces.push(...lines(edges, answer, right));
  });
  const marker = {size: 7, color: '#444'};
  traces.push({x: X, y: Y, text: D.names, mode: 'markers', hoverinfo: 'text', showlegend: false, marker});
  const legend = traces.map(({name}) => name ? pen.measureText(plain(name)).width + 60 : 0).reduce((a, b) => a + b);
  const below = room(Y) + 10 + 29 * Math.ceil(1.5 * legend / innerWidth);  // 29 pixels for a row of the legend
  const axis = {visible: false, range: [-1.03, 1.03]}, margin = {l: room(X), r: room(X), t: room(Y), b: below};
  Plotly.react('graph', traces, {margin, xaxis: axis, yaxis: {...axis, scaleanchor: 'x'}, hovermode: 'closest',
    annotations: D.names.map(label), hoverlabel: {align: 'left', bgcolor: '#fff', font: {color: '#111'}},
    legend: {orientation: 'h', x: 0.5, xanchor: 'center', y: 0.01, yref: 'container', yanchor: 'bottom'}},
    {responsive: true, displaylogo: false, modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']]});
}
$('note').innerHTML = D.note; $('split').onchange = () => { listModels(); draw(); };
$('model').onchange = $('wrong').onchange = draw;
Object.keys(D.views).forEach(split => option('split', split, split)); listModels(); draw();
</script></body></html>
"""
