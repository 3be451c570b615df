"""Embeddings on disk: a slice or some rows are read at a time, as those of all images may not fit in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BLOCK = 1 << 17  # rows copied at a time


class StoredEmbeddings:
    """Embeddings [N, D] float16 in part files; `x[rows]`, `x[start:stop]` and ``len(x)`` work as on an array."""

    ndim = 2
    dtype = np.dtype(np.float16)

    def __init__(self, files: Sequence[Path]):
        self._files = list(files)
        shapes = [np.load(f, mmap_mode="r", allow_pickle=False).shape for f in self._files]
        self._edges = np.cumsum([0, *(n for n, _ in shapes)])
        self.shape = (int(self._edges[-1]), shapes[0][1] if shapes else 0)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            return self._range(*rows.indices(len(self)))
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        part = np.searchsorted(self._edges, rows, side="right") - 1
        order = np.argsort(part, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(part[order])) + 1) if len(order) else ():
            k = part[at[0]]
            out[at] = np.load(self._files[k], mmap_mode="r", allow_pickle=False)[rows[at] - self._edges[k]]
        return out

    def _range(self, start: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            raise ValueError(f"the step of a slice must be 1, got {step}")
        out = np.empty((max(0, stop - start), self.shape[1]), self.dtype)
        first = np.searchsorted(self._edges, start, side="right") - 1
        for k in range(first, len(self._files)):
            begin, end = max(start, self._edges[k]), min(stop, self._edges[k + 1])
            if self._edges[k] >= stop:
                break
            part = np.load(self._files[k], mmap_mode="r", allow_pickle=False)
            out[begin - start : end - start] = part[begin - self._edges[k] : end - self._edges[k]]
        return out


class ClusteredEmbeddings:
    """The same embeddings in one file without a name that lies in `folder`, cluster after cluster.

    The images of a cluster are read together again and again, so they should lie together. The file is gone
    with the object, or with the process.

    Args:
        x: embeddings [N, D].
        labels: cluster [N] of each image.
        folder: where there is room for another copy of `x`.

    Raises:
        OSError: there is none.
    """

    ndim = 2

    def __init__(self, x: StoredEmbeddings | np.ndarray, labels: np.ndarray, folder: Path):
        self.shape, self.dtype = x.shape, x.dtype
        self._place = np.empty(len(x), dtype=np.int32 if len(x) < 2**31 else np.int64)
        self._place[np.argsort(labels, kind="stable")] = np.arange(len(x))
        self._rows = np.empty(self.shape, self.dtype)
        size = len(x) * self.shape[1] * self.dtype.itemsize
        if size:
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and a crash later
                self._rows = np.asarray(np.memmap(file, self.dtype, "r+", shape=self.shape))
        for start in range(0, len(x), BLOCK):
            self._rows[self._place[start : start + BLOCK]] = x[start : start + BLOCK]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._rows[self._place[rows]]


class Selected:
    """The rows `rows` [M] of embeddings [N, D], as an array that is read where it is asked for."""

    ndim = 2

    def __init__(self, x: np.ndarray | ClusteredEmbeddings, rows: np.ndarray):
        self._x, self._rows = x, rows
        self.shape, self.dtype = (len(rows), x.shape[1]), x.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._x[self._rows[rows]]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._x[self._rows], dtype)
