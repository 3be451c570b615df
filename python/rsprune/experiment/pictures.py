"""Pictures of an experiment: curves, what the last step comes to, and the curve over kept shares."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rsprune.experiment.references import KINDS
from rsprune.experiment.summary import TOLERANCE
from rsprune.files import write_atomic

COLOURS = {
    "full": "#222222", "reweighted": "#8a8a8a", "random": "#c44e52", "entropy": "#ccb974", "dedup": "#64b5cd",
    "balanced": "#55a868", "rsprune": "#1f4fd8",
}  # fmt: skip
TITLES = {"natural": "natural reference", "balanced": "balanced reference"}
SHARE_TICKS = (-10, -5, -2, 0, 2, 5, 10, 20, 50, 100)  # per cent
DPI = 110


def draw(facts: dict[str, Any], out: Path) -> list[str]:
    """Writes the pictures that the runs done so far allow; returns their names."""
    names = []
    if any(facts["curves"].values()):
        names += [_curves(facts, out / "curves.png"), _last(facts, out / "last.png")]
        shares = {(arm["strategy"], arm["keep"]) for arm in facts["arms"] if not arm["name"]}
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
    axes[1].legend(fontsize=8, frameon=False, handlelength=4, loc="upper left", bbox_to_anchor=(1, 1))
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
    """Loss over the kept share, as difference from the full arm with the same seed: a dot per seed, lines for means.

    A row of panels per checkpoint; what is enough lies below the upper edge of the grey band.
    """
    steps = facts["steps"]
    figure = Figure(figsize=(10, 3.4 * len(steps)), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots(len(steps), 2, squeeze=False, sharey=True)
    shares = sorted({arm["keep"] for arm in facts["arms"] if not arm["name"]})
    for row, step in zip(axes, steps, strict=True):
        for axis, kind in zip(row, KINDS, strict=True):
            axis.axhspan(0, 100 * TOLERANCE, color="#000000", alpha=0.08, lw=0)
            axis.axhline(0, color=COLOURS["full"], lw=1.2, ls="--", label="full")
            for strategy, colour in COLOURS.items():
                at = differences(facts, kind, step, strategy)
                means = {share: np.mean(values) for share, values in sorted(at.items()) if values}
                if strategy == "full" or not means:
                    continue
                if strategy == "reweighted":
                    axis.axhline(np.mean(list(means.values())), color=colour, lw=1.2, ls="--", label=strategy)
                    continue
                axis.plot(list(means), list(means.values()), "-", color=colour, label=strategy)
                for share, values in at.items():
                    axis.plot([share] * len(values), values, "o", ms=4, alpha=0.6, color=colour)
            axis.set(title=f"{TITLES[kind]}, {step:,} steps", xscale="log")
            axis.set_yscale("symlog", linthresh=5, linscale=2)
            axis.set_yticks(SHARE_TICKS, [f"{t:+g}" if t else "0" for t in SHARE_TICKS])
            axis.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
            axis.minorticks_off()
        row[0].set_ylabel("held-out loss against full, %")
    axes[0, 1].legend(fontsize=8, frameon=False)
    return _save(figure, path)


def differences(facts: dict[str, Any], kind: str, step: int, strategy: str) -> dict[float, list[float]]:
    """Per cent by which a strategy's losses exceed those of the full arm with the same seed, by kept share.

    Arms that have a name of their own have other settings than their strategy's, and are left out.
    """
    curves = facts["curves"][kind]
    found: dict[float, list[float]] = defaultdict(list)
    base = {seed: curve[step] for seed, curve in curves.get("full", {}).items() if step in curve}
    for arm in facts["arms"]:
        if arm["strategy"] == strategy and not arm["name"]:
            mine = curves.get(arm["label"], {})
            both = [seed for seed, curve in mine.items() if step in curve and seed in base]
            found[arm["keep"]] += [100 * (mine[seed][step] / base[seed] - 1) for seed in both]
    return found


def _dash(arm: dict[str, Any]) -> str:
    return {0.5: "-", 0.04: "--", 0.01: ":"}.get(arm["keep"], "-")


def _plain_y(axis: Any) -> None:
    low, high = axis.get_ylim()
    ticks = np.geomspace(low, high, 7)[1:-1]
    axis.set_yticks(ticks, [f"{t:.3f}" for t in ticks])


def _save(figure: Figure, path: Path) -> str:
    write_atomic(path, lambda f: figure.savefig(f, format="png", dpi=DPI))
    return path.name
