"""Rows of an embedding matrix, so handled that no result depends on their order, their ids or their repeats.

Every image has a key made from its content and the seed. Samples are the smallest keys, sums run in key
order, and ties go to the smaller key; the row number only decides between copies of the same content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

BLOCK_BYTES = 64 << 20  # largest temporary matrix of similarities


def content_key(hashes: Sequence[str | None], seed: int) -> np.ndarray:
    """Seeded random numbers [N] uint64 that belong to the images' contents, not to their places."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest((h or "").encode(), seed) for h in hashes), np.uint64, len(hashes))


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


def finite_rows(x: np.ndarray) -> np.ndarray:
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
