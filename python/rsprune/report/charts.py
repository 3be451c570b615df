"""Charts of the report: SVG text that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH = 340  # points, so that a phone shows the labels at their own size
FONT = 12.5  # points of that width
MAX_LABEL = 20  # characters of a scene or source name
BINS = 48
COARSE = 3  # degrees; in a smaller area the outlines of land, good to a quarter of a degree, would mislead

# Stand-ins that are replaced in the finished text: matplotlib itself knows no CSS variables.
INK, SOFT, BAR, ACCENT, RULE, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_COLOURS = {
    INK: "var(--ink)", SOFT: "var(--soft)", BAR: "var(--bar)", ACCENT: "var(--accent)", RULE: "var(--rule)",
    PAPER: "var(--paper)",
}  # fmt: skip
_STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": FONT,
    "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": RULE, "xtick.color": SOFT,
    "ytick.color": SOFT, "xtick.labelcolor": SOFT, "ytick.labelcolor": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.spines.left": False, "axes.linewidth": 1, "xtick.major.width": 1,
    "xtick.major.size": 3, "ytick.major.size": 0, "axes.facecolor": "none", "figure.facecolor": "none",
    "text.usetex": False, "text.parse_math": False,
}  # fmt: skip


def histogram(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    threshold: float | None,
    *,
    label: str,
    alt: str,
    log: bool = False,
) -> str:
    """A score of all images and of the kept ones, one panel per source.

    Args:
        panels: by source name, values of all readable images [N] and of the kept ones [M].
        threshold: beyond which images were dropped; None draws no line.
        label: score and unit.
        alt: what the chart shows, in words.
        log: whether bars grow with the logarithm of the number, where most images share one value.
    """
    values = np.concatenate([a for a, _ in panels.values()]) if panels else np.empty(0)
    lo, hi = (float(values.min()), float(values.max())) if len(values) else (0, 8)
    if threshold is not None:
        lo, hi = min(lo, threshold), max(hi, threshold)
    if hi - lo < 1e-3:
        lo, hi = lo - 0.5, hi + 0.5
    edges: np.ndarray = np.linspace(lo, hi, BINS + 1)
    if threshold is not None:  # between two bars
        width = (hi - lo) / BINS
        below, above = math.ceil((threshold - lo) / width), math.floor((hi - threshold) / width) + 1
        edges = threshold + width * np.arange(-below, above + 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (name, (everything, kept)) in zip(axes, panels.items(), strict=True):
            counts, kept_counts = np.histogram(everything, edges)[0], np.histogram(kept, edges)[0]
            if log:
                axis.set_yscale("log", nonpositive="clip")
            for heights, colour in ((counts, BAR), (kept_counts, ACCENT)):
                axis.stairs(heights, edges, fill=True, color=colour, linewidth=0, baseline=0.5 if log else 0)
            if threshold is not None:
                axis.axvline(threshold, color=INK, linewidth=1, dashes=(3, 2))
            axis.minorticks_off()
            highest = max(counts.max(initial=1), 1)
            axis.set_yticks([highest], [f"{highest:,}"], color=SOFT)  # what the highest bar stands for
            axis.set_ylim(*((0.5, highest * 2) if log else (0, highest * 1.05)))
            if len(panels) > 1:
                title = f"{_short(name)}, {_images(len(everything))}"
                axis.set_title(title, loc="left", fontsize=FONT, color=INK, pad=6)
        axes[-1].set_xlim(edges[0], edges[-1])
        axes[-1].set_xlabel(label, fontsize=FONT)
        axes[-1].xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))

    return _svg(draw, height=150 if len(panels) < 2 else 46 + 90 * len(panels), alt=alt)


def scene_shares(scenes: Sequence[tuple[str, float, float]], *, alt: str) -> str:
    """Share of each scene before and after, as a line from a hollow to a full dot.

    Args:
        scenes: name, share of the pool, share of the kept images; the first comes on top.
        alt: what the chart shows, in words.
    """

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for y, (_, before, after) in enumerate(scenes):
            axis.plot([before, after], [y, y], color=RULE, linewidth=3, solid_capstyle="round", zorder=1)
        at = range(len(scenes))
        dot: dict[str, Any] = {"s": 34, "zorder": 2, "linewidths": 1.6, "clip_on": False}
        axis.scatter([b for _, b, _ in scenes], at, facecolors="none", edgecolors=SOFT, **dot)
        axis.scatter([a for _, _, a in scenes], at, color=ACCENT, edgecolors=ACCENT, **{**dot, "zorder": 3})
        axis.set_yticks(list(at), [_short(name) for name, _, _ in scenes])
        axis.set_ylim(len(scenes) - 0.4, -0.6)
        axis.set_xlim(0, 1.04 * max((max(b, a) for _, b, a in scenes), default=1))
        axis.tick_params(axis="y", pad=9)
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        axis.grid(axis="x", color=RULE, linewidth=0.5)
        axis.set_axisbelow(True)

    return _svg(draw, height=38 + 21 * len(scenes), alt=alt)


def scatter(points: np.ndarray, kept: np.ndarray, *, alt: str) -> str:
    """Images as points [N, 2], the kept ones [N] bool on top in another colour."""

    def draw(figure: Figure) -> None:
        axis = figure.add_axes((0, 0, 1, 1))
        axis.axis("off")
        axis.scatter(points[~kept, 0], points[~kept, 1], s=5, color=BAR, linewidths=0)
        axis.scatter(points[kept, 0], points[kept, 1], s=9, color=ACCENT, linewidths=0)

    return _svg(draw, height=260, alt=alt)


def overview(
    areas: Sequence[tuple[tuple[float, float, float, float], int]], land: Sequence[np.ndarray], *, alt: str
) -> str:
    """A map of the earth with a dot per area, the larger the more images it has.

    Args:
        areas: south, north, west and east (degrees) of each, and its images.
        land: rings of longitude and latitude [n, 2], degrees.
        alt: what the map shows, in words.
    """
    most = max(n for _, n in areas)
    low = min(-60.0, *(south for (south, *_), _ in areas))  # without Antarctica where nothing lies there
    high = max(85.0, *(north for (_, north, *_), _ in areas))

    def draw(figure: Figure) -> None:
        axis = figure.add_axes((0, 0, 1, 1))
        axis.axis("off")
        axis.add_collection(PolyCollection(land, facecolor=RULE, edgecolor="none"))
        for (south, north, west, east), n in areas:
            size = 12 + 60 * math.sqrt(n / most)
            axis.scatter((west + east) / 2, (south + north) / 2, s=size, color=ACCENT, linewidths=0, zorder=2)
        axis.set(xlim=(-180, 180), ylim=(low, high), aspect=1)

    return _svg(draw, height=WIDTH * (high - low) / 360, alt=alt)


def density(grid: Mapping[str, Any], land: Sequence[np.ndarray], *, alt: str) -> str:
    """Images per cell of an area, and kept ones beside them.

    Args:
        grid: an area as from `maps.density`.
        land: rings of longitude and latitude [n, 2], degrees.
        alt: what the maps show, in words.
    """
    lat, lon = grid["lat"], grid["lon"]
    wide = (lon[-1] - lon[0]) / (lat[-1] - lat[0]) / grid["aspect"]

    def draw(figure: Figure) -> None:
        scale = LogNorm(0.7, max(2, grid["images"].max()))
        for axis, name in zip(figure.subplots(1, 2), ("images", "kept"), strict=True):
            if max(lat[-1] - lat[0], lon[-1] - lon[0]) > COARSE:
                axis.add_collection(PolyCollection(land, facecolor=RULE, edgecolor="none", zorder=1))
                for colour, width in ((PAPER, 1.8), (INK, 0.7)):  # seen on dark cells and on bright ones
                    style: dict[str, Any] = {"facecolor": "none", "edgecolor": colour, "linewidth": width}
                    axis.add_collection(PolyCollection(land, **style, zorder=3))
            cells = np.ma.masked_less(grid[name], 1)
            axis.imshow(cells, cmap="cividis", norm=scale, origin="lower", aspect=grid["aspect"], zorder=2,
                        extent=(lon[0], lon[-1], lat[0], lat[-1]), interpolation="nearest")  # fmt: skip
            axis.set(xlim=(lon[0], lon[-1]), ylim=(lat[0], lat[-1]), xticks=[], yticks=[])
            n = grid[name].sum()
            title = _images(n) if name == "images" else f"{n:,} kept"
            axis.set_title(title, loc="left", fontsize=FONT, color=INK, pad=3)

    return _svg(draw, height=min(30 + WIDTH / 2 / max(wide, 0.5), 400), alt=alt)


def _images(n: int) -> str:
    return f"{n:,} {'image' if n == 1 else 'images'}"


def _short(name: str) -> str:
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"


def _svg(draw: Callable[[Figure], None], *, height: float, alt: str) -> str:
    text = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": alt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names in scripts that the measuring font does not have
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        draw(figure)
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), alt)


def _inline(svg: str, alt: str) -> str:
    """What HTML needs of an SVG file: no prologue, metadata, namespaces, fixed size or unused ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    size = re.search(r'viewBox="[^"]+"', svg)
    assert size is not None
    svg = f'<svg {size[0]} role="img" aria-label="{escape(alt)}">' + svg[svg.index(">") + 1 :]
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"font: (?:[a-z]+ )*([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return re.sub(r"\n\s*", "\n", svg).strip()
