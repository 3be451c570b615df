"""What each arm trains on: the selection of its seed, by the stages that ``rsprune run`` has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsprune import config as run_config
from rsprune.experiment.config import ArmConfig, ExperimentConfig
from rsprune.experiment.prepare import Prepared
from rsprune.files import write_atomic, write_json, write_table
from rsprune.layout import digest
from rsprune.run import Run
from rsprune.stages import Job, cluster_images, embed_images, scan_images, score_images, select_images

# Reasons that a control which draws from everything has no need of: its weights see to copies.
DRAWN = ("kept", "over_budget", "exact_duplicate", "near_duplicate", "spatial_duplicate")


@dataclass(frozen=True)
class Training:
    """What one run trains on.

    Attributes:
        run: The run folder that the images are read through.
        kept: Ids of the images, a line each; None is all.
        weights: Parquet with `id` and `weight`; None draws all alike.
    """

    run: Path
    kept: Path | None
    weights: Path | None
    facts: dict[str, Any]

    def settings(self) -> dict[str, str]:
        """Settings of `rsprune train`."""
        found = {"data": str(self.run), "kept": str(self.kept) if self.kept else "all"}
        return found | ({"sample_weights": str(self.weights)} if self.weights else {})


def select(
    settings: ExperimentConfig,
    data: Prepared,
    out: Path,
    arm: ArmConfig,
    seed: int,
    *,
    say: Callable[[str], None],
) -> Training:
    """The selection of an arm with a seed; reuses what is there."""
    run = Run(out / "selections" / f"seed-{seed}")
    target = out / "selections" / f"{arm.slug}-{seed}.json"
    kept, weights = target.with_suffix(".txt"), target.with_suffix(".weights.parquet")
    wanted = _settings(settings, data, arm, seed)
    stamp = digest(asdict(wanted), data.facts()["stamp"], arm.strategy)
    files = {"full": (None, None), "reweighted": (None, weights)}.get(arm.strategy, (kept, None))
    if target.is_file() and (found := json.loads(target.read_text("utf-8")))["stamp"] == stamp:
        return Training(run.path, files[0], files[1], found)
    run.path.mkdir(parents=True, exist_ok=True)
    job = Job(run, wanted, workers=settings.workers, device=settings.device, overwrite=True, say=say)
    for stage in (scan_images, score_images, embed_images, cluster_images, select_images):
        stage(job)
    ids = run.table("scan", ["id"])["id"]
    if arm.strategy == "full":
        chosen = ids.to_pylist()
    elif arm.strategy == "reweighted":
        found = reweighted(run)
        write_table(weights, pa.table({"id": ids, "weight": found}))
        chosen = ids.filter(pa.array(found > 0)).to_pylist()
    else:
        chosen = run.kept_ids
        write_atomic(kept, lambda f: f.write("".join(f"{id}\n" for id in chosen).encode()))
    facts = {"stamp": stamp, "arm": arm.label, "seed": seed, **_facts(data, chosen)}
    if arm.strategy == "reweighted":
        facts["effective_images"] = float(found.sum() ** 2 / np.square(found).sum())
    write_json(target, facts)
    return Training(run.path, files[0], files[1], facts)


def reweighted(run: Run) -> np.ndarray:
    """Weight float64 [N] of each image: those of a scene's part of a cluster share the seats that it has.

    Images that the filters dropped have none; copies share those of their part. So a model that draws from
    everything sees the parts of the pool as often as one that is trained on the kept images alone.
    """
    decisions = run.table("select", ["kept", "reason", "cluster", "scene"])
    drawn = pc.is_in(decisions["reason"], pa.array(DRAWN)).to_numpy()
    kept = decisions["kept"].to_numpy()
    pairs = [decisions[name].to_pylist() for name in ("cluster", "scene")]
    _, part = np.unique([f"{c} {s}" for c, s in zip(*pairs, strict=True)], return_inverse=True)
    seats = np.bincount(part, kept)
    images = np.bincount(part, drawn)
    return np.where(drawn, seats[part] / np.maximum(images[part], 1), 0.0)


def _settings(settings: ExperimentConfig, data: Prepared, arm: ArmConfig, seed: int) -> run_config.Settings:
    values: dict[str, dict[str, Any]] = {}
    for sections in (settings.selection, arm.select):
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
    source = {"path": str(data.pool.absolute()), "name": "", **values.pop("source", {})}
    strategy = "rsprune" if arm.strategy in ("full", "reweighted") else arm.strategy
    values["scan"] = {**values.get("scan", {}), "sources": [source]}
    # An arm with an encoder of its own encodes by itself.
    features = None if "encoder" in arm.select.get("embed", {}) else data.features
    if features:
        rest = {name: value for name, value in values.get("embed", {}).items() if name != "encoder"}
        values["embed"] = {**rest, "embeddings": str(features.absolute())}
    values["select"] = {**values.get("select", {}), "strategy": strategy, "keep": arm.keep}
    if labelled := data.labelled(encoded=features is not None):
        values["cluster"] = {**values.get("cluster", {}), "reference": [f"{labelled.absolute()}=labelled"]}
    return run_config.settings({**values, "seed": seed})


def _facts(data: Prepared, ids: list[str]) -> dict[str, Any]:
    """What was chosen, by scene and fault as only the maker of the pool knows them."""
    table = data.table
    rows = pc.index_in(pa.array(ids, pa.string()), table["id"])
    chosen = table.take(rows)
    count = {name: dict(Counter(chosen[name].to_pylist()).most_common()) for name in ("scene", "fault")}
    return {
        "images": len(ids),
        "scenes": {str(name): n for name, n in count["scene"].items()},
        "faults": {name: n for name, n in count["fault"].items() if name},
        "ids_hash": digest(sorted(ids)),
    }
