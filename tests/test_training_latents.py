"""Training on the latents of an autoencoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from rsprune.errors import ConfigError
from rsprune.evaluation.denoising import Denoiser, denoising_loss
from rsprune.training import checkpoint, latents
from rsprune.training.batches import Batches
from rsprune.training.config import SampleConfig
from rsprune.training.pool import load
from rsprune.training.sample import draw, load_pipeline
from rsprune.training.sampler import Sampler
from rsprune.training.train import train
from training_case import settings, tiles

CPU = torch.device("cpu")


def autoencoder(folder, *, bands: int = 3, seed: int = 0, scaling_factor: float = 0.5) -> str:
    """Writes one of 6,000 random weights, for sides divided by 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            in_channels=bands, out_channels=bands, latent_channels=4, block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2, scaling_factor=scaling_factor, shift_factor=0.25,
        )  # fmt: skip
    vae.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiles(tmp_path_factory.mktemp("latents") / "data", 10)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return autoencoder(tmp_path_factory.mktemp("vae") / "vae")


def encoded(wish, *, resolution: int = 16) -> tuple:
    pool = load(wish)
    network = latents.load_vae(wish.vae, bands=3, resolution=resolution)
    return pool, network, latents.encode(pool, network, wish, resolution, device=CPU)


def test_latents_are_those_of_the_autoencoder_scaled(data, vae):
    wish = settings(data, vae=vae, fit="resize")
    pool, network, codes = encoded(wish)
    assert codes.shape == (1, 10, 8, 8, 4)
    image = torch.from_numpy(pool.pixels[3:4].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    spread = network.encode(image).latent_dist
    code = torch.from_numpy(codes[0, 3].transpose(2, 0, 1))[None] / 0.5 + 0.25
    drawn = (code - spread.mean) / spread.std
    assert 0.8 < drawn.std() < 1.2
    assert abs(drawn.mean()) < 0.2


def test_an_image_has_the_same_latent_among_others(data, vae, tmp_path):
    (tmp_path / "kept.txt").write_text("\n".join(load(settings(data)).ids[4:7]))
    whole = encoded(settings(data, vae=vae, fit="resize"))[2]
    part = encoded(settings(data, vae=vae, fit="resize", kept=str(tmp_path / "kept.txt")))[2]
    np.testing.assert_allclose(part[0], whole[0, 4:7], atol=1e-5)
    other = encoded(settings(data, vae=vae, fit="resize", seed=1))[2]
    assert np.abs(other - whole).max() > 0.1


def test_mirrored_images_are_encoded_and_not_their_latents_mirrored(data, vae):
    wish = settings(data, vae=vae, fit="resize", random_flip=True)
    pool, network, codes = encoded(wish)
    assert len(codes) == 4
    sampler = Sampler(pool, seed=0, resolution=16, random_flip=True)
    small = Sampler(latents_pool(pool, codes), seed=0, resolution=8, random_flip=True)
    batches = Batches(small, latents_pool(pool, codes), CPU, wish, latents=codes)
    positions = np.arange(12)
    drawn, got = sampler.batch(positions), batches.at(small.batch(positions)).image
    for i in range(12):
        pixels = pool.pixels[drawn.rows[i]][drawn.ys[i]][:, drawn.xs[i]]
        image = torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1).float()[None]
        spread = network.encode(image).latent_dist
        noise = (got[i] / 0.5 + 0.25 - spread.mean[0]) / spread.std[0]
        assert abs(noise.mean()) < 0.3
        assert 0.7 < noise.std() < 1.3


def latents_pool(pool, codes):
    from dataclasses import replace

    return replace(pool, pixels=codes[0])


def test_training_continues_exactly_and_draws_through_the_decoder(data, vae, tmp_path):
    wish = {
        "vae": vae,
        "fit": "resize",
        "random_flip": True,
        "lr_scheduler": "constant",
        "checkpointing_steps": 2,
    }
    train(settings(data, max_train_steps=4, validation_images=2, **wish), tmp_path / "a", device="cpu")
    train(settings(data, max_train_steps=2, **wish), tmp_path / "b", device="cpu")
    state = train(settings(data, max_train_steps=4, **wish), tmp_path / "b", device="cpu")
    a, b = (checkpoint.load(tmp_path / name / "checkpoint-4")[0]["ema"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert state["resolution"] == 16
    images = np.concatenate(list(draw(load_pipeline(tmp_path / "a"), SampleConfig(n=3, steps=2))))
    assert images.shape == (3, 16, 16, 3)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "a", trust_remote_code=True)
    seeds = [torch.Generator().manual_seed(5)]
    own = pipe(num_inference_steps=2, generator=seeds, output_type="pt").images
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():  # two Euler steps by hand, at the times that diffusers takes
        for now, then in ((1000.0, 1.0), (1.0, 0.0)):
            x = x - (now - then) / 1000 * pipe.unet(x, torch.tensor([now])).sample
        expected = pipe.vae.decode(x / 0.5 + 0.25).sample / 2 + 0.5
    torch.testing.assert_close(own, expected.clamp(0, 1), rtol=0, atol=1e-3)


def test_the_held_out_loss_is_that_of_latents(data, vae, tmp_path):
    """By hand for one image and time: noise is added to the mean of its latents, scaled."""
    train(settings(data, vae=vae, fit="resize", max_train_steps=2), tmp_path / "m", device="cpu")
    model = Denoiser.load(tmp_path / "m")
    assert (model.resolution, model.bands) == (16, 3)
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    found = denoising_loss(model, image, times=(0.25,))
    pixels = torch.from_numpy(image[1:].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    with torch.no_grad():
        code = (model.vae.encode(pixels).latent_dist.mean - 0.25) * 0.5
        noise = np.random.Generator(np.random.Philox(key=[0, 1])).standard_normal((1, 4, 8, 8), np.float32)
        noise = torch.from_numpy(noise)
        predicted = model.network(0.75 * code + 0.25 * noise, torch.tensor([250.0])).sample
    assert found[1, 0] == pytest.approx((predicted - (noise - code)).square().mean().item(), rel=1e-5)


def test_another_autoencoder_is_another_training(data, vae, tmp_path):
    train(settings(data, vae=vae, fit="resize", max_train_steps=1), tmp_path / "m", device="cpu")
    other = autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"another training \(data was"):
        train(settings(data, vae=other, fit="resize", max_train_steps=1), tmp_path / "m", device="cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vae": "/nowhere"}, "--vae /nowhere cannot be loaded: .*save_pretrained wrote"),
        ({}, "it cannot crop at random places: give --center-crop"),
        ({"center_crop": True, "resolution": 15}, "images of 15 pixels do not divide by 2"),
    ],
)
def test_what_does_not_fit_the_autoencoder(data, vae, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        train(settings(data, **{"vae": vae, **({"fit": "resize"} if "vae" in changes else {}), **changes}), tmp_path / "m", device="cpu")  # fmt: skip


def test_an_autoencoder_for_other_bands(data, tmp_path):
    wish = settings(data, vae=autoencoder(tmp_path / "vae", bands=13), fit="resize")
    with pytest.raises(ConfigError, match="is for 13 bands and the images have 3"):
        train(wish, tmp_path / "m", device="cpu")


def test_latents_take_the_place_of_folded_pixels(data, vae):
    with pytest.raises(ConfigError, match="--vae and --pixel-unshuffle exclude each other"):
        settings(data, vae=vae, pixel_unshuffle=2)
