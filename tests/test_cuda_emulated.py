"""The CUDA kernels and their launches, compiled as C++ and run on the emulated GPU of tests/emulated_gpu."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from rsprune import patch_entropy, reference

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
KERNELS = ["simple", "mma", "wgmma"]
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("emulated") / "gpu.so"
    folders = [f"-I{ROOT / 'tests/emulated_gpu'}", f"-I{ROOT / 'csrc'}"]
    source = ROOT / "tests/emulated_gpu/entry.cpp"
    command = [COMPILER, "-std=c++17", "-O2", "-w", "-shared", "-fPIC", *folders, source, "-o", path]
    subprocess.run(command, check=True, capture_output=True, text=True)
    loaded = ctypes.CDLL(str(path))
    for name in ("assign", "sums", "entropy", "route"):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.error_bound.restype = ctypes.c_double
    loaded.error_bound.argtypes = [ctypes.c_float] * 4 + [ctypes.c_int64]
    loaded.accumulate.restype = ctypes.c_float
    return loaded


@pytest.fixture
def machine(library):
    library.machine(90, 3, 1)
    return library


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    monkeypatch.setenv("RSPRUNE_CUDA_KERNEL", request.param)
    return request.param


def pointer(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def call(function, *arguments):
    given = [ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments]
    failure = function(*given)
    assert not failure, failure.decode()


def assign(library, x, centers, *, bounded=False):
    """Labels, distances (None with bounds: labels are computed alone then), and how many rows were rechecked."""
    n, dim = x.shape
    labels, distances = np.full(n, -7, np.int32), None if bounded else np.full(n, -7, np.float32)
    rechecked = np.zeros(1, np.int64)
    bits = x.view(torch.int32 if x.dtype == torch.float32 else torch.int16).numpy()
    call(
        library.assign,
        pointer(bits),
        TYPES[x.dtype],
        pointer(centers),
        pointer(labels),
        pointer(distances),
        int(bounded),
        pointer(rechecked),
        n,
        len(centers),
        dim,
    )
    return labels, distances, int(rechecked[0])


def assert_equals_reference(library, x, centers):
    labels, distances, rechecked = assign(library, x, centers)
    want, far = reference.kmeans_assign(x.double().numpy(), centers)
    np.testing.assert_array_equal(labels, want)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(distances, far.astype(np.float32), rtol=2**-22, atol=1e-37)
    return rechecked


def points(n, k, dim, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator).to(dtype)
    return x, torch.randn(k, dim, generator=generator).numpy()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("n", "k", "dim"), [(1, 1, 1), (1, 129, 3), (130, 1, 64), (300, 150, 77), (60, 257, 128), (70, 40, 200)]
)
def test_equals_reference(machine, kernel, n, k, dim, dtype):
    rechecked = assert_equals_reference(machine, *points(n, k, dim, dtype))
    assert rechecked <= (0.3 if dtype == torch.bfloat16 else 0.1) * n + 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("dim", "processors"), [(100, 1), (100, 4), (330, 2)])
def test_any_order_of_threads_and_copies(library, monkeypatch, seed, dim, processors):
    """Several work items per block, groups of centres, more slabs than stages."""
    monkeypatch.setenv("RSPRUNE_CUDA_KERNEL", "wgmma")
    library.machine(90, processors, seed)
    assert assert_equals_reference(library, *points(530, 300, dim, seed=seed)) < 80


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_alone(machine, kernel, dtype):
    x, centers = points(200, 60, 40, dtype)
    labels, _, rechecked = assign(machine, x, centers)
    alone, distances, again = assign(machine, x, centers, bounded=True)
    np.testing.assert_array_equal(alone, labels)
    assert (distances, again) == (None, rechecked)


def test_bfloat16_rows_scored_as_float16(machine, kernel, monkeypatch):
    x, centers = points(200, 300, 64, torch.bfloat16)
    x[0], x[1] = x[0] * 1e5, x[1] * 1e-9  # beyond float16 at either end
    usual = assert_equals_reference(machine, x, centers)
    monkeypatch.setenv("RSPRUNE_CUDA_OPERAND", "half")
    rechecked = assert_equals_reference(machine, x, centers)
    assert assign(machine, x, centers, bounded=True)[2] == rechecked
    assert rechecked < usual / 2 or kernel == "simple"


def test_ties_go_to_the_lower_index(machine, kernel):
    x, centers = points(50, 10, 24)
    many = np.repeat(centers, 20, axis=0)  # more candidates than are kept, and pairs in different tiles
    labels, _, rechecked = assign(machine, x, many)
    np.testing.assert_array_equal(labels, 20 * reference.kmeans_assign(x.double().numpy(), centers)[0])
    assert rechecked == 50
    labels, _, _ = assign(machine, x, np.concatenate([centers, centers]))
    assert (labels < 10).all()


def test_centers_one_ulp_apart(machine, kernel):
    random = np.random.default_rng(0)
    base = random.standard_normal(33).astype(np.float32)
    centers = np.repeat(base[None], 5, axis=0)
    centers[1, 0], centers[2, 1] = np.nextafter(base[0], np.float32(9)), np.nextafter(base[1], np.float32(-9))
    centers[3] = base + 4 * np.spacing(base)
    x = (base + random.integers(-3, 4, (60, 33)) * np.spacing(base)).astype(np.float32)
    assert assert_equals_reference(machine, torch.from_numpy(x), centers) == 60


def test_values_that_are_not_finite(machine, kernel):
    x, centers = points(40, 20, 24, torch.float32)
    x[3, 5], x[10], x[20, 23], x[39, 0] = np.nan, np.nan, np.inf, -np.inf
    centers[0, 0], centers[4] = np.nan, np.inf
    assert_equals_reference(machine, x, centers)
    labels, distances, _ = assign(machine, x, np.full((2, 24), np.nan, np.float32))
    assert (labels == -1).all()
    assert np.isnan(distances).all()


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1e-6, 3e4, 1e10, 1e25, 3e38])
def test_beyond_the_range_of_16_bits(machine, kernel, scale):
    random = np.random.default_rng(1)
    x = (random.uniform(-1, 1, (40, 20)) * scale).astype(np.float32)
    centers = (random.uniform(-1, 1, (30, 20)) * scale).astype(np.float32)
    assert_equals_reference(machine, torch.from_numpy(x), centers)
    assert_equals_reference(machine, torch.from_numpy(x).bfloat16(), centers)


def test_one_huge_center_among_usual_ones(machine, kernel):
    x, centers = points(40, 20, 24)
    centers[7] = 3e19  # its half norm overflows what scores can hold
    assert_equals_reference(machine, x, centers)


def test_scores_that_differ_less_than_the_bits_given_to_columns(machine, kernel):
    """Half norms rule the scores and nearly agree; what little x adds cannot be lost with the low bits."""
    random = np.random.default_rng(5)
    direction = random.standard_normal((60, 8))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centers = (1000 * (1 + random.uniform(-1e-6, 1e-6, (60, 1))) * direction).astype(np.float32)
    x = torch.from_numpy((1e-4 * random.standard_normal((100, 8))).astype(np.float16))
    assert_equals_reference(machine, x, centers)


def test_rows_at_any_address(machine, kernel):
    flat, centers = points(1, 9, 64 * 50 + 1)
    x = flat.flatten()[1:].reshape(50, 64)
    assert_equals_reference(machine, x, np.ascontiguousarray(centers[:, :64]))


def test_bound_holds_for_sums_that_are_cut_off(library):
    """The emulated unit cuts off as much as the certificate's model allows; sums that grow, cancel and dwindle."""
    random = np.random.default_rng(2)
    largest = 0.0
    for dim in (16, 128, 1024, 4096):
        ramp = np.logspace(2, -2, dim)
        for scale in (np.ones(dim), ramp, ramp[::-1], 1 - 2 * (np.arange(dim) % 2)):
            for _ in range(5):
                a = (random.uniform(0.5, 1, dim) * scale).astype(np.float16).astype(np.float32)
                b = (random.uniform(0.5, 1, dim) * scale).astype(np.float16).astype(np.float32)
                error = abs(
                    library.accumulate(pointer(a), pointer(b), dim) - np.dot(a.astype(float), b.astype(float))
                )
                bound = library.error_bound(np.linalg.norm(a), 0, np.linalg.norm(b), 0, dim)
                assert error <= bound
                largest = max(largest, error / bound)
    assert largest > 0.02  # the bound is of the size of what happens


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("n", "k", "dim"), [(1500, 5, 64), (700, 300, 33), (600, 1, 8), (1, 3, 40)])
def test_sums(machine, n, k, dim, dtype):
    x, _ = points(n, 1, dim, dtype)
    labels = np.random.default_rng(3).integers(-1, k, n).astype(np.int32)
    labels[n // 3 : 2 * n // 3] = k - 1  # a run over whole chunks
    sums, counts = np.ones((k, dim)), np.full(k, 10, np.int64)
    bits = x.view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
    arrays = pointer(bits), TYPES[dtype], pointer(labels), pointer(sums), pointer(counts)
    call(machine.sums, *arrays, n, k, dim)
    want = np.ones((k, dim))
    np.add.at(want, labels[labels >= 0], x.double().numpy()[labels >= 0])
    np.testing.assert_allclose(sums, want, rtol=1e-12, atol=1e-11)
    np.testing.assert_array_equal(counts, np.bincount(labels[labels >= 0], minlength=k) + 10)


def entropy(library, images, patch, valid=None, table=None):
    n, height, width, channels = images.shape if images.ndim == 4 else (*images.shape, 1)
    out = np.full((n, -(-height // patch), -(-width // patch), channels), -7, np.float32)
    valid = None if valid is None else valid.astype(np.uint8)
    shape = n, height, width, channels, patch, len(table) if table is not None else 1
    arrays = pointer(images), int(images.dtype == np.uint16), pointer(valid), pointer(table), pointer(out)
    call(library.entropy, *arrays, *shape)
    return out if images.ndim == 4 else out[..., 0]


@pytest.mark.parametrize("kernel", ["simple", "fast"])
@pytest.mark.parametrize("shape", [(2, 64, 96), (1, 70, 65), (1, 64, 48, 3), (1, 40, 64, 4), (1, 24, 40, 13)])
@pytest.mark.parametrize("patch", [5, 8, 16, 32])
def test_entropy_has_the_bits_of_the_cpu(machine, monkeypatch, kernel, shape, patch):
    monkeypatch.setenv("RSPRUNE_CUDA_ENTROPY", kernel)
    random = np.random.default_rng(4)
    images = (random.integers(0, 256, shape) // random.choice([1, 30, 255], shape)).astype(np.uint8)
    valid = random.random(shape[:3]) < 0.7
    valid[0, :patch, :patch] = False
    np.testing.assert_array_equal(entropy(machine, images, patch), patch_entropy(images, patch))
    got = entropy(machine, images, patch, valid=valid)
    np.testing.assert_array_equal(got, patch_entropy(images, patch, valid=valid))
    if patch in (8, 16):
        wide = (images.astype(np.uint16) * 37).astype(np.uint16)
        for values, scale, bits in ((images, (3.0, 200.0), 8), (wide, (10.0, 9000.0), 16)):
            table = np.ascontiguousarray(reference.bin_table((scale,), bits))
            got = entropy(machine, values, patch, table=table)
            np.testing.assert_array_equal(got, patch_entropy(values, patch, scale=scale))


def test_large_and_constant_patches(machine, monkeypatch):
    monkeypatch.setenv("RSPRUNE_CUDA_ENTROPY", "fast")
    images = np.full((1, 70, 128), 201, np.uint8)
    for patch in (64, 70, 128):  # 4096 pixels, and more than the fast kernel takes
        got = entropy(machine, images, patch)
        assert (got == 0).all()
        assert not np.signbit(got).any()


@pytest.mark.parametrize("kernel", ["simple", "fast"])
@pytest.mark.parametrize("patch", [64, 2**31, 2**63 - 1])
def test_patches_of_any_size_hold_the_whole_image(machine, monkeypatch, kernel, patch):
    monkeypatch.setenv("RSPRUNE_CUDA_ENTROPY", kernel)
    images = np.random.default_rng(6).integers(0, 256, (2, 24, 40), np.uint8)
    np.testing.assert_array_equal(entropy(machine, images, patch), patch_entropy(images, 40))


def test_rows_of_a_tile_lie_in_different_banks(library):
    """What one phase of ldmatrix reads, 16 bytes of 8 rows, touches all 32 banks; and every chunk has one place."""
    places = {library.swizzled_offset(row, chunk) for row in range(128) for chunk in range(8)}
    assert places == set(range(0, 128 * 128, 16))
    for first in range(0, 128, 8):
        for chunk in range(8):
            starts = {library.swizzled_offset(first + row, chunk) % 128 for row in range(8)}
            assert starts == set(range(0, 128, 16))


@pytest.mark.parametrize(
    ("points", "clusters", "dim", "pack", "tile", "slots", "resident"),
    [
        (1, 1, 1, 1, 256, 132, 1),
        (1 << 22, 1024, 128, 0, 256, 132, 1),
        (10_500_000, 5000, 768, 0, 256, 132, 0),
        (1 << 33, 1 << 17, 4096, 1, 128, 264, 0),
        (1000, 100_000, 1280, 1, 128, 216, 0),
    ],
)
def test_plan(library, points, clusters, dim, pack, tile, slots, resident):
    given = np.array([points, clusters, dim, pack, tile, slots, resident], np.int64)
    found = np.zeros(5, np.int64)
    library.plan(pointer(given), pointer(found))
    pitch, tiles, chunk, splits, size = found.tolist()
    assert pitch % 8 == 0
    assert dim <= pitch < dim + 8
    assert tiles * 128 - 128 < clusters <= tiles * 128
    assert chunk % 256 == 0
    assert chunk >= min(points, 256)
    assert 1 <= splits <= tiles
    assert size <= (128 << 20) + tiles * 128 * (2 * pitch + 4) + 8192
    if not resident and points > 1 << 20:  # rows in work at a time stay in the cache
        assert slots / splits * tile * pitch * 2 <= 1.2 * (16 << 20)


@pytest.mark.parametrize(
    ("wish", "capability", "answer"),
    [
        (None, 90, "= simple"),
        ("auto", 90, "= wgmma"),
        ("auto", 80, "= mma"),
        ("auto", 100, "= mma"),
        ("auto", 75, "= simple"),
        ("mma", 89, "= mma"),
        ("wgmma", 80, "RSPRUNE_CUDA_KERNEL=wgmma needs a device of compute capability 9.0, got 8.0"),
        ("mma", 75, "RSPRUNE_CUDA_KERNEL=mma needs a device of compute capability 8.0 or later, got 7.5"),
        ("best", 90, "RSPRUNE_CUDA_KERNEL must be auto, simple, mma or wgmma, got best"),
    ],
)
def test_which_kernels_serve(library, wish, capability, answer):
    assert library.route(wish and wish.encode(), capability).decode() == answer
