"""Rows of an embedding matrix, so handled that no result depends on their order, their ids or their repeats.

Every image has a key made from its content and the seed. Samples are the smallest keys, sums run in key
order, and ties go to the smaller key; the row number only decides between copies of the same content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from rsprune.progress import Progress, silent

if TYPE_CHECKING:
    from rsprune.stored import StoredEmbeddings

BLOCK_BYTES = 64 << 20  # largest temporary matrix of similarities
_PIECE = 65_536  # texts that are Python objects at once


def content_key(hashes: Any, seed: int) -> np.ndarray:
    """Seeded random numbers [N] uint64 that belong to the images' contents, not to their places.

    Args:
        hashes: content hashes [N], None where unreadable; a column of a table or a sequence of text.
        seed: of the numbers.
    """
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest((h or "").encode(), seed) for h in _texts(hashes)), np.uint64, len(hashes))


@dataclass(frozen=True)
class Contents:
    """The contents of N images.

    Attributes:
        number: int64 [N], the same for equal contents; -1 where an image is unreadable.
        key: uint64 [N] from `content_key`.
    """

    number: np.ndarray
    key: np.ndarray

    @classmethod
    def of(cls, hashes: Any, seed: int) -> Contents:
        """From content hashes [N] as for `content_key`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not isinstance(hashes, (pa.Array, pa.ChunkedArray)):
            hashes = pa.array(list(hashes), pa.string())
        hashes = hashes if isinstance(hashes, pa.ChunkedArray) else pa.chunked_array([hashes])
        known = np.flatnonzero(pc.is_valid(hashes))
        key = content_key(hashes, seed)
        # Sorting keys takes a tenth of the memory that a dictionary of all hashes does.
        order = known[np.argsort(key[known], kind="stable")]
        same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
        texts = (hashes.take(pa.array(order[at])) for at in (same, same + 1))
        if not pc.all(pc.equal(*texts), min_count=0).as_py():  # two contents have one key
            codes = hashes.dictionary_encode().combine_chunks().indices
            return cls(codes.fill_null(-1).to_numpy().astype(np.int64), key)
        first = np.ones(len(order), dtype=bool)
        first[same + 1] = False
        number = np.full(len(hashes), -1, dtype=np.int64)
        number[order] = np.cumsum(first) - 1
        return cls(number, key)

    def __len__(self) -> int:
        return len(self.number)


def content_numbers(hashes: Any) -> np.ndarray:
    """`Contents.number` of hashes; of `Contents` and of such numbers they are given back."""
    if isinstance(hashes, Contents):
        return hashes.number
    numbers = isinstance(hashes, np.ndarray) and hashes.dtype.kind == "i"
    return hashes if numbers else Contents.of(hashes, 0).number


def row_hashes(x: np.ndarray) -> np.ndarray:
    """Content hashes [N] str of the rows of `x` [N, D], where there are no pixels to hash."""
    rows = np.ascontiguousarray(x)
    return np.array([xxhash.xxh3_128_hexdigest(row) for row in rows], dtype=object)


def unique_rows(keys: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
    """One row for every distinct key [N], smallest key first, among `candidates` [N] bool."""
    rows = np.arange(len(keys)) if candidates is None else np.flatnonzero(candidates)
    _, first = np.unique(keys[rows], return_index=True)
    return rows[first]


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows [N, D] float32 of length 1; a zero row stays zero and a row with NaN stays NaN."""
    x = np.asarray(x, dtype=np.float32)
    # Scaling by the largest component first keeps the squares of huge and tiny rows finite.
    largest = np.abs(x).max(axis=1, keepdims=True, initial=0)
    x = x / np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def finite_rows(x: np.ndarray | StoredEmbeddings) -> np.ndarray:
    """Rows of `x` [N, D] without NaN or infinity, bool [N]."""
    block = max(1, BLOCK_BYTES // max(1, x[:1].nbytes))
    parts = [np.isfinite(x[i : i + block]).all(axis=1) for i in range(0, len(x), block)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def groups(
    labels: np.ndarray, keys: np.ndarray, candidates: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields every label >= 0 with its rows, in key order, among `candidates` [N] bool."""
    member = labels >= 0 if candidates is None else candidates & (labels >= 0)
    rows = np.flatnonzero(member)
    if not len(rows):
        return
    rows = rows[np.lexsort((keys[rows], labels[rows]))]
    sorted_labels = labels[rows]
    starts = np.flatnonzero(np.r_[True, sorted_labels[1:] != sorted_labels[:-1]])
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield int(sorted_labels[start]), rows[start:stop]


def in_threads(
    work: Callable[[int, np.ndarray], None],
    of: Iterable[tuple[int, np.ndarray]],
    workers: int,
    *,
    progress: Progress = silent,
    doing: str = "",
) -> None:
    """Calls `work` for every label and its rows, which no other label has, so that the order does not matter."""
    labelled = list(of)

    def done() -> Iterator[int]:
        if workers == 1:
            for label, rows in labelled:
                work(label, rows)
                yield len(rows)
            return
        with ThreadPoolExecutor(workers) as pool:
            finished = pool.map(lambda group: work(*group), labelled)
            for (_, rows), _ in zip(labelled, finished, strict=True):
                yield len(rows)

    for _ in progress(done(), doing, sum(len(rows) for _, rows in labelled)):
        pass


def most_similar(x: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index int64 and cosine float32 [N] of the row of `others` [M, D] most similar to each of `x` [N, D].

    All are of unit length; the lower index wins a tie. Without others the index is -1 and the cosine -inf.
    """
    index = np.full(len(x), -1, dtype=np.int64)
    cosine = np.full(len(x), -np.inf, dtype=np.float32)
    n_block = 1024
    m_block = BLOCK_BYTES // (4 * n_block)
    for i in range(0, len(x), n_block):
        rows = slice(i, i + n_block)
        for j in range(0, len(others), m_block):
            products = x[rows] @ others[j : j + m_block].T
            at = products.argmax(axis=1)
            best = products[np.arange(len(at)), at]
            better = best > cosine[rows]
            index[rows] = np.where(better, at + j, index[rows])
            cosine[rows] = np.where(better, best, cosine[rows])
    return index, cosine


def _texts(hashes: Any) -> Iterator[str | None]:
    """The texts of a sequence; of an Arrow column piece by piece, as a list of all of them would fill memory."""
    if not hasattr(hashes, "to_pylist"):
        yield from hashes
        return
    for start in range(0, len(hashes), _PIECE):
        yield from hashes.slice(start, _PIECE).to_pylist()
