"""The report's section about scores: a histogram per score, its threshold, examples along it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from markupsafe import Markup

from rsprune.columns import Columns
from rsprune.filters import CODES, GUARDS
from rsprune.report.examples import along
from rsprune.report.words import chosen_from

SOURCES_SHOWN = 12
LABELS = {
    "entropy": ("Patch entropy", "bits"),
    "nodata_fraction": ("Pixels without data", "share"),
    "saturated_fraction": ("Pixels at the ends of the scale", "share"),
    "autocorrelation": ("Correlation of neighbouring pixels", "coefficient"),
    "sharpness": ("Sharpness", "relative"),
}


def score_sections(columns: Columns) -> list[dict[str, Any]]:
    """Chart, threshold and examples of each score that the images have."""
    filters = columns.run.settings.filter
    rules = [("entropy", "low_entropy", columns.entropy_threshold, False)]
    rules.append(("nodata_fraction", "nodata", filters.nodata_max, True))
    for guard in GUARDS:
        limit = getattr(filters, guard.setting)
        rules.append((guard.score, guard.reason, limit if guard.above or limit > 0 else None, guard.above))
    filtered = chosen_from(columns.run) != "readable"
    found = [
        _section(columns, name, reason, limit if filtered else None, above)
        for name, reason, limit, above in rules
    ]
    return [section for section in found if section]


def _section(
    columns: Columns, name: str, reason: str, threshold: float | None, above: bool
) -> dict[str, Any] | None:
    from rsprune.report import charts  # brings matplotlib, which no other stage should wait for

    values = columns.read("score", name)
    known = np.isfinite(values)
    if not known.any():
        return None
    title, unit = LABELS[name]
    panels, hidden = {"": known}, 0
    if name == "entropy":
        panels, hidden = _by_source(columns, known)
    of = f" of each of {len(panels)} sources" if len(panels) > 1 else ""
    line = "no threshold" if threshold is None else f"threshold at {threshold:.3g}"
    chart = charts.histogram(
        {source: (values[mine], values[mine & columns.kept]) for source, mine in panels.items()},
        threshold,
        label=f"{title[0].lower()}{title[1:]}, {unit}",
        alt=f"Histogram of {title.lower()}{of}: all readable images and the kept ones, {line}.",
        log=unit == "share",
    )
    lowest, highest = float(values[known].min()), float(values[known].max())
    return {
        "name": name,
        "title": title,
        "unit": unit if unit == "bits" else "",
        "chart": Markup(chart) if lowest < highest else "",
        "only": lowest,
        "log": unit == "share",
        "threshold": threshold,
        "above": above,
        "dropped": int((columns.reason == CODES[reason]).sum()),
        "hidden": hidden,
        "examples": along(values) if lowest < highest else [],
    }


def _by_source(columns: Columns, known: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """Images of each of the largest sources, and how many sources are not among them."""
    source = columns.read("scan", "source", -1)
    named = [config.name for config in columns.run.settings.scan.sources]
    sizes = Counter(
        dict(zip(*map(np.ndarray.tolist, np.unique(source[known], return_counts=True)), strict=True))
    )
    shown = sorted(number for number, _ in sizes.most_common(SOURCES_SHOWN))
    names = [named[i] if i < len(named) and named[i] else f"source {i + 1}" for i in shown]
    panels = {name: known & (source == i) for name, i in zip(names, shown, strict=True)}
    return panels, len(sizes) - len(panels)
