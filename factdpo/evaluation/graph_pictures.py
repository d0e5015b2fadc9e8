"""Belief graphs as PNG files: one or two panels side by side, in few colours so that many runs take little room."""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from factdpo.evaluation.graph_layout import OTHER, Edge, Layout, shorten

RADIUS = 250  # of the circle, in pixels
SHADES = 128  # colours of one panel; two panels fill a palette


def write_png(path: Path, panels: list[Image.Image]) -> Path:
    """Write one or two panels side by side; returns the path."""
    side_by_side(panels).save(path, compress_type=3)  # zlib's Z_RLE: a third of the default's time, a tenth more bytes
    return path


def side_by_side(panels: list[Image.Image]) -> Image.Image:
    """One or two panels as one picture, each with its own colours."""
    picture = Image.fromarray(np.hstack([np.asarray(panel) + SHADES * i for i, panel in enumerate(panels)]))
    picture.putpalette(b"".join(bytes(p.getpalette() or ())[: 3 * SHADES].ljust(3 * SHADES) for p in panels))
    return picture


@lru_cache(maxsize=32)  # the truth, and what the base believes, are the same for all runs of a sweep on one split
def panel(title: str, heading: str, edges: tuple[Edge, ...], layout: Layout) -> Image.Image:
    """One graph in at most SHADES colours: the edges within the frame that all graphs of the layout share."""
    half = RADIUS + 8  # of the square that the edges are drawn in, in pixels
    drawn = _draw_edges(edges, layout, half)
    frame, (x, y) = _frame(layout)
    image, box = frame.copy(), (x - half, y - half, x - half + drawn.width, y - half + drawn.height)
    image.paste(ImageChops.multiply(drawn, frame.crop(box)), box)
    pen = ImageDraw.Draw(image)
    pen.text((x, 26), title, "#222222", _font(20), anchor="mm")
    pen.text((x, 52), heading, "#222222", _font(15), anchor="mm")
    return image.quantize(SHADES, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)  # a quarter of the bytes


def _draw_edges(edges: tuple[Edge, ...], layout: Layout, half: int) -> Image.Image:
    """The edges alone on white, wrong ones dashed and on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure  # no pyplot: no global state, and Agg whatever the caller's backend

    canvas = FigureCanvasAgg(Figure((half / 50, half / 50), dpi=100))
    for right in (True, False):
        drawn = [edge for edge in edges if edge.right is right]
        if not drawn:
            continue
        few = min(1.0, 60 / len(drawn))  # many edges are drawn thinner and paler, else they hide each other
        width, opacity = (0.6 + 0.9 * few, 0.35 + 0.45 * few) if right else (0.3 + 1.3 * math.sqrt(few), 0.95)
        curves, order = _curves(drawn, layout)
        lines = LineCollection(list(0.5 + curves * RADIUS / half / 2), lw=width, ls="-" if right else (0, (4, 2)))
        lines.set_color([layout.colour[drawn[i].belief] + f"{round(255 * opacity):02X}" for i in order])
        canvas.figure.add_artist(lines)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _curves(edges: list[Edge], layout: Layout, steps: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """The edges as points on quadratic Bézier curves, [edge, step, x or y], and the number of each curve's edge.

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
    names = [(shorten(name), *layout.point(name)) for name in layout.angle]
    reach = [(RADIUS + 20 + font.getlength(name) / 2) * np.abs((cos, sin)) for name, cos, sin in names]
    x, y = (math.ceil(half) for half in np.max(reach, axis=0, initial=RADIUS + 20))
    answers = sorted(layout.colour.items(), key=lambda pair: (pair[1] == OTHER, pair[0]))
    legend = {colour: shorten(answer) if colour != OTHER else "other answers" for answer, colour in answers}
    width = sum(110 + label.getlength(answer) for answer in legend.values())
    x, bottom = max(x, math.ceil(width / 4), 320), 4 * y + 160  # wide enough for the legend and the heading
    frame = Image.new("RGB", (4 * x, bottom + 90), "white")  # at twice the size, for smooth edges
    pen, left = ImageDraw.Draw(frame), 2 * x - width / 2
    for colour, answer in legend.items():
        pen.line((left + 10, bottom, left + 65, bottom), colour, 6)
        pen.text((left + 80, bottom), answer, "#222222", label, anchor="lm")
        left += 110 + label.getlength(answer)
    pen.text((2 * x, bottom + 60), layout.note, "#666666", _font(24), anchor="mm")
    for name, cos, sin in names:
        px, py = 2 * (x + RADIUS * cos), 2 * (y + 70 - RADIUS * sin)
        pen.ellipse((px - 7, py - 7, px + 7, py + 7), "#444444")
        text = Image.new("L", (int(font.getlength(name)) + 4, 2 * int(font.size)))
        ImageDraw.Draw(text).text((text.width / 2, text.height / 2), name, 255, font, anchor="mm")
        away = text.width / 2 + 18
        upright = math.degrees(math.atan2(sin, cos)) + (180 if cos < 0 else 0)  # no name stands on its head
        text = text.rotate(upright, Image.Resampling.BICUBIC, expand=True)
        corner = round(px + away * cos - text.width / 2), round(py - away * sin - text.height / 2)
        frame.paste("#111111", corner, text)
    return frame.resize((2 * x, bottom // 2 + 45), Image.Resampling.BOX), (x, y + 70)


def _font(pixels: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", pixels)
