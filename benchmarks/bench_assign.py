"""Nearest-centre assignment: GFLOP/s beside sgemm (the float32 limit) and faiss, and labels beside float64's."""

import numpy as np
import pytest
from rates import blue_marble, record, windows
from threadpoolctl import threadpool_limits

from rsprune import _C, reference

K, N = 1024, 200_000


def points(kind: str, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """x `[N, dim]` and centers `[K, dim]`.

    "random" has no clusters at all, the hardest case for the certificate; "mixture" has K of them, as wide as
    they are apart; "image" are windows of a real image, and K other windows.
    """
    rng = np.random.default_rng(dim)
    if kind == "image":
        shape = {128: (8, 16, "L"), 768: (16, 16, "RGB"), 1280: (32, 40, "L")}[dim]
        x = windows(blue_marble(shape[2]), shape[0], shape[1], N + K, rng)
        return x[:N], x[N:]
    centers = rng.standard_normal((K, dim), np.float32)
    x = rng.standard_normal((N, dim), np.float32)
    if kind == "mixture":
        x += centers[rng.integers(0, K, N)]
    return x, centers


def wrong_labels(x: np.ndarray, centers: np.ndarray, labels: np.ndarray) -> int:
    """Rows whose label is not float64's; the few that a product in float64 leaves in doubt are redone directly."""
    wide, wrong = centers.astype(np.float64), 0
    half = np.square(wide).sum(axis=1) / 2
    for first in range(0, len(x), 8192):
        block, found = x[first : first + 8192], labels[first : first + 8192]
        doubt = np.flatnonzero((block.astype(np.float64) @ wide.T - half).argmax(axis=1) != found)
        wrong += int((reference.kmeans_assign(block[doubt], centers)[0] != found[doubt]).sum())
    return wrong


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dim", [128, 768, 1280])
@pytest.mark.parametrize("kind", ["mixture", "image", "random"])
def test_kmeans_assign(benchmark, kind, dim, threads):
    faiss = pytest.importorskip("faiss")
    benchmark.group = f"assignment, {kind}, N = {N}, K = {K}, D = {dim}, GFLOP/s"
    x, centers = points(kind, dim)
    index = faiss.IndexFlatL2(dim)
    index.add(centers)
    labels, distances = np.empty(N, np.int32), np.empty(N, np.float32)
    product = np.empty((2048, K), np.float32)

    def sgemm() -> None:
        for first in range(0, N - 2047, 2048):
            np.matmul(x[first : first + 2048], centers.T, out=product)

    with threadpool_limits(threads):
        calls = {
            "rsprune": lambda: _C.kmeans_assign(x, centers, labels, distances),
            "faiss": lambda: index.search(x, 1),
            "sgemm": sgemm,
        }
        record(benchmark, 2 * N * K * dim / 1e9, "GFLOP", calls, rounds=10 if dim == 128 else 5)
    benchmark.extra_info["rechecked"] = _C.kmeans_assign(x, centers, labels, distances) / N
    benchmark.extra_info["wrong labels"] = wrong_labels(x, centers, labels)
    benchmark.extra_info["wrong labels of faiss"] = wrong_labels(x, centers, index.search(x, 1)[1][:, 0])
    assert benchmark.extra_info["wrong labels"] == 0


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16"])
def test_instruction_sets(benchmark, monkeypatch, isa):
    benchmark.group = "assignment by instruction set, mixture, D = 128, GFLOP/s"
    x, centers = points("mixture", 128)
    labels, distances = np.empty(N, np.int32), np.empty(N, np.float32)
    monkeypatch.setenv("RSPRUNE_ISA", isa)
    with threadpool_limits(1):
        try:
            calls = {"rsprune": lambda: _C.kmeans_assign(x, centers, labels, distances)}
            record(benchmark, 2 * N * K * 128 / 1e9, "GFLOP", calls, rounds=3)
        except ValueError as error:
            pytest.skip(str(error))
