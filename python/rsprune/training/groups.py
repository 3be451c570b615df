"""Scenes and clusters of training images, and the weights that they are drawn with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rsprune.errors import ConfigError
from rsprune.run import Run
from rsprune.training.config import TrainConfig


def needed(settings: TrainConfig) -> set[str]:
    """Which of scene and cluster the settings ask for."""
    return {name for name in ("scene", "cluster") if name in (settings.condition, settings.sample_weights)}


def groups(name: str, ids: Sequence[str], run: Run | None) -> list[str]:
    """Scene or cluster of each image, "" where it has none; the scene in a plain folder is the first folder of the id.

    Raises:
        ConfigError: There are no clusters, as the images are those of no run, or one folder holds all images.
    """
    if run is None:
        if name == "cluster":
            raise ConfigError("a plain image folder has no clusters: give a run folder, or use scene")
        found = [id.split("/")[0] if "/" in id else "" for id in ids]
        if len(set(found)) == 1 and found[0] and any(id.count("/") > 1 for id in ids):
            raise ConfigError(
                f"all images lie in the one folder {found[0]!r}: give that folder as --data, so that those in it "
                "are the scenes"
            )
        return found
    table = run.table("cluster", ["id", name])
    of = dict(zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True))
    values = (of.get(id) for id in ids)
    return ["" if v is None or v == -1 else str(v) for v in values]


def numbered(group: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the groups in order, and the number [N] int64 of each image's; -1 where it has none."""
    names = tuple(sorted(set(group) - {""}, key=lambda g: (len(g), g) if g.isdigit() else (0, g)))
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number.get(g, -1) for g in group], dtype=np.int64)


def weights(wish: str | None, ids: Sequence[str], groups: Mapping[str, Sequence[str]]) -> np.ndarray | None:
    """Weights [N] with which images are drawn, of sum 1; None where all are drawn alike.

    Raises:
        ConfigError: The file of weights cannot be used.
    """
    if wish is None:
        return None
    if wish in ("scene", "cluster"):
        # Images that belong nowhere are a group of their own.
        _, index, counts = np.unique(groups[wish], return_inverse=True, return_counts=True)
        weights = 1.0 / counts[index]
        return weights / weights.sum()
    of = _weight_file(wish)
    missing = [id for id in ids if id not in of]
    if missing:
        raise ConfigError(
            f"{wish} has no weight for {len(missing):,} images, such as {missing[0]!r}: add them"
        )
    weights = np.array([of[id] for id in ids], dtype=np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError(f"weights in {wish} must be finite, not below 0 and not all 0")
    return weights / weights.sum()


def _weight_file(path: str) -> dict[str, float]:
    try:
        if path.endswith(".parquet"):
            import pyarrow.parquet as pq

            table = pq.read_table(path, columns=["id", "weight"]).to_pydict()
            return dict(zip(table["id"], table["weight"], strict=True))
        lines = [line.rsplit("\t", 1) for line in Path(path).read_text("utf-8").splitlines() if line]
        return {id: float(weight) for id, weight in lines}
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or "needs columns id and weight"
        raise ConfigError(
            f"cannot read the weights {path}: {why}; give scene, cluster, .parquet, or lines 'id TAB weight'"
        ) from None
