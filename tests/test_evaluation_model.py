"""Held-out denoising loss: what it is, that it is paired, and `rsprune evaluate MODEL`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import collection

if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "accelerate")):
    pytest.skip("the extra [train] is not installed", allow_module_level=True)

import torch

import training_case
from rsprune.encoders.packaged import sha256
from rsprune.errors import ConfigError
from rsprune.evaluation.denoising import Denoiser, denoising_loss
from rsprune.training.config import TrainConfig
from rsprune.training.objective import make_objective
from rsprune.training.train import train


class Network(torch.nn.Module):
    """Answers with `answer(inputs, time)`, and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.answer, self.asked = answer, []

    def forward(self, inputs, timestep, class_labels=None):
        self.asked.append((inputs.clone(), timestep.clone(), class_labels))
        return type("Output", (), {"sample": self.answer(inputs, timestep)})


def denoiser(
    answer=lambda x, t: torch.zeros_like(x), *, unshuffle=1, objective="flow", **changes
) -> Denoiser:
    settings = TrainConfig(data="", objective=objective, timestep_sampling="uniform", **changes)
    return Denoiser(Network(answer), make_objective(settings), 0, unshuffle, 8, 3)


def images(n=6, value=None) -> np.ndarray:
    if value is not None:
        return np.full((n, 8, 8, 3), value, np.uint8)
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)


def test_nothing_learnt_of_white_images_costs_one_and_one():
    """The target is noise - image; white is 1 everywhere, so the mean square is 1 + 1."""
    losses = denoising_loss(denoiser(), images(400, value=255))
    assert losses.shape == (400, 5)
    np.testing.assert_allclose(losses.mean(axis=0), 2, atol=0.03)


def test_a_network_that_knows_the_image_costs_nothing():
    """Of a black image x = (1 - t) * -1 + t * noise, so noise - image = (x + 1) / t."""
    model = denoiser(lambda x, t: (x + 1) / (t / 1000).view(-1, 1, 1, 1))
    losses = denoising_loss(model, images(20, value=0))
    assert losses.max() < 1e-9


def test_times_are_those_that_are_asked_for():
    model = denoiser()
    denoising_loss(model, images(3), times=(0.2, 0.7))
    assert [t.tolist() for _, t, _ in model.network.asked] == [
        pytest.approx([200.0] * 3), pytest.approx([700.0] * 3),
    ]  # fmt: skip


def test_ddpm_takes_the_last_of_its_steps_for_all_noise():
    model = denoiser(objective="ddpm", prediction_type="epsilon")
    denoising_loss(model, images(3), times=(0.9, 1.0))
    assert [t.tolist() for _, t, _ in model.network.asked] == [[900] * 3, [999] * 3]


def test_noise_belongs_to_the_image_and_the_seed_not_to_the_batch():
    whole = denoising_loss(denoiser(), images(7))
    parts = denoising_loss(denoiser(), images(7), batch_size=3)
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole[:4], denoising_loss(denoiser(), images(7)[:4]))
    other = denoising_loss(denoiser(), images(7), seed=1)
    assert (other != whole).all()
    model = denoiser()
    denoising_loss(model, images(2, value=128), times=(0.5, 0.5))
    first, second = (x for x, _, _ in model.network.asked)
    assert (first[0] != first[1]).all()  # images have noise of their own
    assert (first != second).all()  # and so have times


def test_folded_pixels_cost_the_same():
    """A network that does nothing answers alike; only the order of the values changes."""
    np.testing.assert_allclose(
        denoising_loss(denoiser(unshuffle=2), images()), denoising_loss(denoiser(), images()), rtol=1e-6
    )


def test_ddpm_asks_for_what_it_was_trained_on():
    """The noise alone: of a network that does nothing the mean square of noise is 1, whatever the image."""
    losses = denoising_loss(denoiser(objective="ddpm"), images(300, value=255))
    np.testing.assert_allclose(losses.mean(axis=0), 1, atol=0.03)
    losses = denoising_loss(denoiser(objective="ddpm", prediction_type="sample"), images(10, value=255))
    np.testing.assert_allclose(losses, 1)


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="takes images of 8 x 8 pixels and 3 bands, not 16 x 16 x 3"):
        denoising_loss(denoiser(), np.zeros((2, 16, 16, 3), np.uint8))


# A trained model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of 16 pixels trained for a few steps, and held-out tiles in class folders."""
    folder = tmp_path_factory.mktemp("model")
    data = training_case.tiles(folder / "train", 12, side=16)
    settings = training_case.settings(data, pixel_unshuffle=2, max_train_steps=6, learning_rate=1e-3)
    train(settings, folder / "model", device="cpu")
    for i, tile in enumerate(collection.tiles()[12:]):
        pixels = np.asarray(Image.open(tile).convert("RGB"))[-16:, -16:]
        collection.save(folder / "held-out" / tile.parent.name / f"{i:02d}.png", pixels)
    return folder


def test_the_loss_of_a_saved_model_is_that_of_its_averaged_weights(trained):
    from safetensors.torch import load_file

    model = Denoiser.load(trained / "model")
    assert (model.resolution, model.bands, model.unshuffle, model.labels) == (16, 3, 2, 0)
    averaged = load_file(trained / "model" / "checkpoint-6" / "ema.safetensors")
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, averaged[name], rtol=0, atol=0)


def test_evaluate_measures_a_model(rsprune, trained, tmp_path):
    out = tmp_path / "result.json"
    code, said, _ = rsprune(
        "evaluate", trained / "model", "--reference", trained / "held-out", "-o", out, "--json"
    )
    assert code == 0
    facts = json.loads(out.read_text())
    assert facts == json.loads(said)
    files = sorted(Path(trained / "held-out").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(f)) for f in files])
    expected = denoising_loss(Denoiser.load(trained / "model"), pixels)
    assert facts["loss"]["natural"]["mean"] == pytest.approx(expected.mean())
    np.testing.assert_allclose(facts["loss"]["natural"]["by_time"], expected.mean(axis=0))
    names = np.array([f.parent.name for f in files])
    by_class = {name: expected[names == name].mean() for name in set(names)}
    assert facts["loss"]["balanced"]["mean"] == pytest.approx(np.mean(list(by_class.values())))
    assert {name: f["mean"] for name, f in facts["loss"]["by_folder"].items()} == pytest.approx(by_class)
    assert facts["reference"]["n"] == len(files)
    # Of the averaged weights, not of a checkpoint's, which lie in a folder beside them.
    assert facts["model"]["weights_sha256"] == sha256(next((trained / "model/unet").glob("*.safetensors")))
    assert "scores" not in facts


def test_evaluate_says_the_loss_in_a_table(rsprune, trained):
    code, said, _ = rsprune("evaluate", trained / "model", "--reference", trained / "held-out")
    assert code == 0
    assert "held-out denoising loss, 12 reference images" in said
    assert "folders" in said


def test_samples_are_drawn_when_they_are_asked_for(rsprune, trained):
    code, said, _ = rsprune(
        "evaluate", trained / "model", "--reference", trained / "held-out", "--draw", 8, "--draw-steps", 2,
        "--extractor", "onnx:none.onnx", "--k", 2,
    )  # fmt: skip
    assert code == 2  # the extractor is asked for, and is not there
    code, _, error = rsprune(
        "evaluate", trained / "held-out", "--reference", trained / "held-out", "--draw", 8
    )
    assert code == 2
    assert "is no model, so there is nothing to --draw" in error


def test_a_reference_of_several_sizes_is_refused(rsprune, trained, tmp_path):
    collection.save(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))
    collection.save(tmp_path / "b.png", np.zeros((20, 16, 3), np.uint8))
    code, _, error = rsprune("evaluate", trained / "model", "--reference", tmp_path)
    assert code == 2
    assert "give images of one size, or --tile" in error


def test_what_is_for_images_is_refused_where_none_are_drawn(trained, rsprune, tmp_path):
    """Where it is given as an option; a settings file may hold it for other commands."""
    line = ("evaluate", trained / "model", "--reference", trained / "held-out")
    code, _, error = rsprune(*line, "--k", "7")
    assert code == 2
    assert "--k is for images, and of a model only the held-out loss is measured" in error
    code, _, error = rsprune(*line, "--training", trained / "train")
    assert code == 2
    assert "memorisation is of drawn images" in error
    (tmp_path / "c.toml").write_text("[evaluate]\nk = 7\n")
    assert rsprune(*line, "--config", tmp_path / "c.toml")[0] == 0
