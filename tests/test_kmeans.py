from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from rsprune import KMeans, reference


@parametrize_with_checks([KMeans(n_clusters=3)], legacy=True, expected_failed_checks=lambda _: {})
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def blobs(n=600, k=6, dim=10, seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((k, dim)) * 4
    y = rng.integers(0, k, n)
    return (centers[y] + spread * rng.standard_normal((n, dim))).astype(np.float32), y


def test_four_points_by_hand():
    x = np.array([[0, 0], [0.5, 0], [0.5, 1], [1, 1]], np.float32)
    km = KMeans(2, init=np.array([[0, 0], [1, 1]], np.float32)).fit(x)
    np.testing.assert_array_equal(km.labels_, [0, 0, 1, 1])
    np.testing.assert_array_equal(km.cluster_centers_, [[0.25, 0], [0.75, 1]])
    assert km.inertia_ == 0.25
    assert km.n_iter_ == 2


def test_finds_separate_blobs():
    x, y = blobs()
    km = KMeans(6, random_state=0).fit(x)
    assert km.labels_.dtype == np.int32
    assert km.cluster_centers_.dtype == np.float32
    for k in range(6):
        assert len(np.unique(y[km.labels_ == k])) == 1
    assert km.inertia_ == pytest.approx(np.square(x - km.cluster_centers_[km.labels_]).sum(), rel=1e-5)


@pytest.mark.parametrize("tol", [0, 1e-4])
def test_follows_scikit_learn_from_the_same_start(tol):
    x = np.random.default_rng(1).standard_normal((2000, 8)).astype(np.float32)
    init = x[:20].copy()
    ours = KMeans(20, init=init, max_iter=300, tol=tol).fit(x)
    theirs = SklearnKMeans(20, init=init, n_init=1, max_iter=300, tol=tol, algorithm="lloyd").fit(x)
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-5)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)


def test_labels_are_the_nearest_centers():
    x = np.random.default_rng(2).standard_normal((500, 5)).astype(np.float32)
    for iterations in (1, 3, 50):
        km = KMeans(30, max_iter=iterations, random_state=0).fit(x)
        np.testing.assert_array_equal(km.labels_, reference.kmeans_assign(x, km.cluster_centers_)[0])
        np.testing.assert_array_equal(km.labels_, km.predict(x))
        assert km.score(x) == pytest.approx(-km.inertia_)


def test_inertia_never_rises():
    x = np.random.default_rng(3).standard_normal((800, 6)).astype(np.float32)
    init = x[:40].copy()
    inertia = [KMeans(40, init=init, max_iter=i, tol=0).fit(x).inertia_ for i in range(1, 12)]
    assert all(b <= a for a, b in pairwise(inertia))


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_plus_plus_seeding_is_reproducible(init):
    x, _ = blobs(seed=4)
    fits = [KMeans(6, init=init, random_state=seed).fit(x) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0].labels_, fits[1].labels_)
    np.testing.assert_array_equal(fits[0].cluster_centers_, fits[1].cluster_centers_)
    assert not np.array_equal(fits[0].cluster_centers_, fits[2].cluster_centers_)


def test_plus_plus_starts_in_every_blob():
    x, y = blobs(n=3000, k=20, seed=5, spread=0.01)
    for seed in range(5):
        km = KMeans(20, max_iter=1, random_state=seed).fit(x)
        assert len({y[km.labels_ == k][0] for k in range(20)}) == 20


def test_empty_clusters_get_the_farthest_points():
    x = np.array([[0.0], [0.1], [10], [10.1], [30]], np.float32)
    km = KMeans(3, init=np.array([[0], [10], [500]], np.float32), tol=0).fit(x)
    np.testing.assert_array_equal(km.labels_, [0, 0, 1, 1, 2])
    np.testing.assert_allclose(km.cluster_centers_, [[0.05], [10.05], [30]], rtol=1e-6)


def test_one_point_per_cluster():
    x = np.random.default_rng(6).standard_normal((40, 3)).astype(np.float32)
    km = KMeans(40, random_state=0).fit(x)
    assert sorted(km.labels_) == list(range(40))
    assert km.inertia_ == 0


def test_one_cluster_is_the_mean():
    x = np.random.default_rng(7).standard_normal((101, 4)).astype(np.float32)
    km = KMeans(1, random_state=0).fit(x)
    np.testing.assert_allclose(km.cluster_centers_[0], x.astype(np.float64).mean(axis=0), rtol=1e-6)


def test_more_clusters_than_points():
    with pytest.raises(ValueError, match=r"n_samples=5 should be >= n_clusters=8\."):
        KMeans(8).fit(np.zeros((5, 2), np.float32))


def test_fewer_distinct_points_than_clusters():
    x = np.repeat(np.random.default_rng(8).standard_normal((5, 2)).astype(np.float32), 10, axis=0)
    with pytest.warns(ConvergenceWarning, match=r"\(5\) found smaller than n_clusters \(10\)"):
        km = KMeans(10, random_state=0).fit(x)
    assert km.inertia_ == 0
    assert np.isfinite(km.cluster_centers_).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be a whole number of at least 1, got 0"),
        ({"n_clusters": 2.0}, "n_clusters must be a whole number of at least 1, got 2.0"),
        ({"max_iter": 0}, "max_iter must be a whole number of at least 1, got 0"),
        ({"tol": -1}, "tol must be a number of at least 0, got -1"),
        ({"init": "best"}, "init must be 'k-means\\+\\+', 'random' or an array of centres, got 'best'"),
        ({"init": np.zeros((3, 3))}, r"init must have shape \[2, 4\], got \[3, 3\]"),
        ({"init": np.full((2, 4), np.nan)}, "init must be finite"),
    ],
)
def test_settings_are_checked_by_fit(setting, message):
    km = KMeans(**{"n_clusters": 2, **setting})
    with pytest.raises(ValueError, match=message):
        km.fit(np.random.default_rng(9).standard_normal((20, 4)))


def test_data_must_be_finite():
    x, _ = blobs(n=50)
    x[7, 3] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        KMeans(2).fit(x)
    with pytest.raises(NotFittedError):
        KMeans(2).predict(x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_storage_types(dtype):
    x, y = blobs(seed=10)
    km = KMeans(6, random_state=0).fit(x.astype(dtype))
    assert all(len(np.unique(y[km.labels_ == k])) == 1 for k in range(6))


def test_torch_tensors():
    x, _ = blobs(seed=11)
    want = KMeans(6, random_state=0).fit(x)
    got = KMeans(6, random_state=0).fit(torch.from_numpy(x))
    np.testing.assert_array_equal(got.labels_, want.labels_)
    assert KMeans(6, random_state=0).fit(torch.from_numpy(x).bfloat16()).labels_.shape == (600,)


def test_memory_map_in_blocks(tmp_path, monkeypatch):
    x, _ = blobs(n=1000, seed=12)
    x = x.astype(np.float16)
    whole = KMeans(6, random_state=0).fit(x)
    x.tofile(tmp_path / "x")
    monkeypatch.setattr("rsprune.cluster._BLOCK", 64)
    mapped = KMeans(6, random_state=0).fit(np.memmap(tmp_path / "x", np.float16, "r", shape=x.shape))
    np.testing.assert_array_equal(mapped.labels_, whole.labels_)
    np.testing.assert_array_equal(mapped.cluster_centers_, whole.cluster_centers_)


def test_transform_gives_distances_to_all_centers():
    x, _ = blobs(n=30, seed=13)
    km = KMeans(4, random_state=0).fit(x)
    want = np.linalg.norm(x[:, None].astype(np.float64) - km.cluster_centers_, axis=2)
    np.testing.assert_allclose(km.transform(x), want, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(km.fit_predict(x), km.labels_)
    assert list(km.get_feature_names_out()) == [f"kmeans{i}" for i in range(4)]
