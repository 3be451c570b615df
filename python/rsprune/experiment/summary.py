"""What the rows of an experiment amount to: curves, comparisons, convergence; plain facts for text and pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rsprune.evaluation.evaluate import NAMES
from rsprune.experiment.config import ExperimentConfig
from rsprune.experiment.downstream import SCRATCH
from rsprune.experiment.references import KINDS
from rsprune.experiment.statistics import first_reached, holm, interval, paired

Row = dict[str, Any]
Curves = dict[str, dict[int, dict[int, float]]]  # arm -> seed -> step -> loss
PRIMARY = "balanced"  # the reference of the primary comparisons
DISTANCES = ("KD", "FD", "FD-infinity", "precision", "recall", "density", "coverage")
# Of a fine-tuning: method and metric, with a title; and methods that no foundation has a part in.
SCORES = {
    "super-resolution": {
        "expected psnr": "PSNR (dB)",
        "expected ssim": "SSIM",
        "expected lpips": "LPIPS",
        "sample psnr": "PSNR of a sample",
        "sample lpips": "LPIPS of a sample",
    },
    "semantic": {"generated miou": "mIoU", "generated accuracy": "pixels right", "kd value": "KD-AlexNet"},
}
FLOORS = {"bicubic": "bicubic", "real": "real images", "shuffled": "real images of other layouts"}
WHOLE = ("full", "reweighted")  # strategies that train on everything
# What a smaller kept set may lose and still be called enough: more than the same run differs by on two machines
# (docs/evidence.md), less than most arms do.
TOLERANCE = 0.02
MEMORY = ("memorisation: ratio", "memorisation: close", "memorisation: nearer")


def summarise(
    settings: ExperimentConfig, rows: Sequence[Row], arms: list[dict[str, Any]], data: dict[str, Any]
) -> dict[str, Any]:
    """Facts for text and pictures, JSON-able.

    Args:
        settings: Of the experiment.
        rows: As `results.read` gives them.
        arms: What every arm was given.
        data: Numbers of tiles.
    """
    curves = {kind: losses(rows, kind) for kind in KINDS}
    steps = settings.measure.checkpoints
    labels = [arm["label"] for arm in arms]
    return {
        "name": settings.name,
        "title": settings.title or settings.name,
        "done": sum(len(arm["seeds"]) for arm in arms),
        "planned": len(settings.arms) * len(settings.seeds),
        "seeds": list(settings.seeds),
        "steps": list(steps),
        "arms": arms,
        "data": data,
        "settings": asdict(settings),
        "revisions": sorted({row["revision"] or "not known" for row in rows if "revision" in row}),
        "machines": sorted({row["machine"] for row in rows if row.get("machine")}),
        "n_loss": {kind: max((r["n_real"] for r in _of(rows, kind, "loss")), default=0) for kind in KINDS},
        "curves": curves,
        "table": {
            kind: [_line(label, curves[kind].get(label, {}), steps) for label in labels] for kind in KINDS
        },
        "times": {kind: _times(rows, kind, labels, steps[-1]) for kind in KINDS},
        "clusters": _clusters(rows, labels, steps[-1]),
        "comparisons": {kind: comparisons(settings, curves[kind], steps[-1], kind) for kind in KINDS},
        "convergence": {kind: convergence(curves[kind], steps[-1]) for kind in KINDS},
        "enough": {kind: enough(settings, curves[kind]) for kind in KINDS},
        "distances": _distances(rows, labels),
        "downstream": _downstream(settings, rows, [*labels, SCRATCH]),
    }


def losses(rows: Sequence[Row], kind: str) -> Curves:
    """Mean held-out loss by arm, seed and step."""
    found: Curves = defaultdict(lambda: defaultdict(dict))
    for row in _of(rows, kind, "loss"):
        if row.get("time") is None:
            found[row["arm"]][row["seed"]][row["step"]] = row["value"]
    return {arm: dict(seeds) for arm, seeds in found.items()}


def comparisons(settings: ExperimentConfig, curves: Curves, step: int, kind: str) -> list[dict[str, Any]]:
    """The first primary arm, or `rsprune`, against every other one at a step.

    p-values of the comparisons that were named before are corrected for their number; the others are not
    corrected and say so.
    """
    first = settings.primary[0] if settings.primary else None
    if first is None or first not in curves:
        return []
    at = {arm: {s: c[step] for s, c in seeds.items() if step in c} for arm, seeds in curves.items()}
    named = settings.primary[1:] if kind == PRIMARY else ()
    found = []
    for label in (arm.label for arm in settings.arms if arm.label != first):
        result = paired(at[first], at.get(label, {}))
        if result is not None:
            base = np.mean([at[label][s] for s in set(at[first]) & set(at[label])])
            about = {"first": first, "second": label, "relative": float(result.difference / base)}
            found.append({**about, **asdict(result), "primary": label in named})
    # What is not run yet counts as well: a part of the arms must not need less.
    given = {c["second"]: c["p"] for c in found if c["primary"]}
    corrected = dict(zip(named, holm([given.get(label, np.nan) for label in named]), strict=True))
    for comparison in found:
        comparison["p_holm"] = corrected.get(comparison["second"])
    return found


def convergence(curves: Curves, last: int) -> list[dict[str, Any]]:
    """Steps that each arm needs to reach the full arm's last loss, by seed; None where it does not."""
    found = []
    for arm, seeds in curves.items():
        if arm == "full":
            continue
        steps = {
            seed: first_reached(curve, curves["full"][seed][last])
            for seed, curve in seeds.items()
            if last in curves.get("full", {}).get(seed, {})
        }
        speed = [last / s for s in steps.values() if s]
        mean = float(np.mean(speed)) if speed and len(speed) == len(steps) else None
        found.append({"arm": arm, "steps": steps, "speed_up": mean})
    return found


def enough(settings: ExperimentConfig, curves: Curves) -> list[dict[str, Any]]:
    """The smallest kept share that is as good as everything, by strategy, step and seed.

    As good: a loss at most `TOLERANCE` above that of `full`, or of `reweighted`, with the same seed and step. Between
    the shares that were run with this seed, two at least, loss and share lie on straight lines of logarithms. A share
    is None where none of those that were run is enough; the smallest that was run may be more than enough.
    """
    shares: dict[str, dict[float, str]] = defaultdict(dict)
    for arm in settings.arms:
        if arm.strategy not in WHOLE and not arm.name:
            shares[arm.strategy][arm.keep] = arm.label
    found = []
    for strategy, labels in shares.items():
        for whole in WHOLE:
            for step in settings.measure.checkpoints:
                limit: dict[int, float | None] = {}
                run: dict[int, list[float]] = {}
                for seed, curve in sorted(curves.get(whole, {}).items()):
                    done = {share: label for share, label in labels.items() if seed in curves.get(label, {})}
                    if len(done) > 1:
                        at = {share: curves[label][seed][step] for share, label in done.items()}
                        limit[seed] = first_reached(at, (1 + TOLERANCE) * curve[step])
                        run[seed] = sorted(done)
                if limit:
                    about = {"strategy": strategy, "against": whole, "step": step}
                    found.append({**about, "shares": limit, "run": run})
    return found


def _of(rows: Sequence[Row], kind: str, metric: str) -> list[Row]:
    return [row for row in rows if row.get("reference") == kind and row["metric"] == metric]


def _line(label: str, seeds: dict[int, dict[int, float]], steps: Sequence[int]) -> dict[str, Any]:
    cells = []
    for step in steps:
        values = {seed: curve[step] for seed, curve in sorted(seeds.items()) if step in curve}
        mean, half = interval(list(values.values())) if values else (None, None)
        cells.append({"step": step, "values": values, "mean": mean, "half": half})
    return {"arm": label, "cells": cells}


def _times(rows: Sequence[Row], kind: str, labels: list[str], step: int) -> list[dict[str, Any]]:
    """Mean over seeds at each time, at the last step."""
    by: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in _of(rows, kind, "loss"):
        if row.get("time") is not None and row["step"] == step:
            by[row["arm"], row["time"]].append(row["value"])
    times = sorted({time for _, time in by})
    return [
        {"arm": label, "values": {t: float(np.mean(by[label, t])) for t in times}}
        for label in labels
        if (label, times[0] if times else None) in by
    ]


def _clusters(rows: Sequence[Row], labels: list[str], step: int) -> dict[str, Any]:
    """Mean loss over seeds in each cluster of the held-out tiles, at the last step."""
    by: dict[tuple[str, str], list[float]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for row in rows:
        if str(row.get("reference")).startswith("cluster") and row["step"] == step:
            by[row["arm"], row["reference"]].append(row["value"])
            sizes[row["reference"]] = row["n_real"]
    names = sorted(sizes, key=lambda name: int(name.split()[1]))
    lines = [
        {"arm": label, "values": [float(np.mean(by[label, name])) for name in names]}
        for label in labels
        if names and (label, names[0]) in by
    ]
    return {"names": names, "sizes": [sizes[name] for name in names], "lines": lines}


def _distances(rows: Sequence[Row], labels: list[str]) -> list[dict[str, Any]]:
    """By extractor and reference: every metric of samples, then of real images, with its mean over seeds."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("extractor"):
            groups[row["extractor"], row["reference"]].append(row)
    found = []
    for (extractor, reference), members in groups.items():
        name = NAMES.get(extractor, extractor)
        cells: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        images: dict[str, int] = defaultdict(int)
        for row in members:
            cells[row["arm"], row["metric"]][row.get("seed", 0)] = row["value"]
            images[row["arm"]] = max(images[row["arm"]], row["n_generated"] or 0)
        arms = {arm: None for arm, _ in cells}
        shown = [m for m in (*DISTANCES, *MEMORY) if any((arm, m) in cells for arm in arms)]
        lines = []
        for arm in [*(label for label in labels if label in arms), *(a for a in arms if a not in labels)]:
            values = [cells.get((arm, m)) for m in shown]
            means = [interval(list(v.values())) if v else (None, None) for v in values]
            about = {"arm": arm, "images": images[arm]}
            lines.append({**about, "means": [m for m, _ in means], "halves": [h for _, h in means]})
        heads = [f"{m}-{name}" if m in DISTANCES[:3] else m for m in shown]
        about = {key: members[0].get(key) for key in ("extractor_hash", "resize", "n_real")}
        found.append({"extractor": name, "reference": reference, "heads": heads, "lines": lines, **about})
    return found


def _downstream(settings: ExperimentConfig, rows: Sequence[Row], starts: list[str]) -> list[dict[str, Any]]:
    """By task: scores of each start with their means over seeds, and of what no start has a part in."""
    found = []
    for task in settings.downstream:
        prefix, heads = f"{task.label}: ", SCORES[task.task]
        cells: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        mine = [r for r in rows if r.get("reference") == "downstream" and r["metric"].startswith(prefix)]
        for row in mine:
            method, _, metric = row["metric"].removeprefix(prefix).partition(" ")
            if method in FLOORS:  # the same for all starts of a seed
                shown = next((h for h in heads if h.split()[1] == metric), None)
                cells[FLOORS[method], shown or ""][row["seed"]] = row["value"]
            else:
                cells[row["arm"], f"{method} {metric}"][row["seed"]] = row["value"]
        lines = []
        for name in [*starts, *FLOORS.values()]:
            values = [cells.get((name, head), {}) for head in heads]
            if any(values):
                means = [interval(list(v.values())) if v else (None, None) for v in values]
                lines.append({"arm": name, "means": [m for m, _ in means], "halves": [h for _, h in means],
                              "seeds": values[0]})  # fmt: skip
        if lines:
            about = {"title": task.label, "steps": mine[0]["step"], "n_real": mine[0]["n_real"]}
            first = settings.primary[0] if settings.primary else ""
            differences = []
            for name in starts:
                pairs = [paired(cells.get((first, head), {}), cells.get((name, head), {})) for head in heads]
                if name != first and any(pairs):
                    by_head = [asdict(pair) if pair else None for pair in pairs]
                    differences.append({"first": first, "second": name, "values": by_head})
            found.append({**about, "heads": list(heads.values()), "lines": lines, "differences": differences})
    return found
