"""Pictures of an experiment: curves, what the last step comes to, and the curve over kept shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rsprune.experiment.references import KINDS
from rsprune.files import write_atomic

COLOURS = {
    "full": "#222222", "reweighted": "#8a8a8a", "random": "#c44e52", "entropy": "#ccb974", "dedup": "#64b5cd",
    "balanced": "#55a868", "rsprune": "#1f4fd8",
}  # fmt: skip
TITLES = {"natural": "natural reference", "balanced": "balanced reference"}
DPI = 110


def draw(facts: dict[str, Any], out: Path) -> list[str]:
    """Writes the pictures that the runs done so far allow; returns their names."""
    names = []
    if any(facts["curves"].values()):
        names += [_curves(facts, out / "curves.png"), _last(facts, out / "last.png")]
        shares = {(arm["strategy"], arm["keep"]) for arm in facts["arms"]}
        if len(shares) > len({strategy for strategy, _ in shares}):
            names.append(_shares(facts, out / "keep.png"))
    return names


def _curves(facts: dict[str, Any], path: Path) -> str:
    """Loss over steps: a thin line per seed, a thick one for the mean."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots(1, 2)
    for axis, kind in zip(axes, KINDS, strict=True):
        for arm in facts["arms"]:
            curves = facts["curves"][kind].get(arm["label"])
            if not curves:
                continue
            style = {"color": COLOURS.get(arm["strategy"]), "linestyle": _dash(arm)}
            for curve in curves.values():
                axis.plot(list(curve), list(curve.values()), lw=0.6, alpha=0.5, **style)
            mean = [np.mean([c[s] for c in curves.values() if s in c]) for s in facts["steps"]]
            axis.plot(facts["steps"], mean, lw=2, marker="o", ms=3, label=arm["label"], **style)
        axis.set(
            title=TITLES[kind], xlabel="optimiser steps", ylabel="held-out loss", xscale="log", yscale="log"
        )
        axis.set_xticks(facts["steps"], [f"{s:,}" for s in facts["steps"]], rotation=30, ha="right")
        axis.minorticks_off()
        _plain_y(axis)
    axes[1].legend(fontsize=8, frameon=False)
    return _save(figure, path)


def _last(facts: dict[str, Any], path: Path) -> str:
    """Every seed's loss at the last step, as difference from the full arm with that seed."""
    figure = Figure(figsize=(10, 0.4 * len(facts["arms"]) + 1.4), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots(1, 2, sharey=True)
    labels = [arm["label"] for arm in facts["arms"]]
    for axis, kind in zip(axes, KINDS, strict=True):
        curves, last = facts["curves"][kind], facts["steps"][-1]
        base = {s: c[last] for s, c in curves.get("full", {}).items() if last in c}
        for y, arm in enumerate(facts["arms"]):
            at = {s: c[last] for s, c in curves.get(arm["label"], {}).items() if last in c}
            x = [100 * (v / base[s] - 1) for s, v in at.items() if s in base]
            axis.plot(x, [y] * len(x), "o", ms=6, alpha=0.7, color=COLOURS.get(arm["strategy"]))
        axis.axvline(0, color="#222222", lw=0.8)
        axis.set(title=TITLES[kind], xlabel="held-out loss against full with the same seed, %")
        axis.set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    return _save(figure, path)


def _shares(facts: dict[str, Any], path: Path) -> str:
    """Loss over the kept share, a row of panels per checkpoint: means, and a dot per seed; lines across are everything."""
    steps = facts["steps"]
    figure = Figure(figsize=(10, 3.4 * len(steps)), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots(len(steps), 2, squeeze=False)
    for row, step in zip(axes, steps, strict=True):
        for axis, kind in zip(row, KINDS, strict=True):
            for strategy, colour in COLOURS.items():
                arms = [a for a in facts["arms"] if a["strategy"] == strategy]
                at = {a["label"]: _mean(facts["curves"][kind].get(a["label"], {}), step) for a in arms}
                points = sorted((a["keep"], at[a["label"]]) for a in arms if at[a["label"]] is not None)
                if not points:
                    continue
                if strategy in ("full", "reweighted"):
                    axis.axhline(points[0][1], color=colour, lw=1.2, ls="--", label=strategy)
                else:
                    axis.plot(*zip(*points, strict=True), "-", color=colour, label=strategy)
                    for arm in arms:
                        each = [c[step] for c in facts["curves"][kind].get(arm["label"], {}).values()]
                        axis.plot([arm["keep"]] * len(each), each, "o", ms=4, alpha=0.6, color=colour)
            axis.set(title=f"{TITLES[kind]}, {step:,} steps", xscale="log", ylabel="held-out loss")
            ticks = sorted({a["keep"] for a in facts["arms"]})
            axis.set_xticks(ticks, [f"{100 * t:g} %" for t in ticks])
            axis.minorticks_off()
    axes[0, 1].legend(fontsize=8, frameon=False)
    return _save(figure, path)


def _mean(curves: dict[int, dict[int, float]], step: int) -> float | None:
    values = [curve[step] for curve in curves.values() if step in curve]
    return float(np.mean(values)) if values else None


def _dash(arm: dict[str, Any]) -> str:
    return {0.5: "-", 0.04: "--", 0.01: ":"}.get(arm["keep"], "-")


def _plain_y(axis: Any) -> None:
    low, high = axis.get_ylim()
    ticks = np.geomspace(low, high, 7)[1:-1]
    axis.set_yticks(ticks, [f"{t:.3f}" for t in ticks])


def _save(figure: Figure, path: Path) -> str:
    write_atomic(path, lambda f: figure.savefig(f, format="png", dpi=DPI))
    return path.name
