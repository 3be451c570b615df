"""Stored values to bins: declared, identity or estimated."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rsprune import patch_entropy
from rsprune.errors import ConfigError
from rsprune.radiometry import Radiometry, estimate
from rsprune.sources.base import Image


def test_declare():
    assert Radiometry.declare("uint8") == Radiometry(((0.0, 256.0),))
    assert Radiometry.declare("uint16") is None
    assert Radiometry.declare("float32") is None
    assert Radiometry.declare("uint8", [(10, 20)], 0) == Radiometry(((10.0, 20.0),), 0)


def test_8_bit_without_a_scale_is_left_alone():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert Radiometry.declare("uint8").to_uint8(Image(pixels)) is pixels


def test_bins_by_hand():
    image = Image(np.array([[[0.0], [10.0], [10.05], [14.99], [15.0], [19.99], [20.0], [99.0]]], np.float32))
    bins = Radiometry(((10.0, 20.0),)).to_uint8(image)
    assert bins.ravel().tolist() == [0, 0, 1, 127, 128, 255, 255, 255]


def test_every_band_has_its_own_scale():
    image = Image(np.full((1, 1, 3), 50, np.uint16))
    assert Radiometry(((0, 100), (0, 200), (25, 50))).to_uint8(image).tolist() == [[[128, 64, 255]]]
    with pytest.raises(ConfigError, match="scale has 2 pairs for images with 3 bands"):
        Radiometry(((0, 100), (0, 200))).to_uint8(image)


@pytest.mark.parametrize(
    "scale", [((0.0, 65536.0),), ((397.0, 2077.0),), ((0.1, 0.7 * 65536),), ((-500.5, 123.25),)]
)
def test_bins_are_those_of_the_entropy_kernel(scale):
    """Two values share our bin exactly where they share the kernel's: a patch of both has 0 or 1 bit."""
    values = np.arange(65535, dtype=np.uint16)
    neighbours = np.stack([values, values + np.uint16(1)], axis=-1)[:, None, :]  # [N, 1, 2]
    bits = patch_entropy(neighbours, 2, scale=scale)[:, 0, 0]
    bins = Radiometry(scale).to_uint8(Image(neighbours.reshape(-1, 2, 1)))[..., 0]
    np.testing.assert_array_equal(bits, (bins[:, 0] != bins[:, 1]).astype(np.float32))


def test_integers_and_reals_have_the_same_bins():
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    radiometry = Radiometry(((311.7, 4999.3),))
    as_real = radiometry.to_uint8(Image(pixels.astype(np.float32)))
    np.testing.assert_array_equal(radiometry.to_uint8(Image(pixels)), as_real)


def test_estimate_is_robust_and_per_band():
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.uniform(100, 200, (64, 64)), rng.uniform(-1, 1, (64, 64))], axis=-1).astype(
        np.float32
    )
    pixels[0, :10, 0] = 60_000  # glint: 0.2 % of the pixels
    (lo, hi), (lo2, hi2) = estimate([Image(pixels)]).scale
    assert (lo, hi) == pytest.approx((100.5, 199.7), abs=0.5)
    assert (lo2, hi2) == pytest.approx((-0.99, 0.99), abs=0.01)


def test_estimate_leaves_nodata_out():
    pixels = np.full((32, 32, 1), -9999, np.float32)
    pixels[:8] = np.linspace(0, 1, 256, dtype=np.float32).reshape(8, 32, 1)
    radiometry = estimate([Image(pixels, pixels[..., 0] > -1)], nodata=-9999)
    assert radiometry.scale[0] == pytest.approx((0.005, 0.995), abs=1e-3)
    assert radiometry.nodata == -9999


def test_large_images_do_not_outvote_small_ones():
    small = [Image(np.full((64, 64, 1), 100, np.uint16))] * 10
    large = Image(np.full((640, 640, 1), 900, np.uint16))
    pixels = np.concatenate([i.pixels.ravel() for i in [large, *small]])
    assert np.median(pixels) == 900
    binned = estimate([large, *small]).to_uint8(Image(np.array([[[100], [900]]], np.uint16)))
    assert binned.ravel().tolist() == [0, 255]


@pytest.mark.parametrize("value", [0, 7, 60_000])
def test_constant_images_get_a_scale(value):
    radiometry = estimate([Image(np.full((8, 8, 2), value, np.uint16))])
    assert all(lo < hi for lo, hi in radiometry.scale)
    assert not radiometry.to_uint8(Image(np.full((8, 8, 2), value, np.uint16))).any()


def test_nothing_to_estimate_from():
    with pytest.raises(ConfigError, match="give --scale"):
        estimate([])
    empty = Image(np.zeros((4, 4, 2), np.float32), np.zeros((4, 4), bool))
    assert estimate([empty]).scale == ((0.0, 1.0), (0.0, 1.0))


def test_json_round_trip():
    radiometry = Radiometry(((0.0, 0.1), (-3.0, 7.5)), nodata=-1.0)
    assert Radiometry.from_json(json.loads(json.dumps({"bands": 2, **radiometry.to_json()}))) == radiometry
