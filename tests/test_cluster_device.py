"""KMeans with PyTorch tensors as it runs on a GPU, on the CPU; test_cuda.py runs it on one."""

import sys

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from rsprune import KMeans, cluster_device


@pytest.fixture(params=[None, 64], ids=["resident", "streamed"])
def blocks(request, monkeypatch):
    make = cluster_device.Rows
    monkeypatch.setattr(cluster_device, "Rows", lambda x, device: make(x, device, block_rows=request.param))


def points(n=900, dim=12, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@pytest.mark.parametrize("tol", [0, 1e-3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_equals_the_fit_on_the_host(blocks, dtype, tol):
    x = points().astype(dtype)
    host = KMeans(20, random_state=0, tol=tol).fit(x)
    device = KMeans(20, random_state=0, tol=tol, device="cpu").fit(x)
    np.testing.assert_array_equal(device.labels_.numpy(), host.labels_)
    np.testing.assert_allclose(device.cluster_centers_, host.cluster_centers_, rtol=1e-6, atol=1e-7)
    assert device.n_iter_ == host.n_iter_
    assert device.inertia_ == pytest.approx(host.inertia_, rel=1e-9)


def test_memory_map(blocks, tmp_path):
    x = points().astype(np.float16)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float16, "r", shape=x.shape)
    got = KMeans(9, random_state=1, device="cpu").fit(mapped)
    np.testing.assert_array_equal(got.labels_.numpy(), KMeans(9, random_state=1).fit(x).labels_)
    assert not got.labels_.is_cuda


def test_bfloat16_is_not_widened(blocks, monkeypatch):
    x = torch.from_numpy(points()).bfloat16()
    rows = cluster_device.Rows(x, torch.device("cpu"))
    assert all(block.dtype == torch.bfloat16 for _, block in rows)
    np.testing.assert_array_equal(rows.take(np.array([3, 899])), x[[3, 899]].float().numpy())
    got = cluster_device.mean_variance(rows)
    assert got == pytest.approx(x.double().numpy().var(axis=0).mean(), rel=1e-12)


def test_empty_clusters_get_the_farthest_points(blocks):
    x = np.array([[0.0], [0.1], [10], [10.1], [30]], np.float32)
    km = KMeans(3, init=np.array([[0], [10], [500]], np.float32), tol=0, device="cpu").fit(x)
    np.testing.assert_array_equal(km.labels_.numpy(), [0, 0, 1, 1, 2])
    np.testing.assert_allclose(km.cluster_centers_, [[0.05], [10.05], [30]], rtol=1e-6)


def test_fewer_distinct_points_than_clusters():
    x = np.repeat(points(5, 2), 10, axis=0)
    with pytest.warns(ConvergenceWarning, match=r"\(5\) found smaller than n_clusters \(10\)"):
        km = KMeans(10, random_state=0, device="cpu").fit(x)
    assert km.inertia_ == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_must_be_finite(blocks, value):
    x = points()
    x[700, 3] = value
    with pytest.raises(ValueError, match="Input X contains (NaN|infinity)"):
        KMeans(3, device="cpu").fit(x)


def test_centres_on_another_device_are_named():
    class Far(torch.Tensor):
        device = torch.device("cuda:0")

    Far.__module__ = "torch"
    with pytest.raises(ValueError, match="init must be on the cpu, got cuda:0"):
        KMeans(2, init=torch.zeros(2, 12).as_subclass(Far)).fit(points())


def test_float64_copies_are_of_few_rows_where_these_are_long(monkeypatch):
    monkeypatch.setattr(cluster_device, "_COPY_BYTES", 12 * 8 * 7)
    x, seen = points(), []
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda self, n: seen.append(n) or split(self, n))
    found = cluster_device.mean_variance(cluster_device.Rows(x, torch.device("cpu")))
    assert set(seen) == {7}
    assert found == pytest.approx(x.astype(np.float64).var(axis=0).mean(), rel=1e-12)


def test_more_clusters_than_points():
    with pytest.raises(ValueError, match=r"n_samples=5 should be >= n_clusters=8\."):
        KMeans(8, device="cpu").fit(points(5))


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs PyTorch; install it with: pip install 'rsprune\[torch\]'"):
        KMeans(2, device="cuda").fit(points(9))
