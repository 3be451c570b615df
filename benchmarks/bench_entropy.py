"""Patch entropy: GB/s of pixels beside a copy of the pixels by as many threads, NumPy and scikit-image."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rates import blue_marble, record, tiles
from threadpoolctl import threadpool_limits

from rsprune import patch_entropy

THREADS = (1, 2)
REPEATS = 4  # of the one band of the image, which alone would fit into a large cache


def by_bincount(images: np.ndarray, patch: int) -> np.ndarray:
    """The best NumPy can do: one count over (patch, value), then one logarithm per bin."""
    n, height, width = images.shape
    rows, cols = height // patch, width // patch
    grid = images.reshape(n, rows, patch, cols, patch)
    index = np.arange(n * rows * cols).reshape(n, rows, 1, cols, 1) * 256 + grid
    p = np.bincount(index.ravel(), minlength=n * rows * cols * 256).reshape(-1, 256) / patch**2
    return -np.sum(p * np.log2(p, where=p > 0, out=np.zeros_like(p)), axis=1).reshape(n, rows, cols)


def pictures() -> dict[str, np.ndarray]:
    grey = np.concatenate(REPEATS * [tiles(blue_marble("L"))])
    noise = np.random.default_rng(0).integers(0, 256, grey.shape, np.uint8)
    return {"grey": grey, "rgb": tiles(blue_marble("RGB")), "constant": np.full_like(grey, 7), "noise": noise}


@pytest.fixture(scope="module")
def images():
    return pictures()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("patch", [16, 32, 64, 256])
@pytest.mark.parametrize("kind", ["grey", "rgb", "constant", "noise"])
def test_patch_entropy(benchmark, images, kind, patch, threads):
    benchmark.group = f"patch entropy, {kind}, patch {patch}, GB/s"
    pixels = images[kind]
    out, copy = np.empty_like(patch_entropy(pixels, patch)), np.empty_like(pixels)
    shares = [np.array_split(array, threads) for array in (copy, pixels)]
    with threadpool_limits(threads), ThreadPoolExecutor(threads) as pool:
        calls = {
            "rsprune": lambda: patch_entropy(pixels, patch, out=out),
            "copy": lambda: list(pool.map(np.copyto, *shares)),
        }
        record(benchmark, pixels.nbytes / 1e9, "GB", calls)


@pytest.mark.parametrize("patch", [16, 32])
def test_against_numpy(benchmark, images, patch):
    benchmark.group = f"patch entropy against NumPy, patch {patch}, GB/s"
    pixels = images["grey"][:: 8 * REPEATS].copy()
    np.testing.assert_allclose(patch_entropy(pixels, patch), by_bincount(pixels, patch), atol=1e-4)
    with threadpool_limits(1):
        calls = {"rsprune": lambda: patch_entropy(pixels, patch), "numpy": lambda: by_bincount(pixels, patch)}
        record(benchmark, pixels.nbytes / 1e9, "GB", calls)


def test_against_scikit_image(benchmark, images):
    measure = pytest.importorskip("skimage.measure")
    benchmark.group = "patch entropy against scikit-image, patch 32, GB/s"
    pixels = images["grey"][:: 64 * REPEATS].copy()
    squares = pixels.reshape(-1, 8, 32, 8, 32).swapaxes(2, 3).reshape(-1, 32, 32)
    with threadpool_limits(1):
        calls = {
            "rsprune": lambda: patch_entropy(pixels, 32),
            "scikit-image": lambda: [measure.shannon_entropy(each) for each in squares],
        }
        record(benchmark, pixels.nbytes / 1e9, "GB", calls, rounds=3)
