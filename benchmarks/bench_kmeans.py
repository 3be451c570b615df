"""k-means: GFLOP/s of the assignment beside scikit-learn's Lloyd and faiss, at equal iterations and inertia."""

import warnings

import numpy as np
import pytest
from rates import record
from sklearn.cluster import KMeans as SklearnKMeans
from threadpoolctl import threadpool_limits

from rsprune import KMeans

N, D, K, ITERATIONS = 200_000, 112, 1024, 10


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((K, D), np.float32)
    return centers[rng.integers(0, K, N)] + rng.standard_normal((N, D), np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_lloyd(benchmark, points, threads):
    faiss = pytest.importorskip("faiss")
    benchmark.group = (
        f"Lloyd, {ITERATIONS} iterations from the same start, N = {N}, K = {K}, D = {D}, GFLOP/s"
    )
    start = points[np.random.default_rng(1).choice(N, K, replace=False)]
    fitted = {}

    def ours() -> None:
        fitted["rsprune"] = KMeans(K, init=start, max_iter=ITERATIONS, tol=0).fit(points).inertia_

    def scikit_learn() -> None:
        km = SklearnKMeans(K, init=start, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd").fit(points)
        fitted["scikit-learn"] = km.inertia_

    def faiss_kmeans() -> None:
        km = faiss.Kmeans(D, K, niter=ITERATIONS, max_points_per_centroid=N)
        km.train(points, init_centroids=start)
        fitted["faiss"] = float(km.index.search(points, 1)[0].sum(dtype=np.float64))

    with threadpool_limits(threads):
        calls = {"rsprune": ours, "scikit-learn": scikit_learn, "faiss": faiss_kmeans}
        record(benchmark, 2 * N * K * D * ITERATIONS / 1e9, "GFLOP", calls, rounds=3)
    benchmark.extra_info.update({f"inertia of {name}": value for name, value in fitted.items()})
    for value in fitted.values():
        assert value == pytest.approx(fitted["rsprune"], rel=1e-3)


def test_default_fit(benchmark, points):
    """Seeding included; scikit-learn seeds from all rows, we from a sample, so inertia is compared too."""
    benchmark.group = f"whole fit with k-means++, N = {N // 4}, K = {K // 4}, D = {D}, fits/s"
    x, fitted = points[: N // 4], {}

    def ours() -> None:
        fitted["rsprune"] = KMeans(K // 4, max_iter=ITERATIONS, random_state=0).fit(x).inertia_

    def scikit_learn() -> None:
        km = SklearnKMeans(K // 4, n_init=1, max_iter=ITERATIONS, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted["scikit-learn"] = km.fit(x).inertia_

    with threadpool_limits(1):
        record(benchmark, 1, "fit", {"rsprune": ours, "scikit-learn": scikit_learn}, rounds=3)
    benchmark.extra_info.update({f"inertia of {name}": value for name, value in fitted.items()})
    assert fitted["rsprune"] <= fitted["scikit-learn"] * 1.02
