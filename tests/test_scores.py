"""Scores against their definitions written out, hand-computed values, and the direction each must move in."""

from __future__ import annotations

import numpy as np
import pytest

from image_files import texture
from rsprune.radiometry import Radiometry
from rsprune.reference import patch_entropy
from rsprune.scores import BLOCK, SCORES, content_hash, score, score_batch
from rsprune.sources.base import Image

IDENTITY = Radiometry(((0.0, 256.0),))
CONSTANT = {
    "entropy": 0.0,
    "entropy_p10": 0.0,
    "flat_fraction": 1.0,
    "nodata_fraction": 0.0,
    "saturated_fraction": 0.0,
    "autocorrelation": 1.0,
    "sharpness": 0.0,
}


def of(pixels, valid=None, *, radiometry=IDENTITY, patch=32):
    return score(Image(pixels, valid), radiometry, patch)


def plain(image: Image, radiometry: Radiometry, patch: int) -> dict[str, float]:
    """The definitions, one patch, one pixel and one pair at a time."""
    pixels, (h, w, c) = image.pixels.astype(np.float64), image.pixels.shape
    valid = np.ones((h, w), bool) if image.valid is None else image.valid
    bins = radiometry.to_uint8(image)
    bits, correlations = [], []
    for top in range(0, h, patch):
        for left in range(0, w, patch):
            part = np.s_[top : top + patch, left : left + patch]
            v = valid[part]
            if v.mean() < 0.5:
                continue
            bits.append(patch_entropy(bins[part][None], patch, valid=v[None]).mean())
    for top in range(0, h, BLOCK):
        for left in range(0, w, BLOCK):
            part = np.s_[top : top + BLOCK, left : left + BLOCK]
            x, v = pixels[part], valid[part]
            if v.mean() < 0.5:
                continue
            rows, columns = v.shape
            squares = [
                (x[i, j], x[i, j + 1], x[i + 1, j], x[i + 1, j + 1])
                for i in range(rows - 1)
                for j in range(columns - 1)
                if v[i : i + 2, j : j + 2].all()
            ]
            for band in range(c):
                product = energy = 0.0
                for square in squares:
                    upper_left, upper_right, lower_left, lower_right = (p[band] for p in square)
                    across = upper_right - upper_left, lower_right - lower_left
                    down = lower_left - upper_left, lower_right - upper_right
                    product += across[0] * across[1] + down[0] * down[1]
                    energy += (across[0] ** 2 + across[1] ** 2 + down[0] ** 2 + down[1] ** 2) / 2
                correlations.append(product / energy if energy else 1.0)
    sharpness = []
    for band in range(c):
        x = pixels[..., band]
        across = (x[:, 1:] - x[:, :-1])[valid[:, 1:] & valid[:, :-1]]
        down = (x[1:] - x[:-1])[valid[1:] & valid[:-1]]
        laplacian = [
            x[y - 1, z] + x[y + 1, z] + x[y, z - 1] + x[y, z + 1] - 4 * x[y, z]
            for y in range(1, h - 1)
            for z in range(1, w - 1)
            if valid[y, z] and valid[y - 1, z] and valid[y + 1, z] and valid[y, z - 1] and valid[y, z + 1]
        ]
        slope = sum(np.mean(d**2) if len(d) else 0.0 for d in (across, down))
        sharpness.append(np.mean(np.square(laplacian)) / slope if laplacian and slope else 0.0)
    return {
        "entropy": np.mean(bits),
        "entropy_p10": np.percentile(bits, 10),
        "flat_fraction": np.mean(np.less(bits, 1)),
        "nodata_fraction": 1 - valid.mean(),
        "saturated_fraction": np.isin(bins, (0, 255)).all(axis=-1)[valid].mean(),
        "autocorrelation": np.mean(correlations) if correlations else 1.0,
        "sharpness": np.mean(sharpness),
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch", [8, 16, 100])
@pytest.mark.parametrize("shape", [(32, 32, 3), (37, 25, 1), (17, 33, 4), (5, 3, 2), (1, 1, 1), (2, 40, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_scores_are_what_their_definitions_say(shape, dtype, patch, masked):
    rng = np.random.default_rng(0)
    pixels = np.concatenate([texture(*shape)[:, :, i : i + 1] for i in range(shape[2])], axis=2).astype(dtype)
    pixels[: shape[0] // 2] //= 16  # some patches are nearly flat
    radiometry = IDENTITY
    if dtype != "uint8":
        pixels, radiometry = pixels * np.dtype(dtype).type(40) + 3, Radiometry(((0.0, 8000.0),))
    valid = rng.random(shape[:2]) > 0.4 if masked else None
    if masked:
        valid[0, 0] = True
        valid[:8, 8:16] = False
        pixels[~valid] = 0
    image = Image(pixels, valid)
    expected = plain(image, radiometry, patch)
    got = score(image, radiometry, patch)
    assert tuple(got) == SCORES
    for name in SCORES:
        assert got[name] == pytest.approx(expected[name], abs=2e-5, rel=2e-5), name


@pytest.mark.parametrize("value", [0, 9, 255])
def test_a_constant_image(value):
    assert of(np.full((64, 48, 3), value, np.uint8)) == {**CONSTANT, "saturated_fraction": float(value != 9)}


def test_a_constant_image_of_reals():
    """No float32 has the mean of many 0.1: the rounding must not look like noise."""
    got = of(np.full((64, 64, 3), 0.1, np.float32), radiometry=Radiometry(((0.0, 1.0),)))
    assert got["entropy"] == 0
    assert got["autocorrelation"] == 1
    assert got["sharpness"] == 0


def test_nothing_valid():
    got = of(texture(64, 64), np.zeros((64, 64), bool))
    assert got == {**CONSTANT, "nodata_fraction": 1.0}


def test_a_ramp_is_rich_globally_and_poor_in_patches():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))[..., None]
    assert of(ramp, patch=256)["entropy"] == pytest.approx(8)
    assert of(ramp, patch=16)["entropy"] == pytest.approx(4)


def test_blocks_are_rich_globally_and_empty_in_patches():
    blocks = np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(16, 16)
    image = blocks.repeat(16, axis=0).repeat(16, axis=1)[..., None]
    assert of(image, patch=256)["entropy"] == pytest.approx(8)
    assert of(image, patch=16)["entropy"] == 0
    assert of(image, patch=16)["flat_fraction"] == 1


def test_patches_count_from_half_of_their_pixels_on():
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 255, (32, 64, 1), dtype=np.uint8)
    pixels[:, 32:] = 7
    valid = np.ones((32, 64), bool)
    valid[:16, 32:] = False
    assert of(pixels, valid)["flat_fraction"] == 0.5
    valid[16, 32] = False
    assert of(pixels, valid)["flat_fraction"] == 0


def test_nodata_lowers_no_other_score():
    """Half of a tile missing is said by nodata_fraction alone: the rest is scored as if it were the image."""
    pixels = texture(64, 64)
    valid = np.arange(64) < 32
    half = of(np.where(valid[:, None, None], pixels, np.uint8(0)), np.broadcast_to(valid[:, None], (64, 64)))
    whole = of(pixels[:32])
    assert half.pop("nodata_fraction") == 0.5
    assert whole.pop("nodata_fraction") == 0
    assert half == pytest.approx(whole)


def test_extreme_nodata_values_do_not_swallow_the_signal():
    pixels = texture(32, 32).astype(np.float32)
    valid = np.ones((32, 32), bool)
    valid[:4] = False
    radiometry = Radiometry(((0.0, 256.0),))
    expected = of(np.where(valid[..., None], pixels, np.float32(0)), valid, radiometry=radiometry)
    hidden = np.where(valid[..., None], pixels, np.float32(-3.4e38))
    assert of(hidden, valid, radiometry=radiometry) == expected


def test_saturation_needs_every_band():
    pixels = np.full((10, 10, 2), 100, np.uint8)
    pixels[:2] = 255
    pixels[2, :, 0] = 0
    pixels[3] = 0
    assert of(pixels)["saturated_fraction"] == pytest.approx(0.3)


def test_noise_lowers_autocorrelation():
    rng = np.random.default_rng(0)
    clean = texture(64, 64).astype(float)
    noisy = [
        of(np.clip(clean + rng.normal(0, s, clean.shape), 0, 255).astype(np.uint8)) for s in (0, 5, 20, 60)
    ]
    values = [s["autocorrelation"] for s in noisy]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.8
    assert [s["sharpness"] for s in noisy] == sorted(s["sharpness"] for s in noisy)


def test_uniform_noise_has_the_highest_entropy_and_no_autocorrelation():
    noise = of(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    assert noise["entropy"] > of(texture(128, 128))["entropy"]
    assert abs(noise["autocorrelation"]) < 0.02
    assert noise["sharpness"] == pytest.approx(5, rel=0.05)  # weights: 4 * 4 + 4 of the Laplacian, 2 + 2


def test_blur_lowers_sharpness():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(float)
    values = []
    for _ in range(4):
        values.append(of(image.astype(np.uint8))["sharpness"])
        image = (image + np.roll(image, 1, 0) + np.roll(image, 1, 1) + np.roll(image, (1, 1), (0, 1))) / 4
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] / 2.5


def test_flattening_lowers_entropy():
    values = [of((texture(64, 64) // step) * np.uint8(step))["entropy"] for step in (1, 4, 16, 64)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 2


def test_a_batch_gives_every_image_the_scores_it_has_alone():
    """Shapes, dtypes, masks and scales mixed; exactly equal, so that batching never changes a selection."""
    rng = np.random.default_rng(0)
    images, radiometry = [], []
    for i in range(60):
        pixels = texture(*[(64, 64, 3), (40, 56, 3), (33, 64, 1)][i % 3], seed=i)
        if i % 5 == 4:
            pixels = pixels.astype(np.uint16) * 9
        images.append(Image(pixels, rng.random(pixels.shape[:2]) > 0.2 if i % 4 == 3 else None))
        radiometry.append(IDENTITY if i % 5 < 4 else Radiometry(((0.0, 2000.0 + i % 2),)))
    together = score_batch(images, radiometry, 16)
    assert together == [score(image, r, 16) for image, r in zip(images, radiometry, strict=True)]
    assert together[::-1] == score_batch(images[::-1], radiometry[::-1], 16)
    assert score_batch([], []) == []


class TestContentHash:
    image = Image(texture())

    def test_equal_content_has_an_equal_hash(self):
        assert content_hash(self.image) == content_hash(Image(texture().copy(order="F")))
        assert content_hash(self.image) == content_hash(Image(texture(), np.ones((40, 48), bool)))
        assert len(content_hash(self.image)) == 32

    def test_it_never_changes(self):
        """Stored in run folders and used to order images."""
        assert (
            content_hash(Image(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)))
            == "83a3def77bb8d77b763304f711af5630"
        )

    @pytest.mark.parametrize(
        "other",
        [
            Image(texture()[:, ::-1]),
            Image(texture().reshape(48, 40, 3)),
            Image(texture().view(np.uint8).astype(np.uint16)),
            Image(texture(), texture()[..., 0] > 5),
            Image(texture(), texture()[..., 0] > 9),
        ],
    )
    def test_other_content_has_another(self, other):
        assert content_hash(other) != content_hash(self.image)

    def test_masks_count(self):
        first, second = (content_hash(Image(texture(), texture()[..., 0] > t)) for t in (5, 9))
        assert first != second
