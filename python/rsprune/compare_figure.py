"""The comparison of runs as one picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rsprune.files import write_atomic

SCENES_SHOWN = 20
MAX_LABEL = 24  # characters
COLOURS = ("#b4470a", "#2f6690", "#5d7b35", "#7a4b8c", "#b08a1e", "#47545c", "#a63d57", "#2a8c82")
POOL = "#b9bdc1"
_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#8c9297", "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"], "text.parse_math": False, "text.usetex": False,
}  # fmt: skip


def draw_comparison(facts: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG of what `compare` found: overlap, scenes, clusters, entropy and coverage."""
    scenes = _largest_scenes(facts)
    rows = max(1, len(scenes)) * max(1, len(facts["runs"]))
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names in scripts that the font does not have
        figure = Figure(figsize=(11, 7 + 0.1 * min(rows, 60)), layout="constrained")
        halves = figure.add_gridspec(1, 2, width_ratios=(1, 1.1))
        left = halves[0].subgridspec(3, 1, height_ratios=(1.1, 1, 1))
        right = halves[1].subgridspec(2, 1, height_ratios=(max(1.2, 0.05 * rows), 1))
        _overlap(figure.add_subplot(left[0]), facts)
        _entropy(figure.add_subplot(left[1]), facts)
        _coverage(figure.add_subplot(left[2]), facts)
        _scenes(figure.add_subplot(right[0]), facts, scenes)
        _clusters(figure.add_subplot(right[1]), facts)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda f: f.write(buffer.getvalue()))


def _label(name: str) -> str:
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return name if len(name) <= MAX_LABEL else "…" + name[1 - MAX_LABEL :]


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _overlap(axis: Axes, facts: Mapping[str, Any]) -> None:
    jaccard = np.array(facts["overlap"]["jaccard"], float)
    names = [_label(run["name"]) for run in facts["runs"]]
    axis.imshow(jaccard, cmap="Greys", vmin=0, vmax=1.4, aspect="auto")
    for (i, j), value in np.ndenumerate(jaccard):
        both = facts["overlap"]["both"][i][j]
        text = f"{both:,}" if i == j or np.isnan(value) else f"{both:,}\n{value:.2f}"
        axis.text(j, i, text, ha="center", va="center", color="white" if value > 0.7 else "black")
    axis.set_xticks(range(len(names)), names, rotation=25 if len(names) > 4 else 0)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("images that both keep, and Jaccard index")


def _entropy(axis: Axes, facts: Mapping[str, Any]) -> None:
    edges = facts["entropy_edges"]
    pool = np.array(facts["runs"][0]["entropy"]["readable_histogram"], float)
    axis.stairs(pool / max(pool.sum(), 1), edges, fill=True, color=POOL, label="all readable")
    for i, run in enumerate(facts["runs"]):
        counts = np.array(run["entropy"]["kept_histogram"], float)
        axis.stairs(
            counts / max(counts.sum(), 1), edges, color=_colour(i), linewidth=1.4, label=_label(run["name"])
        )
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("patch entropy, bits")
    axis.set_title("entropy of the kept images")
    axis.legend(frameon=False)


def _coverage(axis: Axes, facts: Mapping[str, Any]) -> None:
    entries = [(_label(r["name"]), _colour(i), "-", r["coverage"]) for i, r in enumerate(facts["runs"])]
    entries.append((facts["baseline"]["name"], "#8c9297", "--", facts["baseline"]["coverage"]))
    for name, colour, style, found in entries:
        if found:
            label = f"{name}: mean {found['mean']:.3f}, 95 % below {found['p95']:.3f}"
            axis.plot(found["percentiles"], np.arange(101), color=colour, linestyle=style, label=label)
    axis.set_ylim(0, 101)
    axis.set_xlim(left=0)
    axis.set_ylabel("% of dropped images")
    axis.set_xlabel(f"distance to the nearest kept image, judged by {_label(Path(facts['judge']).name)}")
    axis.set_title("coverage (further left is better)")
    if any(found for *_, found in entries):
        axis.legend(frameon=False, loc="lower right", fontsize=8)


def _largest_scenes(facts: Mapping[str, Any]) -> list[str]:
    largest: dict[str, int] = {}
    for run in facts["runs"]:
        for name, (before, _) in run["scenes"].items():
            largest[name] = max(before, largest.get(name, 0))
    return sorted(largest, key=lambda name: (-largest[name], name))[:SCENES_SHOWN]


def _scenes(axis: Axes, facts: Mapping[str, Any], scenes: list[str]) -> None:
    height = 0.8 / len(facts["runs"])
    for i, run in enumerate(facts["runs"]):
        before, after = (max(1, sum(pair[j] for pair in run["scenes"].values())) for j in (0, 1))
        at = np.arange(len(scenes)) + (i - (len(facts["runs"]) - 1) / 2) * height
        shares = [run["scenes"].get(name, (0, 0)) for name in scenes]
        axis.barh(
            at,
            [100 * a / after for _, a in shares],
            height * 0.9,
            color=_colour(i),
            label=_label(run["name"]),
        )
        marks = [100 * b / before for b, _ in shares]
        axis.scatter(marks, at, marker="|", s=200 * height, color="black", linewidths=1.4, zorder=3,
                     label="before" if i == 0 else None)  # fmt: skip
    axis.set_yticks(range(len(scenes)), [_label(name) for name in scenes])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(max(0.5, len(scenes) - 0.5), -0.5)
    axis.set_xlabel("% of the images")
    axis.set_title("scenes: bars after, marks before")
    axis.legend(frameon=False)


def _clusters(axis: Axes, facts: Mapping[str, Any]) -> None:
    for i, run in enumerate(facts["runs"]):
        before, after = (np.array(run["clusters"][k], float) for k in ("before", "after"))
        order = np.argsort(-before, kind="stable")
        x = (np.arange(len(order)) + 0.5) / max(len(order), 1)
        for counts, style, width in ((before, ":", 1.2), (after, "-", 1.4)):
            label = _label(run["name"]) if counts is after else None
            shares = 100 * counts[order] / max(counts.sum(), 1)
            axis.plot(100 * x, shares, style, color=_colour(i), linewidth=width, label=label)
    axis.set_xlabel("clusters, largest first, %")
    axis.set_ylabel("% of the images")
    axis.set_ylim(bottom=0)
    axis.set_title("clusters: lines after, dots before")
    axis.legend(frameon=False)
