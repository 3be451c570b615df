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
    reference: str = "all"  # "half" lacks every second scene; "none"; "pseudo": pseudo-scenes take its place
    herding: int = 0  # added to the number of images taken, which the sum of similarities is divided by
    filters: dict[str, Any] = field(default_factory=dict)
    select: dict[str, Any] = field(default_factory=dict)


CASES = [
    *(Case("strategy", name, select={"strategy": name}) for name in STRATEGIES),
    Case("strategy", "rsprune, no reference", reference="none"),
    *(
        Case("strategy behind the filters", name, select={"strategy": name, "pool": "distinct"})
        for name in STRATEGIES
    ),
    Case("strategy behind the filters", "rsprune, no reference", reference="none"),
    Case("reference", "given"),
    Case("reference", "half of the scenes", reference="half"),
    Case("reference", "none", reference="none"),
    Case("reference", "none, seats by pseudo-scene", reference="pseudo"),
    *(Case("encoder", name, encoder=name) for name in ("lite0", "rcf")),
    Case("encoder", "rcf, near_duplicate 0.99", encoder="rcf", select={"near_duplicate": 0.99}),
    Case("encoder", "rcf, near_duplicate off", encoder="rcf", select={"near_duplicate": 2}),
    *(Case("patch", str(p), patch=p) for p in (8, 16, 32, 64)),
    *(Case("entropy_drop", f"{v:g}", filters={"entropy_drop": v}) for v in (0, 0.02, 0.05, 0.1, 0.2, 0.3)),
    Case("entropy_drop", "Otsu", filters={"entropy_otsu": True}),
    *(Case("n_clusters", str(k), clusters=k) for k in (16, 32, 64, 128, 256, 512)),
    Case("n_clusters", "auto"),
    Case("scene_alpha", "no scenes", select={"stratify": "none"}),
    *(Case("scene_alpha", f"{v:g}", select={"scene_alpha": v}) for v in (0, 0.25, 0.5, 0.75, 1)),
    *(Case("unknown", f"{v:g}", select={"unknown": v}) for v in (0, 0.25, 0.5, 1, 100)),
    *(
        Case(
            "unknown, half of the scenes in the reference", f"{v:g}", reference="half", select={"unknown": v}
        )
        for v in (0, 0.25, 0.5, 1, 100)
    ),
    *(Case("alpha", f"{v:g}", select={"alpha": v}) for v in (0, 0.25, 0.5, 0.75, 1)),
    *(Case("beta", f"{v:g}", select={"beta": v}) for v in (0, 1, 2)),
    *(
        Case("alpha and beta", f"{a:g}, {b:g}", select={"alpha": a, "beta": b})
        for a in (0, 0.5, 1)
        for b in (0, 1)
    ),
    *(Case("rank", name, select={"rank": name}) for name in ("herding", "closest", "random")),
    Case("rank", "herding, sum over t + 1", herding=1),
    *(Case("rank", f"mmr {v}", select={"rank": "mmr", "mmr_lambda": v}) for v in (0.3, 0.5, 0.7, 0.9)),
    *(Case("near_duplicate", f"{v:g}", select={"near_duplicate": v}) for v in (0.9, 0.95, 0.98, 0.99)),
    Case("near_duplicate", "off", select={"near_duplicate": 2}),
]
