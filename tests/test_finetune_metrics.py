"""What fine-tuned models are measured with, against other implementations."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

import collection
from rsprune.errors import ConfigError
from rsprune.evaluation import lpips
from rsprune.evaluation.extractors.perceptual import MEAN, STD, alexnet
from rsprune.evaluation.images import psnr, squared_error, ssim
from rsprune.finetuning.masks import cut
from rsprune.finetuning.segmenter import confusion, mean_iou, predicted, taught
from rsprune.sources.base import Window

needs_skimage = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed"
)
needs_torchmetrics = pytest.mark.skipif(
    importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed"
)


@pytest.fixture(scope="module")
def pairs():
    """Real tiles, and the same with noise."""
    truth = np.stack([np.asarray(Image.open(p).convert("RGB")) for p in collection.tiles()[:4]])
    noise = np.random.default_rng(0).normal(0, 15, truth.shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8), truth


@needs_skimage
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_psnr_and_ssim_are_those_of_scikit_image(pairs, dtype):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    factor = np.iinfo(dtype).max // 255
    noisy, truth = (x.astype(dtype) * factor for x in pairs)
    top = int(np.iinfo(dtype).max)
    found = psnr(squared_error(noisy, truth)), ssim(noisy, truth)
    for i, (a, b) in enumerate(zip(noisy, truth, strict=True)):
        assert found[0][i] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=top), abs=1e-9)
        expected = structural_similarity(
            b,
            a,
            data_range=top,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert found[1][i] == pytest.approx(expected, abs=1e-6)


def test_equal_images_are_infinitely_near_and_wholly_similar(pairs):
    _, truth = pairs
    assert np.isposinf(psnr(squared_error(truth, truth))).all()
    np.testing.assert_allclose(ssim(truth, truth), 1)
    with pytest.raises(ValueError, match="SSIM needs 11 pixels a side"):
        ssim(truth[:, :10], truth[:, :10])
    with pytest.raises(ValueError, match="images must be like the true ones"):
        squared_error(truth[:2], truth)


@needs_torchmetrics
def test_lpips_is_that_of_torchmetrics(pairs, monkeypatch):
    # The network's weights are random, as the published ones are no part of the tests; the heads are the published
    # ones, which torchmetrics ships.
    import torchmetrics.functional.image.lpips as theirs

    torch.manual_seed(0)
    network = alexnet().eval().requires_grad_(False)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: network)
    expected = theirs._LPIPS(net="alex", pretrained=True, eval_mode=True)
    ours = object.__new__(lpips.Lpips)
    ours.network, ours.device = network, "cpu"
    ours.heads = [getattr(expected, f"lin{i}").model[-1].weight.detach().reshape(-1) for i in range(5)]
    ours._mean, ours._std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    noisy, truth = pairs
    wanted = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in pairs]
    with torch.no_grad():
        values = expected(*wanted).reshape(-1).numpy()
    np.testing.assert_allclose(ours(noisy, truth), values, rtol=1e-4)
    assert (ours(noisy, truth) > 0).all()
    assert not ours(truth, truth).any()
    named = {f"head{i}": head.numpy() for i, head in enumerate(ours.heads)}
    assert lpips.digest(named) == lpips.HEADS
    with pytest.raises(ConfigError, match="LPIPS needs 32 pixels a side and the images have 16"):
        ours(noisy[:, :16, :16], truth[:, :16, :16])


def test_lpips_without_weights_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RSPRUNE_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"linear heads of LPIPS are not there.* or --no-lpips"):
        lpips.load_heads()
    path = tmp_path / f"lpips-alexnet-heads-{lpips.WEIGHTS['alexnet'].sha256[:12]}.safetensors"
    path.write_bytes(b"half")
    with pytest.raises(ConfigError, match="are not the published ones"):
        lpips.load_heads()


def test_mean_iou_by_hand():
    truth = np.array([[0, 0, 0, 1]])
    found = np.array([[0, 0, 1, 1]])
    counts = confusion(found, truth, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert mean_iou(counts) == pytest.approx((2 / 3 + 1 / 2) / 2)  # class 2 does not occur


def test_a_segmenter_learns_what_pixels_show():
    rng = np.random.default_rng(0)
    masks = np.zeros((32, 16, 16), np.uint8)
    masks[np.arange(16), :8] = 1
    images = (masks[..., None] * 120 + rng.integers(0, 80, (32, 16, 16, 3))).astype(np.uint8)
    model = taught(images[::2], masks[::2], 2, steps=25, seed=0)
    found = predicted(model, images[1::2])
    assert mean_iou(confusion(found, masks[1::2], 2)) > 0.9
    again = taught(images[::2], masks[::2], 2, steps=25, seed=0)
    np.testing.assert_array_equal(found, predicted(again, images[1::2]))


def test_a_window_is_cut_from_a_mask_of_another_resolution():
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    np.testing.assert_array_equal(cut(mask, Window(1, 2, 2, 1), (4, 4)), [[9, 10]])
    np.testing.assert_array_equal(cut(mask, Window(2, 4, 4, 2), (8, 8)), [[9, 9, 10, 10]] * 2)
    np.testing.assert_array_equal(cut(mask, Window(0, 0, 2, 2), (2, 2)), [[5, 7], [13, 15]])
