"""The strategies and settings that `selection.py` compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rsprune.strategies import STRATEGIES


@dataclass(frozen=True)
class Case:
    """One way to select; what it does not name is as by default."""

    group: str
    name: str
    encoder: str = "lite0"
    patch: int = 32
    clusters: int | None = None
    filters: dict[str, Any] = field(default_factory=dict)
    select: dict[str, Any] = field(default_factory=dict)


CASES = [
    *(Case("strategy", name, select={"strategy": name}) for name in STRATEGIES),
    *(
        Case("strategy behind the filters", name, select={"strategy": name, "pool": "distinct"})
        for name in STRATEGIES
    ),
    *(Case("patch", str(p), patch=p) for p in (8, 16, 32, 64)),
    *(Case("entropy_drop", str(v), filters={"entropy_drop": v}) for v in (0.0, 0.05, 0.1, 0.2, 0.3)),
    Case("entropy_drop", "Otsu", filters={"entropy_otsu": True}),
    *(Case("n_clusters", str(k), clusters=k) for k in (16, 32, 64, 128, 256, 512)),
    Case("n_clusters", "auto"),
    *(Case("alpha", str(v), select={"alpha": v}) for v in (0.0, 0.25, 0.5, 0.75, 1.0)),
    *(Case("beta", str(v), select={"beta": v}) for v in (0.0, 1.0, 2.0)),
    *(Case("alpha and beta", f"{a}, 1.0", select={"alpha": a, "beta": 1.0}) for a in (0.5, 1.0)),
    *(Case("rank", name, select={"rank": name}) for name in ("herding", "closest", "random")),
    *(Case("rank", f"mmr {v}", select={"rank": "mmr", "mmr_lambda": v}) for v in (0.3, 0.5, 0.7, 0.9)),
    *(Case("near_duplicate", str(v), select={"near_duplicate": v}) for v in (0.9, 0.95, 0.98)),
    Case("near_duplicate", "off", select={"near_duplicate": 2.0}),
]
