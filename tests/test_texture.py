"""The texture kernel against its definition, on every instruction set, and its boundary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from image_files import texture as picture
from rsprune import _C, reference


def measured(images, valid=None):
    autocorrelation, sharpness = np.full((2, len(images)), -7, np.float32)
    _C.texture(images, valid, autocorrelation, sharpness)
    return autocorrelation, sharpness


def compare(images, valid=None):
    for got, expected in zip(measured(images, valid), reference.texture(images, valid), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (33, 47, 1), (16, 100, 4), (17, 5, 2), (3, 3, 13), (2, 40, 3), (1, 9, 1)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_equals_the_definition(isa, dtype, shape, masked):
    rng = np.random.default_rng(0)
    images = np.stack([picture(*shape[:2], shape[2], seed) for seed in range(3)]).astype(dtype)
    images[1, : shape[0] // 2] = 9  # flat blocks
    if dtype != np.uint8:
        images = images * dtype(200) + dtype(1)
    valid = rng.random(images.shape[:3]) > 0.3 if masked else None
    if masked and shape[0] > 16:
        valid[2, :16, :16] = rng.random(valid[2, :16, :16].shape) > 0.6  # a block with too few pixels
    compare(images, valid)


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)),
    st.sampled_from([np.uint8, np.uint16]),
    st.booleans(),
    st.data(),
)
def test_equals_the_definition_for_any_pixels(shape, dtype, masked, data):
    images = data.draw(hnp.arrays(dtype, shape))
    compare(images, data.draw(hnp.arrays(bool, shape[:3])) if masked else None)


def test_extremes_are_exact(isa):
    """A checkerboard of 0 and 255 has the largest sums there are; each is an integer below 2^24."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, ..., None].repeat(3, axis=-1)
    autocorrelation, sharpness = measured(board)
    assert autocorrelation[0] == -1
    assert sharpness[0] == (4 * 255) ** 2 / (2 * 255**2)


def test_all_valid_is_no_mask(isa):
    images = picture(70, 50)[None]
    np.testing.assert_array_equal(measured(images), measured(images, np.ones((1, 70, 50), bool)))


def test_what_lies_under_the_mask_does_not_count(isa):
    valid = np.random.default_rng(0).random((1, 40, 48)) > 0.2
    images = picture()[None].astype(np.float32)
    hidden = np.where(valid[..., None], images, np.float32(-3.4e38))
    np.testing.assert_array_equal(measured(images, valid), measured(hidden, valid))


def test_constant_and_empty_images():
    np.testing.assert_array_equal(measured(np.full((2, 20, 20, 3), 0.1, np.float32)), [[1, 1], [0, 0]])
    np.testing.assert_array_equal(measured(picture()[None], np.zeros((1, 40, 48), bool)), [[1], [0]])
    for shape in ((0, 4, 4, 1), (2, 0, 4, 1), (2, 4, 0, 1), (2, 4, 4, 0)):
        autocorrelation, sharpness = measured(np.zeros(shape, np.uint8))
        assert (autocorrelation == 1).all()
        assert (sharpness == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_saturated_pixels(isa, bands, masked):
    rng = np.random.default_rng(bands)
    bins = rng.choice(np.array([0, 1, 254, 255], np.uint8), (3, 21, 33, bands), p=[0.4, 0.1, 0.1, 0.4])
    valid = rng.random(bins.shape[:3]) > 0.5 if masked else None
    counts = np.full(3, -1)
    _C.saturated(bins, valid, counts)
    expected = np.isin(bins, (0, 255)).all(axis=-1) & (True if valid is None else valid)
    np.testing.assert_array_equal(counts, expected.sum(axis=(1, 2)))


@pytest.mark.parametrize(
    ("images", "valid", "out", "message"),
    [
        (
            np.zeros((4, 4, 1), np.uint8),
            None,
            np.float32,
            r"images must have shape \[N, H, W, C\], got \[4, 4, 1\]",
        ),
        (
            np.zeros((1, 4, 4, 1), np.int16),
            None,
            np.float32,
            "images must be uint8, uint16 or float32, got int16",
        ),
        (np.zeros((1, 4, 4, 1)), None, np.float32, "images must be uint8, uint16 or float32, got float64"),
        (
            np.zeros((1, 4, 4, 1), np.uint8),
            np.ones((1, 4, 5), bool),
            np.float32,
            r"valid must have shape \[1, 4, 4\]",
        ),
        (
            np.zeros((1, 4, 4, 1), np.uint8),
            np.ones((1, 4, 4)),
            np.float32,
            "valid must be bool or uint8, got float64",
        ),
        (np.zeros((1, 4, 4, 1), np.uint8), None, np.float64, "autocorrelation must be float32, got float64"),
    ],
)
def test_errors_name_the_argument(images, valid, out, message):
    first, second = np.zeros((2, 1), out)
    with pytest.raises(ValueError, match=message):
        _C.texture(images, valid, first, second)
    assert not first.any()
