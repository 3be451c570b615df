"""The report's section about the labelled references: benchmark, candidates, licences."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from rsprune.calibration import PURITY
from rsprune.run import Run

TRANSFORMS = {
    "run": "standardised by the pool",
    "raw": "only of unit length",
    "standardised": "standardised by the reference",
    "whitened": "whitened by the reference",
}
WORDS = {
    "nmi": "NMI",
    "ami": "AMI",
    "ari": "ARI",
    "granularity": "clusters per class",
    "reached": f"purity of {100 * PURITY:g} % reached",
    "at_classes": "one per class",
    "at_granularity": "more per class",
    "knn_accuracy": "5-nn accuracy",
}
COLUMNS = ("encoder", "transform", "granularity", "clusters", "nmi", "ami", "ari", "purity", "knn_accuracy")


def calibration_section(run: Run) -> dict[str, Any] | None:
    """What ``calibration.json`` says, whatever it holds; None where there is nothing to show."""
    try:
        calibration = run.json("calibration.json")
        references = calibration.get("references") or {}
    except (OSError, ValueError, AttributeError):
        return None
    if not isinstance(references, dict):
        references = {str(r.get("name", i)): r for i, r in enumerate(references, 1) if isinstance(r, dict)}
    joint = " and ".join(Path(r).name for r in run.settings.cluster.reference) or "all references"
    together = calibration.get("joint")
    records = dict(references)
    if not isinstance(together, dict) or not _repeats(together, references):
        records[joint] = together
    entries = [{"title": k, **_record(v)} for k, v in records.items() if isinstance(v, dict) and v]
    candidates = _candidates(calibration.get("candidates"), joint)
    if not entries and not candidates:
        return None
    return {
        "explanation": str(calibration.get("explanation") or ""),
        "records": entries,
        "candidates": candidates,
    }


def _repeats(together: Mapping[str, Any], references: Mapping[str, Any]) -> bool:
    """Whether the only reference says all that is said about all of them."""
    (one, *others) = references.values() or (None,)
    return not others and isinstance(one, dict) and all(one.get(k) == v for k, v in together.items())


def _candidates(rows: Any, joint: str) -> list[dict[str, Any]]:
    """A table per reference, that of all together first."""
    if not isinstance(rows, list):
        return []
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in sorted((r for r in rows if isinstance(r, dict)), key=lambda r: r.get("reference") is not None):
        title = joint if row.get("reference") is None else str(row["reference"])
        cells = [row.get(column) for column in COLUMNS]
        cells[1] = TRANSFORMS.get(str(cells[1]), cells[1])
        tables.setdefault(title, []).append(
            {"cells": [_plain(c) for c in cells], "used": row.get("used") is True}
        )
    return [{"title": title, "rows": found} for title, found in tables.items()]


def _record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of one reference; what has the same keys more than once becomes a table."""
    parts = {k: v for k, v in record.items() if isinstance(v, dict)}
    for k, v in record.items():
        if isinstance(v, list) and v and all(isinstance(part, dict) for part in v):
            parts |= {f"{k} {i}": part for i, part in enumerate(v, 1)}
    heads = list(dict.fromkeys(chain(*parts.values())))
    return {
        "facts": [
            (_word(k), _plain(v)) for k, v in record.items() if k not in parts and f"{k} 1" not in parts
        ],
        "heads": [_word(head) for head in heads],
        "rows": [(_word(name), [_plain(part.get(head)) for head in heads]) for name, part in parts.items()],
    }


def _word(key: str) -> str:
    return WORDS.get(key, key.replace("_", " "))


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
