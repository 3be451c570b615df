"""The columns of a run: numbers of all images, one column at a time, and words of the few that are picked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune.filters import REASONS
from rsprune.run import Run

# The others name a threshold of their own.
_DECIDED_BY_ENTROPY = ("kept", "low_entropy", "exact_duplicate", "over_budget")


@dataclass(frozen=True)
class Columns:
    """The columns [N] of a run, read when they are first asked for; `read` keeps nothing.

    Of ten million images the names alone would take gigabytes: they are picked for the rows that need them.
    """

    run: Run

    def __len__(self) -> int:
        return len(self.kept)

    @cached_property
    def kept(self) -> np.ndarray:
        return self.read("select", "kept", False).astype(bool)

    @cached_property
    def reason(self) -> np.ndarray:
        """Index into `REASONS`, uint8 [N]."""
        codes, names = self.words("select", "reason")
        return np.array([REASONS.index(name) for name in names], np.uint8)[codes]

    @cached_property
    def rank(self) -> np.ndarray:
        """0 is best, -1 where the image is not ranked."""
        return self.read("select", "rank", -1)

    @cached_property
    def cluster(self) -> np.ndarray:
        return self.read("select", "cluster", -1)

    @cached_property
    def entropy(self) -> np.ndarray:
        return self.read("score", "entropy")

    @cached_property
    def entropy_threshold(self) -> float | None:
        """Entropy in bits below which images were dropped, as the decisions hold it."""
        threshold = self.read("select", "threshold")
        used = np.isin(self.reason, [REASONS.index(r) for r in _DECIDED_BY_ENTROPY]) & np.isfinite(threshold)
        return float(threshold[used.argmax()]) if used.any() else self.run.settings.filter.entropy_min

    @cached_property
    def readable(self) -> np.ndarray:
        return np.concatenate(
            [pc.is_null(t["error"]).to_numpy() for t in _tables(self.run, "score", ["error"])]
        )

    @cached_property
    def scenes(self) -> tuple[np.ndarray, list[str]]:
        """Scene of each image, an index into the names; -1 where it has none."""
        return self.words("select", "scene")

    @cached_property
    def clusters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, ranked images and kept images of each cluster, int64 [K]."""
        k = int(self.cluster.max(initial=-1)) + 1
        inside = self.cluster >= 0
        images, ranked, kept = (
            np.bincount(self.cluster[inside & chosen], minlength=k)
            for chosen in (inside, self.rank >= 0, self.kept)
        )
        return images, ranked, kept

    def read(self, stage: str, name: str, null: float = np.nan) -> np.ndarray:
        """A numeric column [N]."""
        parts = [pc.fill_null(t[name], null).to_numpy() for t in _tables(self.run, stage, [name])]
        return np.concatenate(parts)

    def words(self, stage: str, name: str) -> tuple[np.ndarray, list[str]]:
        """A column of few different words: index of each image int32 [N], -1 for null, and the words."""
        names: dict[str, int] = {}
        parts = []
        for table in _tables(self.run, stage, [name], read_dictionary=[name]):
            for chunk in table[name].chunks:
                known = [names.setdefault(word, len(names)) for word in chunk.dictionary.to_pylist()]
                at = pc.fill_null(chunk.indices, -1).to_numpy()
                parts.append(np.array([*known, -1], np.int32)[at])
        return np.concatenate(parts), list(names)

    def pick(self, stage: str, names: Sequence[str], rows: Sequence[int] | np.ndarray) -> pa.Table:
        """The columns `names` of some rows, in their order."""
        rows = np.asarray(rows, np.int64)
        wanted = np.unique(rows)
        found = []
        for start, group in _row_groups(self.run, stage):
            inside = wanted[slice(*np.searchsorted(wanted, (start, start + group.num_rows)))]
            if len(inside):
                found.append(group.read(names).take(inside - start))
        if not found:
            return pq.read_schema(_files(self.run, stage)[0]).empty_table().select(list(names))
        return pa.concat_tables(found).take(np.searchsorted(wanted, rows))

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        return self.pick("select", ["id"], rows)["id"].to_pylist()

    def where(self, column: str, words: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Rows whose decision has one of `words` in that column, and the word of each."""
        wanted = pa.array(dict.fromkeys(words), pa.string())
        rows, found = [np.empty(0, np.int64)], []
        for start, group in _row_groups(self.run, "select"):
            values = group.read([column])[column]
            at = np.flatnonzero(pc.is_in(values, value_set=wanted).to_numpy())
            rows.append(start + at)
            found += values.take(at).to_pylist()
        return np.concatenate(rows), found

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Row of each of the ids that the run has."""
        rows, names = self.where("id", ids)
        return dict(zip(names, rows.tolist(), strict=True))

    def embeddings(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embeddings float32 [M, D] of some rows, in their order."""
        rows = np.asarray(rows, np.int64)
        found = None
        for start, part in self.embedding_parts():
            found = np.empty((len(rows), part.shape[1]), np.float32) if found is None else found
            inside = np.flatnonzero((rows >= start) & (rows < start + len(part)))
            found[inside] = part[rows[inside] - start]
        return found if found is not None else np.empty((0, 0), np.float32)

    def embedding_parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row of each part, and the part [n, D] as it lies on the disk."""
        start = 0
        for file in self.run.parts("embed"):
            part = np.load(file, mmap_mode="r", allow_pickle=False)
            yield start, part
            start += len(part)


@dataclass(frozen=True)
class _RowGroup:
    file: pq.ParquetFile
    number: int

    @property
    def num_rows(self) -> int:
        return self.file.metadata.row_group(self.number).num_rows

    def read(self, names: Sequence[str]) -> pa.Table:
        return self.file.read_row_group(self.number, columns=list(names))


def _files(run: Run, stage: str) -> list[Path]:
    run.require(stage)
    return [run.path / "decisions.parquet"] if stage == "select" else run.parts(stage)


def _tables(run: Run, stage: str, names: list[str], **options: Any) -> Iterator[pa.Table]:
    for file in _files(run, stage):
        yield pq.read_table(file, columns=names, **options)


def _row_groups(run: Run, stage: str) -> Iterator[tuple[int, _RowGroup]]:
    start = 0
    for file in _files(run, stage):
        with pq.ParquetFile(file) as opened:
            for number in range(opened.num_row_groups):
                group = _RowGroup(opened, number)
                yield start, group
                start += group.num_rows
