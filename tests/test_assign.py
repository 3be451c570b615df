from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsprune import _C, kmeans_assign, reference


def assign(x, centers, device):
    x = x if isinstance(x, torch.Tensor) else torch.from_numpy(x)
    labels, distances = kmeans_assign(x.to(device), torch.from_numpy(centers).to(device))
    return labels.cpu().numpy(), distances.cpu().numpy()


def assert_equals_reference(x, centers, device):
    labels, distances = assign(x, centers, device)
    exact = x.double().numpy() if isinstance(x, torch.Tensor) else x
    want_labels, want_distances = reference.kmeans_assign(exact, centers)
    np.testing.assert_array_equal(labels, want_labels)
    # float64 sums, rounded once: half a unit of float32, and what is below its normal range
    np.testing.assert_allclose(distances, want_distances, rtol=2**-23, atol=1e-37)


def exact_labels(x, centers):
    """Argmin in rational arithmetic."""
    rows = [[Fraction(float(v)) for v in row] for row in x]
    columns = [[Fraction(float(v)) for v in c] for c in centers]
    squares = [[sum((a - b) ** 2 for a, b in zip(row, c, strict=True)) for c in columns] for row in rows]
    return np.array([d.index(min(d)) for d in squares], np.int32)


@pytest.mark.parametrize("dim", [1, 3, 64, 112, 257, 768, 1280])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 50), (100, 1), (65, 65), (203, 130)])
def test_equals_reference(device, isa, n, k, dim):
    rng = np.random.default_rng(n + k + dim)
    x = rng.standard_normal((n, dim), np.float32)
    assert_equals_reference(x, rng.standard_normal((k, dim), np.float32), device)


def test_many_dimensions_and_many_centers(device, isa):
    rng = np.random.default_rng(0)
    assert_equals_reference(
        rng.standard_normal((20, 4099), np.float32), rng.standard_normal((9, 4099), np.float32), device
    )
    assert_equals_reference(
        rng.standard_normal((50, 5), np.float32), rng.standard_normal((4000, 5), np.float32), device
    )


@pytest.fixture
def flushed():
    """A process that takes numbers below 2^-126 for 0, as some libraries have it."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("dim", [1, 5, 17, 64])
def test_small_numbers_count_where_the_process_flushes_them(flushed, isa, dim):
    """Halves below 2^-14, whose bits are a small float32; products that are small though no factor is."""
    x = torch.full((1, dim), 2.0**-20, dtype=torch.float16)
    centers = np.stack([np.zeros(dim, np.float32), np.full(dim, 2.0**-20, np.float32)])
    labels, distances = assign(x, centers, "cpu")
    assert (labels[0], distances[0]) == (1, 0)
    assert assign(x, centers[:1], "cpu")[1][0] == np.float32(dim * 2.0**-40)
    far = np.zeros((2, 1008), np.float32)
    far[0], far[1, 0] = 1e-19, 2e-19
    assert assign(np.zeros((1, 1008), np.float32), far, "cpu")[0] == [1]
    sums, counts = torch.zeros(1, dim, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    _C.kmeans_sums(x, torch.zeros(1, dtype=torch.int32), sums, counts)
    assert sums.tolist() == [[2.0**-20] * dim]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0, 3, 100])
def test_storage_types(device, isa, dtype, offset):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(150, 77, generator=generator) + offset).to(dtype)
    centers = (torch.randn(60, 77, generator=generator) + offset).numpy()
    assert_equals_reference(x, centers, device)


def test_float16_special_values(device, isa):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    x = np.resize(finite, (-(-finite.size // 37), 37))
    assert_equals_reference(x, x[::97].astype(np.float32), device)


def test_each_center_is_its_own_nearest(device, isa):
    centers = np.random.default_rng(1).standard_normal((300, 24), np.float32)
    labels, distances = assign(centers, centers, device)
    np.testing.assert_array_equal(labels, np.arange(300))
    assert (distances == 0).all()


def test_ties_go_to_the_lower_index(device, isa):
    rng = np.random.default_rng(2)
    centers = np.repeat(rng.standard_normal((20, 30), np.float32), 5, axis=0)
    labels, _ = assign(rng.standard_normal((100, 30), np.float32), centers, device)
    assert (labels % 5 == 0).all()
    square = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    np.testing.assert_array_equal(assign(np.zeros((3, 2), np.float32), square[::-1].copy(), device)[0], 0)
    same = np.ones((200, 3), np.float32)  # more candidates than are kept for a row
    np.testing.assert_array_equal(assign(same[:9], same, device)[0], 0)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1.0, 3e4, 1e15])
@pytest.mark.parametrize("dim", [2, 33, 128])
def test_centers_one_ulp_apart(device, isa, magnitude, dim):
    """Points on and near the bisector of centres that differ in the last bit of one component."""
    rng = np.random.default_rng(dim)
    base = (rng.standard_normal(dim) * magnitude).astype(np.float32)
    centers = np.repeat(base[None], 6, axis=0)
    centers[1, 0] = np.nextafter(base[0], np.float32(np.inf))
    centers[2, 1] = np.nextafter(base[1], np.float32(-np.inf))
    centers[3, [0, 1]] = centers[1, 0], centers[2, 1]
    centers[4] = base + 4 * np.spacing(base)
    centers[5] = base
    near = base + rng.integers(-3, 4, (60, dim)) * np.spacing(base)
    far = rng.standard_normal((40, dim)) * magnitude
    x = np.concatenate([near, far, (centers[:1] + centers[1:5]) / 2]).astype(np.float32)
    np.testing.assert_array_equal(assign(x, centers, device)[0], exact_labels(x, centers))


def test_exact_where_float64_is_not(device, isa):
    """The two distances differ by 1 in 2^100: the sum of squares in float64 rounds that away."""
    big, small = np.float32(2**25), np.float32(2**-25)
    centers = np.array([[big, small], [-big, 0.0]], np.float32)
    x = np.array([[0.0, 0.0], [0.0, 2 * small]], np.float32)
    np.testing.assert_array_equal(exact_labels(x, centers), [1, 0])
    np.testing.assert_array_equal(assign(x, centers, device)[0], [1, 0])


def test_cancellation_in_the_scores(device, isa):
    """Products of 1e6 cancel, so float32 sums lose the small differences that decide."""
    rng = np.random.default_rng(10)
    signs = np.resize([1, -1], 64)
    centers = (1000 * signs + rng.standard_normal((40, 64)) * 1e-2).astype(np.float32)
    x = (1000 + rng.standard_normal((30, 64)) * 1e-2).astype(np.float32)
    np.testing.assert_array_equal(assign(x, centers, device)[0], exact_labels(x, centers))


def test_large_common_offset(device, isa):
    rng = np.random.default_rng(3)
    x = (1e4 + rng.standard_normal((200, 50))).astype(np.float32)
    assert_equals_reference(x, x[::7] + np.float32(0.125), device)


@pytest.mark.parametrize("scale", [1e-42, 1e-25, 1e-18, 1e10, 1e18, 1e30, 3e38])
def test_tiny_and_huge_norms(device, isa, scale):
    rng = np.random.default_rng(4)
    x = (rng.uniform(-1, 1, (60, 20)) * scale).astype(np.float32)
    centers = (rng.uniform(-1, 1, (40, 20)) * scale).astype(np.float32)
    labels, distances = assign(x, centers, device)
    want_labels, want = reference.kmeans_assign(x, centers)
    np.testing.assert_array_equal(labels, want_labels)
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_allclose(distances, want.astype(np.float32), rtol=2**-22, atol=1e-44)


def test_mixed_magnitudes(device, isa):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((100, 40)) * 10.0 ** rng.integers(-18, 18, (100, 1))).astype(np.float32)
    centers = (rng.standard_normal((70, 40)) * 10.0 ** rng.integers(-18, 18, (70, 1))).astype(np.float32)
    assert_equals_reference(x, centers, device)


def test_rows_that_are_not_finite(device, isa):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((50, 20), np.float32)
    x[3, 5], x[10], x[20, 19], x[49, 0] = np.nan, np.nan, np.inf, -np.inf
    centers = rng.standard_normal((9, 20), np.float32)
    labels, distances = assign(x, centers, device)
    bad = [3, 10, 20, 49]
    assert (labels[bad] == -1).all()
    assert np.isnan(distances[bad]).all()
    assert_equals_reference(x, centers, device)


def test_centers_that_are_not_finite(device, isa):
    rng = np.random.default_rng(7)
    x, centers = rng.standard_normal((50, 20), np.float32), rng.standard_normal((9, 20), np.float32)
    centers[0, 0], centers[4] = np.nan, np.inf
    assert not np.isin(assign(x, centers, device)[0], [0, 4]).any()
    assert_equals_reference(x, centers, device)
    labels, distances = assign(x, np.full((2, 20), np.nan, np.float32), device)
    assert (labels == -1).all()
    assert np.isnan(distances).all()


def test_no_rows(device):
    labels, distances = assign(np.empty((0, 5), np.float32), np.ones((2, 5), np.float32), device)
    assert labels.shape == distances.shape == (0,)
    assert (labels.dtype, distances.dtype) == (np.int32, np.float32)


def test_strided_and_read_only():
    rng = np.random.default_rng(8)
    x, centers = rng.standard_normal((60, 40), np.float32), rng.standard_normal((40, 8), np.float32)
    want = kmeans_assign(np.ascontiguousarray(x[::2, ::-1]), np.ascontiguousarray(centers.T))
    x.flags.writeable = centers.flags.writeable = False
    got = kmeans_assign(x[::2, ::-1], centers.T)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_library_in_library_out():
    x, centers = torch.randn(10, 4, requires_grad=True), torch.randn(3, 4)
    labels, distances = kmeans_assign(x, centers)
    assert (labels.dtype, distances.dtype) == (torch.int32, torch.float32)
    out = np.empty(10, np.int32), np.empty(10, np.float32)
    assert kmeans_assign(x.detach().numpy(), centers.numpy(), out=out)[0] is out[0]
    np.testing.assert_array_equal(out[0], labels.numpy())


def rechecked(x, centers):
    return _C.kmeans_assign(x, centers, np.empty(len(x), np.int32), np.empty(len(x), np.float32))


def test_only_rows_in_doubt_are_rechecked(isa):
    rng = np.random.default_rng(9)
    centers = rng.standard_normal((64, 112), np.float32)
    x = centers[rng.integers(0, 64, 500)] + 0.1 * rng.standard_normal((500, 112), np.float32)
    assert rechecked(x, centers) == 0
    halfway = (centers[:32] + centers[32:]) / 2
    assert rechecked(halfway.astype(np.float32), centers) > 16


def test_points_with_many_candidates(isa):
    """Crowds of centres far from the mean: coarse scores cannot tell them apart, so rows are screened again."""
    rng = np.random.default_rng(11)
    crowd = 30 * np.sign(rng.standard_normal((3, 1, 40))) + 1e-3 * rng.standard_normal((3, 300, 40))
    centers = crowd.reshape(-1, 40).astype(np.float32)
    x = centers[rng.integers(0, len(centers), 3000)] + 1e-4 * rng.standard_normal((3000, 40)).astype(
        np.float32
    )
    x[1000:1100] = rng.standard_normal((100, 40))
    assert_equals_reference(x, centers, "cpu")
    assert rechecked(x, centers) > 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_points_in_crowds_of_centers(isa, dtype):
    """So many that points are screened about the middle of their own crowd, where coarse scores prove most."""
    rng = np.random.default_rng(12)
    crowd = 10 * rng.standard_normal((4, 1, 48)) + 0.1 * rng.standard_normal((4, 48, 48))
    centers = crowd.reshape(-1, 48).astype(np.float32)
    x = centers[rng.integers(0, 192, 8000)] + 0.05 * rng.standard_normal((8000, 48)).astype(np.float32)
    x[::100] = ((crowd[:, :20] + crowd[:, 20:40]) / 2).reshape(-1, 48)
    x[1::100] *= 3
    x[2], x[4000] = np.nan, np.inf
    x = torch.from_numpy(x).to(dtype)
    assert_equals_reference(x, centers, "cpu")
    assert rechecked(x, centers) < 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_exact_on_integer_grids(device, isa, data):
    """Small integers make exact ties common, and float64 exact."""
    n, k, dim = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    top = data.draw(st.integers(1, 300))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    x = torch.from_numpy(rng.integers(-top, top, (n, dim)).astype(np.float32)).to(dtype)
    centers = rng.integers(-top, top, (k, dim)).astype(np.float32)
    assert_equals_reference(x, centers, device)
