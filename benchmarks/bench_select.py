"""Selecting: images per second of duplicates, allocation and ranking, beside the matrix products they need."""

import resource

import numpy as np
import pytest
from rates import record
from threadpoolctl import threadpool_limits

from rsprune.selection import decide

D, KEEP = 112, 0.15


def pool(n: int, clusters: int) -> dict:
    """Clustered embeddings whose cluster sizes fall with the square root of the rank; 3 % are near duplicates."""
    rng = np.random.default_rng(0)
    share = 1 / np.sqrt(np.arange(1, clusters + 1))
    labels = rng.choice(clusters, n, p=share / share.sum()).astype(np.int32)
    centers = rng.standard_normal((clusters, D), np.float32)
    spread = rng.uniform(0.4, 0.9, clusters).astype(np.float32)
    x = np.empty((n, D), np.float16)
    for start in range(0, n, 2**17):  # in blocks: the float32 values of all would be half a gigabyte
        part = labels[start : start + 2**17]
        noise = rng.standard_normal((len(part), D), np.float32)
        x[start : start + 2**17] = centers[part] + spread[part, None] * noise
    copies = rng.choice(n, n * 3 // 100, replace=False)
    originals = rng.choice(n, len(copies))
    x[copies] = x[originals] + np.float16(0.05) * rng.standard_normal((len(copies), D), np.float32)
    labels[copies] = labels[originals]
    scores = {
        "entropy": rng.uniform(3, 7, n),
        "nodata_fraction": np.zeros(n),
        "autocorrelation": np.full(n, 0.9),
    }
    return {
        "scores": {name: column.astype(np.float32) for name, column in scores.items()},
        "hashes": np.array([f"{i:032x}" for i in range(n)], dtype=object),
        "x": x,
        "labels": labels,
        "distance": rng.random(n).astype(np.float32),
        "centers": centers,
        "budget": round(KEEP * n),
    }


@pytest.mark.parametrize(("n", "clusters"), [(100_000, 102), (1_000_000, 1024)])
def test_decide(benchmark, n, clusters):
    benchmark.group = f"select, N = {n}, K = {clusters}, D = {D}, images/s"
    arrays = pool(n, clusters)
    members = [np.flatnonzero(arrays["labels"] == k) for k in range(clusters)]

    def products() -> None:
        for rows in members:
            some = arrays["x"][rows].astype(np.float32)
            for start in range(0, len(some), 1024):
                some[start : start + 1024] @ some.T

    with threadpool_limits(1):
        calls = {"rsprune": lambda: decide(**arrays), "sgemm": products}
        record(benchmark, n, "images", calls, rounds=10 if n < 1_000_000 else 1)
    benchmark.extra_info["largest cluster"] = max(map(len, members))
    benchmark.extra_info["peak memory, GB"] = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2
    )
