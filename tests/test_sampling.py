"""Drawing images from a trained model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image

from rsprune.cli import main
from rsprune.errors import ConfigError
from rsprune.training.config import SampleConfig
from rsprune.training.sample import draw, load_pipeline, make_pipeline, write_samples
from rsprune.training.train import train
from training_case import settings, tiles


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling")
    data = tiles(folder / "data")
    train(settings(data, pixel_unshuffle=2, condition="scene"), folder / "scenes", device="cpu")
    train(settings(data, objective="ddpm"), folder / "ddpm", device="cpu")
    return folder


def drawn(pipe, **wish) -> np.ndarray:
    return np.concatenate(list(draw(pipe, SampleConfig(steps=4, **wish))))


class Known(ModelMixin, ConfigMixin):
    """Predicts what is known of images of independent normal values, but for an error of 2 %."""

    @register_to_config
    def __init__(
        self, kind: str = "epsilon", in_channels: int = 3, out_channels: int = 3, sample_size: int = 16
    ):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.kept = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
        self.error = torch.Generator().manual_seed(0)

    def forward(self, sample, timestep):
        image, kept = sample[:, : self.config.out_channels], self.kept[timestep[0]]
        known = {
            "epsilon": (1 - kept).sqrt() * image,
            "sample": kept.sqrt() * image,
            "v_prediction": 0 * image,
        }
        error = 0.02 * torch.randn(image.shape, generator=self.error)
        return SimpleNamespace(sample=known[self.config.kind] + error)


class Eighth:
    """An autoencoder whose images are an eighth of its latents."""

    config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0, out_channels=3)

    def decode(self, code):
        return SimpleNamespace(sample=code / 8)


def drawn_by_ddpm(part: str, kind: str, steps: int) -> torch.Tensor:
    """Values [8, 3, 16, 16] that a network which knows them draws, as latents or as a residual."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind)
    given = None if part == "latents" else torch.zeros(8, 3, 16, 16)
    network = Known(kind, in_channels=3 if part == "latents" else 6)
    extra = {"vae": Eighth()} if part == "latents" else {"residual": 0.125}
    pipe = make_pipeline("unet", network, scheduler, labels=[], pixel_unshuffle=1, **extra)
    wish = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": steps, "output_type": "pt"}
    return 8 * (2 * pipe(batch_size=8, given=given, **wish).images - 1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("part", ["latents", "residual"])
def test_ddpm_draws_values_that_images_cannot_have(part, kind):
    """Of unit deviation, beyond -1 to 1, and not blown up by the first step, at which there is no image left."""
    values = drawn_by_ddpm(part, kind, 25)
    assert values.std().item() == pytest.approx(1, abs=0.1)
    assert values.abs().max() > 2.5


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_one_step_of_ddpm_is_the_expected_image(kind):
    """Of normal values around 0 that is 0 everywhere, but for the error."""
    assert drawn_by_ddpm("residual", kind, 1).abs().max() < 0.2


@pytest.mark.parametrize("name", ["scenes", "ddpm"])
def test_an_image_does_not_depend_on_those_beside_it(models, name):
    pipe = load_pipeline(models / name)
    whole = drawn(pipe, n=7)
    assert whole.shape == (7, 16, 16, 3)
    for size in (1, 3):
        np.testing.assert_allclose(drawn(pipe, n=5, batch_size=size), whole[:5], atol=1)  # of 255: rounding
    assert (whole[0] != whole[1]).any()
    assert (drawn(pipe, n=1, seed=1)[0] != whole[0]).any()


def test_guidance_is_the_stated_mixture(models):
    pipe = load_pipeline(models / "scenes")
    x = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    water, nothing = (
        torch.full((2,), i) for i in (pipe.config.labels.index("water"), len(pipe.config.labels))
    )
    with torch.no_grad():
        sigma = torch.tensor([1000.0]).expand(2)
        given, free = (pipe.unet(x, sigma, class_labels=label).sample for label in (water, nothing))
    expected = x - (free + 3 * (given - free))  # one Euler step from sigma 1 to 0
    image = pipe(
        class_labels=["water"] * 2, guidance_scale=3.0, num_inference_steps=1, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    expected = torch.nn.functional.pixel_shuffle(expected, 2) / 2 + 0.5
    torch.testing.assert_close(image, expected.clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_scenes_differ_and_wrong_ones_are_named(models):
    pipe = load_pipeline(models / "scenes")
    assert (drawn(pipe, n=2, scene="water") != drawn(pipe, n=2, scene="crops")).any()
    with pytest.raises(ConfigError, match="no scene 'mars': it knows built, coast, crops, water, woody"):
        drawn(pipe, n=1, scene="mars")
    with pytest.raises(ConfigError, match="trained with --condition none"):
        drawn(load_pipeline(models / "ddpm"), n=1, scene="water")
    with pytest.raises(ConfigError, match="give one with --scene"):
        drawn(pipe, n=1, guidance=2)


def test_the_command_writes_png_and_npy(models, tmp_path):
    common = ["--n", "3", "--steps", "4", "--device", "cpu", "--batch-size", "2"]
    for extra in ([], ["--format", "npy"]):
        with pytest.raises(SystemExit) as done:
            main(["sample", str(models / "scenes"), "-o", str(tmp_path / "out"), *common, *extra])
        assert not done.value.code
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png", "samples.npy"]
    array = np.load(tmp_path / "out" / "samples.npy")
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"{i:06d}.png")), array[i])


def test_where_no_folder_can_be_one_batch_is_drawn(models, tmp_path, monkeypatch):
    pipe, batches = load_pipeline(models / "ddpm"), iter([np.zeros((1, 8, 8, 3), np.uint8)] * 2)
    monkeypatch.setattr("rsprune.training.sample.draw", lambda *_: batches)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        write_samples(pipe, SampleConfig(n=2, batch_size=1), tmp_path / "file")
    assert len(list(batches)) == 1


def test_a_folder_without_a_model(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["sample", str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert done.value.code == 2
    assert "holds no trained model: make one with 'rsprune train'" in capsys.readouterr().err


def test_code_in_a_model_folder_is_not_run(models, tmp_path):
    import shutil

    folder = shutil.copytree(models / "scenes", tmp_path / "model")
    (folder / "pipeline.py").write_text("raise SystemExit('was run')")
    assert len(drawn(load_pipeline(folder), n=1)) == 1
