"""What the stages that read images have found out about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rsprune.filters import GUARDS
from rsprune.layout import damaged
from rsprune.rows import Contents
from rsprune.run import Run
from rsprune.stored import StoredEmbeddings

SCORE_COLUMNS = ("entropy", "nodata_fraction", *(guard.score for guard in GUARDS))


@dataclass(frozen=True)
class Pool:
    """What the earlier stages wrote, over all N images: scores [N] by name, contents, embeddings [N, D]."""

    scores: dict[str, np.ndarray]
    contents: Contents
    x: StoredEmbeddings

    @classmethod
    def of(cls, run: Run, seed: int) -> Pool:
        run.require("embed")
        # Hashes are the largest of the columns: they are let go before the others are read.
        contents = Contents.of(run.table("score", ["content_hash"])["content_hash"], seed)
        table = run.table("score", [*SCORE_COLUMNS])
        scores = {name: table[name].to_numpy() for name in SCORE_COLUMNS}
        return cls(scores, contents, StoredEmbeddings(run.parts("embed")))


@dataclass(frozen=True)
class Assignments:
    """What the stage cluster wrote, over all N images.

    Attributes:
        cluster: int32 [N], -1 where an image has none.
        distance: float32 [N], squared, to the centre of the cluster; NaN where there is none.
        scene: int32 [N], index into `scenes`, -1 where there is none.
        scenes: names.
    """

    cluster: np.ndarray
    distance: np.ndarray
    scene: np.ndarray
    scenes: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> Assignments:
        run.require("cluster")
        numbers: dict[str, int] = {}
        parts = []
        for table in tables(run, "cluster", ["cluster", "distance", "scene"]):
            scene = table["scene"].combine_chunks().dictionary_encode()
            known = [numbers.setdefault(name, len(numbers)) for name in scene.dictionary.to_pylist()]
            at = scene.indices.fill_null(len(known)).to_numpy()
            parts.append((table["cluster"], table["distance"], np.array([*known, -1], np.int32)[at]))
        cluster, distance, scene = (np.concatenate(c) for c in zip(*parts, strict=True))
        return cls(cluster, distance, scene, tuple(numbers))

    @property
    def known_scene(self) -> np.ndarray:
        """Scene int32 [N] as in `scene`, but -1 also for `unknown`."""
        unknown = self.scenes.index("unknown") if "unknown" in self.scenes else -1
        return np.where(self.scene == unknown, -1, self.scene)


def tables(run: Run, stage: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The parts of a stage, one after the other. Raises `ConfigError` where one is damaged."""
    for file in run.parts(stage):
        try:
            with pq.ParquetFile(file) as part:
                table = part.read(list(columns), use_threads=False)
        except (pa.ArrowException, OSError):
            raise damaged(file) from None
        yield table
