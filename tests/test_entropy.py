import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rsprune import patch_entropy, reference

TOLERANCE = 1e-4  # bits


def entropy(images, device, *args, valid=None, **kwargs):
    to = torch.from_numpy
    valid = None if valid is None else to(valid).to(device)
    return patch_entropy(to(images).to(device), *args, valid=valid, **kwargs).cpu().numpy()


def assert_close(got, want):
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def textures(rng, shape, dtype=np.uint8):
    """From constant to noise along the last axis of patches: counts from 1 to all of a patch."""
    spread = rng.choice([1, 2, 5, 40, 256], shape)
    return (rng.integers(0, 2**16, shape) % spread * (1 if dtype == np.uint8 else 200)).astype(dtype)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 70, 65), (2, 33, 47, 1), (2, 64, 50, 3), (1, 40, 40, 5)])
@pytest.mark.parametrize("patch", [1, 7, 8, 16, 32, 64, 300])
def test_equals_reference(device, isa, shape, patch):
    images = textures(np.random.default_rng(0), shape)
    assert_close(entropy(images, device, patch), reference.patch_entropy(images, patch))


@pytest.mark.parametrize("patch", [16, 31, 32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_equals_reference_on_smooth_images(device, isa, patch, channels):
    y, x, c = np.mgrid[:96, :100, :channels]
    images = ((np.sin(x / 17 + c) + np.cos(y / 11)) * 60 + 128).astype(np.uint8)[None]
    assert_close(entropy(images, device, patch), reference.patch_entropy(images, patch))


@pytest.mark.parametrize("patch", [3, 16, 32, 64, 256, 400])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_constant_patch_is_exactly_zero(device, isa, patch, channels):
    images = np.full((1, 400, 400, *channels), 201, np.uint8)
    got = entropy(images, device, patch)
    assert (got == 0).all()
    assert not np.signbit(got).any()


@pytest.mark.parametrize("patch", [16, 32, 256])
def test_known_values(device, isa, patch):
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (1, 256, 256)).copy()
    assert_close(entropy(ramp, device, patch), np.full((1, 256 // patch, 256 // patch), np.log2(patch)))
    halves = np.tile(np.array([0, 255], np.uint8), (1, 256, 128))
    assert (entropy(halves, device, patch) == 1).all()


def test_large_counts_beyond_any_table(device, isa):
    image = np.zeros((1, 600, 600), np.uint8)
    image[0, :30] = 7
    assert_close(entropy(image, device, 600), reference.patch_entropy(image, 600))
    assert (entropy(np.zeros_like(image), device, 600) == 0).all()


def test_all_instruction_sets_give_the_same_bits(monkeypatch):
    from rsprune import _C

    images = textures(np.random.default_rng(1), (2, 100, 90, 3))
    best = patch_entropy(images, 16)
    monkeypatch.setenv("RSPRUNE_ISA", "portable")
    assert _C.isa() == "portable"
    np.testing.assert_array_equal(best, patch_entropy(images, 16))


@pytest.mark.parametrize("scale", [(0, 10000), (-50.5, 3000.25), [(0, 1000), (200, 9000), (5, 6)]])
def test_uint16_with_scale(device, isa, scale):
    images = np.random.default_rng(2).integers(0, 12000, (2, 40, 33, 3)).astype(np.uint16)
    assert_close(entropy(images, device, 16, scale=scale), reference.patch_entropy(images, 16, scale=scale))


def test_uint16_bins_by_hand(device):
    image = np.array([[[99, 100, 149, 150], [199, 200, 300, 65535]]], np.uint16)
    # [100, 200): below goes to bin 0, 150 to bin 128, 199 to 253, from 200 on to 255
    got = entropy(image, device, 4, scale=(100, 200))
    counts = np.array([2, 1, 1, 1, 3]) / 8
    assert_close(got, -(counts * np.log2(counts)).sum().reshape(1, 1, 1))


def test_uint8_with_scale(device, isa):
    images = np.random.default_rng(3).integers(0, 256, (1, 20, 20, 2), np.uint8)
    assert_close(
        entropy(images, device, 8, scale=(50, 60)), reference.patch_entropy(images, 8, scale=(50, 60))
    )
    np.testing.assert_array_equal(entropy(images, device, 8, scale=(0, 256)), entropy(images, device, 8))


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_valid_mask(device, isa, dtype):
    rng = np.random.default_rng(4)
    images = textures(rng, (2, 40, 45, 3))
    valid = rng.random((2, 40, 45)) < 0.5
    valid[0, :16, :16] = False
    valid[1, :16, :16] = True
    mask = valid if dtype is bool else valid.astype(np.uint8) * 255
    got = entropy(images, device, 16, valid=mask)
    assert_close(got, reference.patch_entropy(images, 16, valid=valid))
    assert np.isnan(got[0, 0, 0]).all()
    assert np.isnan(got).sum() == 3


def test_all_valid_equals_no_mask(device, isa):
    images = textures(np.random.default_rng(5), (1, 50, 50))
    mask = np.ones((1, 50, 50), bool)
    np.testing.assert_array_equal(entropy(images, device, 16, valid=mask), entropy(images, device, 16))


def test_masked_uint16(device, isa):
    rng = np.random.default_rng(6)
    images = rng.integers(0, 4000, (1, 30, 30, 2)).astype(np.uint16)
    valid = rng.random((1, 30, 30)) < 0.3
    want = reference.patch_entropy(images, 8, valid=valid, scale=(0, 4096))
    assert_close(entropy(images, device, 8, valid=valid, scale=(0, 4096)), want)


@pytest.mark.parametrize(
    ("shape", "result"),
    [
        ((0, 8, 8), (0, 2, 2)),
        ((0, 8, 8, 3), (0, 2, 2, 3)),
        ((1, 0, 8), (1, 0, 2)),
        ((2, 8, 0), (2, 2, 0)),
        ((1, 8, 8, 0), (1, 2, 2, 0)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_small_and_empty(device, shape, result):
    assert entropy(np.zeros(shape, np.uint8), device, 4).shape == result


def test_strided_read_only_and_foreign_byte_order():
    images = textures(np.random.default_rng(7), (4, 40, 40, 3))
    want = patch_entropy(np.ascontiguousarray(images[::2, ::-1, 3:, 1]), 16)
    np.testing.assert_array_equal(patch_entropy(images[::2, ::-1, 3:, 1], 16), want)
    frozen = images.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(patch_entropy(frozen, 16), patch_entropy(images, 16))
    wide = images.astype(np.uint16)
    np.testing.assert_array_equal(
        patch_entropy(wide.astype(">u2"), 16, scale=(0, 300)), patch_entropy(wide, 16, scale=(0, 300))
    )


def test_library_in_library_out():
    images = textures(np.random.default_rng(8), (1, 32, 32))
    tensor = patch_entropy(torch.from_numpy(images), 16)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), patch_entropy(images, 16))
    out = np.full((1, 2, 2), -1, np.float32)
    assert patch_entropy(images, 16, out=out) is out
    np.testing.assert_array_equal(out, tensor.numpy())


def test_memory_map(tmp_path):
    images = textures(np.random.default_rng(9), (2, 32, 32))
    images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    np.testing.assert_array_equal(patch_entropy(mapped, 16), patch_entropy(images, 16))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_and_content(device, isa, data):
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=4, min_side=0, max_side=20))
    images = data.draw(hnp.arrays(dtype, shape))
    patch = data.draw(st.integers(3, 25))
    valid = data.draw(st.one_of(st.none(), hnp.arrays(bool, shape[:3])))
    scale = (0, 65536) if dtype == np.uint16 else None
    got = entropy(images, device, patch, valid=valid, scale=scale)
    assert_close(got, reference.patch_entropy(images, patch, valid=valid, scale=scale))
