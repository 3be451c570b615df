"""Fine-tuning as a whole: what it starts from, resuming, measuring, drawing, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import collection
import image_files
from rsprune import config
from rsprune.errors import ConfigError
from rsprune.evaluation.denoising import Denoiser
from rsprune.finetuning import foundation
from rsprune.finetuning.config import SemanticConfig, SuperResolutionConfig
from rsprune.finetuning.finetune import finetune, make_task, training_settings
from rsprune.finetuning.given import bicubic, lowered, stem, tensor_of
from rsprune.radiometry import Radiometry
from rsprune.run import Run
from rsprune.stages import Job, scan_images
from rsprune.training import checkpoint, ema, models
from rsprune.training.config import checked
from rsprune.training.sample import load_pipeline
from rsprune.training.train import train
from training_case import losses, settings, tiles

STEPS = {"max_train_steps": 2, "lr_warmup_steps": 1, "validation_images": 0, "checkpointing_steps": 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiles(tmp_path_factory.mktemp("finetune") / "data")


@pytest.fixture(scope="module")
def trained(data):
    """A foundation model with conditions."""
    train(settings(data, condition="scene", pixel_unshuffle=2), data.parent / "foundation", device="cpu")
    return data.parent / "foundation"


@pytest.fixture(scope="module")
def masks(data):
    """Three classes of brightness, under the names of the images."""
    for path in data.rglob("*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        target = data.parent / "masks" / path.relative_to(data)
        collection.save(target, np.digitize(grey, [80, 140]).astype(np.uint8))
    return data.parent / "masks"


def sharpening(trained: Path, **changes) -> SuperResolutionConfig:
    base = {
        "foundation": str(trained),
        "lpips": False,
        "held_out": 0.4,
        "metric_images": 8,
        "sample_steps": 2,
    }
    return checked(SuperResolutionConfig, {**base, "estimates": 2, **changes})


def painting(trained: Path, masks: Path, **changes) -> SemanticConfig:
    base = {"foundation": str(trained), "kd": False, "held_out": 0.4, "metric_images": 8, "sample_steps": 2}
    return checked(SemanticConfig, {**base, "masks": str(masks), "segmenter_steps": 2, **changes})


# What it starts from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["unet", "dit"])
@pytest.mark.parametrize("labels", [0, 3])
def test_a_wider_network_is_at_first_the_foundation(data, model, labels):
    wish = settings(data, model=model, pixel_unshuffle=2)
    old = models.build(wish, bands=3, resolution=16, conditions=labels).eval()
    new = models.build(
        settings(data, model=model, pixel_unshuffle=2, seed=9), bands=3, resolution=16, conditions=0, given=3
    ).eval()
    generator = torch.Generator().manual_seed(0)
    x, given = (torch.randn(4, 12, 8, 8, generator=generator) for _ in range(2))
    time, nothing = torch.full((4,), 300.0), torch.full((4,), labels)
    asked = {"class_labels": nothing} if labels or model == "dit" else {}
    also = {"class_labels": torch.zeros(4, dtype=torch.long)} if model == "dit" else {}
    with torch.no_grad():
        expected = old(x, timestep=time, **asked).sample
        before = new(torch.cat([x, given], 1), timestep=time, **also).sample
        foundation.widen(new, old, labels=labels)
        found = new(torch.cat([x, given], 1), timestep=time, **also).sample
    if model == "unet" and labels:  # the embedding of no condition is added to a bias: another order of sums
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    elif model == "dit" and not labels:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    else:
        assert torch.equal(found, expected)
    assert not torch.equal(before, expected)


def test_settings_are_those_of_the_foundation(trained, data):
    task = make_task(sharpening(trained))
    found = training_settings(task, {"data": str(data), "learning_rate": 1e-4})
    assert (found.resolution, found.pixel_unshuffle, found.model, found.condition) == (16, 2, "unet", "none")
    assert (found.learning_rate, found.timestep_sampling) == (1e-4, "uniform")
    # As many images per step as the foundation had, in pieces of at most the default.
    assert (found.train_batch_size, found.gradient_accumulation_steps) == (4, 1)
    task.foundation.state["images_per_step"] = 1024
    found = training_settings(task, {"data": str(data)})
    assert (found.train_batch_size, found.gradient_accumulation_steps) == (32, 32)
    found = training_settings(task, {"data": str(data), "gradient_accumulation_steps": 4})
    assert (found.train_batch_size, found.gradient_accumulation_steps) == (32, 4)
    network = models.build(found, bands=3, resolution=16, conditions=0, given=3)
    assert network.config.block_out_channels == [8, 16]
    assert network.config.in_channels == 24


# Super-resolution -----------------------------------------------------------------------------------------


def test_super_resolution_is_measured_beside_bicubic_and_draws(trained, data, tmp_path, rsprune):
    out = tmp_path / "m"
    facts = finetune(sharpening(trained), {**STEPS, "data": str(data)}, out, device="cpu")
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(facts))
    assert set(facts["scores"]) == {"bicubic", "expected", "sample"}
    assert facts["task"]["foundation"] == foundation.Foundation.open(trained).sha256
    held, used = facts["held_out"]["n"], json.loads((out / "trainer_state.json").read_text())
    assert 0 < held <= 8
    assert (out / "samples" / "held-out.png").is_file()
    card = (out / "README.md").read_text()
    assert "super-resolution: scale 4, residual 0.125" in card
    assert facts["task"]["foundation"] in card
    # What was measured of bicubic, by hand.
    task = make_task(sharpening(trained))
    task.pool(training_settings(task, {"data": str(data)}), lambda _: None)
    x = tensor_of(task.truth)
    up = bicubic(lowered(x, 4, bits=8), 4)
    squared = (((up + 1) * 127.5).round() - (x + 1) * 127.5).square().mean() / 255**2
    assert facts["scores"]["bicubic"]["psnr"] == pytest.approx(float(-10 * torch.log10(squared)), abs=1e-4)
    # Another process has the same images held out, whatever else is in the data.
    assert used["settings"]["task"] == facts["task"]
    # Drawing needs what is given.
    code, _, err = rsprune("sample", out, "-o", tmp_path / "s", "--device", "cpu")
    assert (code, "with --given FOLDER" in err) == (2, True)
    low = (lowered(x, 4, bits=8)[:2].permute(0, 2, 3, 1).numpy() + 1) * 127.5
    for i, image in enumerate(low.round().astype(np.uint8)):
        collection.save(tmp_path / "low" / f"a/{i}.png", image)
    common = [out, "--given", tmp_path / "low", "--steps", "1", "--mean-of", "2", "--device", "cpu"]
    code, said, err = rsprune("sample", *common, "-o", tmp_path / "s")
    assert (code, "2 images" in said) == (0, True), err
    assert np.asarray(Image.open(tmp_path / "s" / "a" / "1.png")).shape == (16, 16, 3)
    code, _, err = rsprune("sample", *common[:1], "--given", data, "-o", tmp_path / "t", "--device", "cpu")
    assert code == 2
    assert "is 32 x 32 pixels in 3 bands and the model is given 4 x 4 pixels in 3 bands" in err
    code, _, err = rsprune("sample", trained, "--given", tmp_path / "low", "-o", tmp_path / "u")
    assert (code, "was not made by 'rsprune finetune'" in err) == (2, True)


def test_an_untrained_residual_is_bicubic(trained, data, tmp_path):
    finetune(sharpening(trained), {**STEPS, "data": str(data)}, tmp_path / "m", device="cpu")
    pipe = load_pipeline(tmp_path / "m")
    for parameter in pipe.network.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    given = torch.rand(2, 3, 16, 16) - 0.5
    generator = torch.Generator().manual_seed(0)
    images = pipe(given=given, generator=generator, num_inference_steps=1, output_type="pt").images
    noise = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = given + 0.125 * torch.nn.functional.pixel_shuffle(noise, 2)  # a velocity of 0 leaves the noise
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1))


def test_from_scratch_and_other_foundations_are_other_trainings(trained, data, tmp_path):
    first = finetune(sharpening(trained), {**STEPS, "data": str(data)}, tmp_path / "m", device="cpu")
    wish = sharpening(trained, from_scratch=True)
    with pytest.raises(ConfigError, match="holds another training"):
        finetune(wish, {**STEPS, "data": str(data)}, tmp_path / "m", device="cpu")
    scratch = finetune(wish, {**STEPS, "data": str(data)}, tmp_path / "n", device="cpu")
    assert scratch["training"]["data"] == first["training"]["data"]
    assert scratch["training"]["parameters"] == first["training"]["parameters"]
    assert losses(tmp_path / "m") != losses(tmp_path / "n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_killed_fine_tuning_goes_on_bitwise(trained, data, tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, trained, data, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    wish = {**STEPS, "data": str(data), "max_train_steps": 6, "checkpointing_steps": 2}
    again = finetune(sharpening(trained), wish, tmp_path / "killed", device="cpu")
    whole = finetune(sharpening(trained), wish, tmp_path / "whole", device="cpu")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert again["scores"] == whole["scores"]
    a, b = (checkpoint.load(tmp_path / name / "checkpoint-6")[0] for name in ("killed", "whole"))
    for file, tensors in a.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b[file][name]), f"{file} {name}"


# Semantic synthesis ---------------------------------------------------------------------------------------


def test_semantic_synthesis_follows_layouts_that_are_cropped_alike(trained, data, masks, tmp_path, rsprune):
    wish = {**STEPS, "data": str(data), "random_flip": True}
    seen = []
    task = make_task(painting(trained, masks))
    given = type(task).given
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(task), "given", lambda self, batch: seen.append((batch, given(self, batch))) or seen[-1][1]
        )
        facts = finetune(painting(trained, masks), wish, tmp_path / "m", device="cpu")
    assert facts["task"]["classes"] == 3
    assert set(facts["scores"]) == {"generated", "real", "shuffled", "kd"}
    batch, layouts = seen[0]
    image = torch.nn.functional.pixel_shuffle(batch.image, 2)
    rgb = ((image + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grey = np.stack([np.asarray(Image.fromarray(pixels).convert("L")) for pixels in rgb])
    classes = torch.nn.functional.pixel_shuffle(layouts, 2).argmax(1).numpy()
    np.testing.assert_array_equal(classes, np.digitize(grey, [80, 140]))
    asked = tmp_path / "asked"
    for i in range(2):
        collection.save(asked / f"{i}.png", np.full((16, 16), i, np.uint8))
    common = ["sample", tmp_path / "m", "--given", asked, "--steps", "2", "--device", "cpu"]
    code, _, err = rsprune(*common, "-o", tmp_path / "s", "--n", "1")
    assert code == 0, err
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["0.png"]
    collection.save(asked / "2.png", np.full((16, 16), 3, np.uint8))
    code, _, err = rsprune(*common, "-o", tmp_path / "t")
    assert (code, "has class 3 and there are 3 classes" in err) == (2, True)


# Bad input ------------------------------------------------------------------------------------------------


def refused(task, data: Path, tmp_path: Path, match: str, **changes) -> None:
    with pytest.raises(ConfigError, match=match):
        finetune(task, {**STEPS, "data": str(data), **changes}, tmp_path / "refused", device="cpu")


def test_held_out_images_have_the_range_of_the_training_images(tmp_path):
    """Of folders that are not 8-bit; a run with another range of its own is refused."""
    folders = {}
    for name, factor in (("train", 40), ("held_out", 20)):
        for i, tile in enumerate(collection.tiles()[:12]):
            pixels = np.asarray(Image.open(tile).convert("RGB"))[:16, :16].astype(np.uint16) * factor
            folders[name] = tmp_path / name
            folders[name].mkdir(exist_ok=True)
            image_files.write_tiff(folders[name] / f"{i:02d}.tif", pixels + (name == "held_out"))
    train(settings(folders["train"], pixel_unshuffle=2), tmp_path / "foundation", device="cpu")
    task = make_task(sharpening(tmp_path / "foundation", validation_data=str(folders["held_out"])))
    wish = training_settings(task, {**STEPS, "data": str(folders["train"])})
    pool = task.pool(wish, print)
    (scale,) = pool.facts["scales"]
    first = (
        np.asarray(Image.open(collection.tiles()[0]).convert("RGB"))[:16, :16].astype(np.uint16)
    ) * 20 + 1
    at = task.held_out.ids.index("00.tif")
    expected = Radiometry.from_json(scale).bins(first, bits=16)
    np.testing.assert_array_equal(task.held_out.pixels[at], expected)
    values = {"scan": {"sources": [{"path": str(folders["held_out"]), "scale": [[0, 9000]]}]}}
    job = Job(Run(tmp_path / "run"), config.settings(values), workers=1, device="cpu")
    job.run.path.mkdir()
    scan_images(job)
    other = sharpening(tmp_path / "foundation", validation_data=str(tmp_path / "run"))
    refused(other, folders["train"], tmp_path, r"values \[\[0.* become 0 to 1, and .* --scale'")


def test_too_few_held_out_layouts_are_said_before_training(trained, data, masks, tmp_path, monkeypatch):
    monkeypatch.setattr("rsprune.evaluation.extractors.load_extractor", lambda *_, **__: object())
    task = painting(trained, masks, kd=True, held_out=0.1)
    refused(task, data, tmp_path, "held-out images are too few for the kernel distance .* --no-kd")


def test_windows_of_one_scene_have_names_of_their_own():
    assert stem("s/scene.tif#0,0,32,32") == "s/scene_0_0_32_32"
    assert stem("s/a.b.png") == "s/a.b"


def test_bad_input_is_one_sentence(trained, data, masks, tmp_path, monkeypatch):
    refused(sharpening(data), data, tmp_path, "holds no trained model")
    refused(sharpening(trained, scale=3), data, tmp_path, "--scale 3 does not divide images of 16 pixels")
    refused(sharpening(trained, held_out=1e-9), data, tmp_path, "--held-out 1e-09 of 24 images leaves all")
    refused(sharpening(trained, validation_data=str(data)), data, tmp_path, "no held-out image is left")
    refused(sharpening(trained), data, tmp_path, "leave out --vae and --condition", condition="scene")
    monkeypatch.setenv("RSPRUNE_CACHE", str(tmp_path / "empty"))
    refused(sharpening(trained, lpips=True), data, tmp_path, "does not download them")
    for i, tile in enumerate(sorted(data.rglob("*.png"))[:3]):
        collection.save(tmp_path / "grey" / f"{i}.png", np.asarray(Image.open(tile).convert("L")))
    refused(sharpening(trained), tmp_path / "grey", tmp_path, "have 1 bands and those of the model .* have 3")
    (tmp_path / "other").mkdir()
    refused(painting(trained, tmp_path / "other"), data, tmp_path, "other")
    refused(painting(trained, masks, classes=2), data, tmp_path, "has class 2 and there are 2 classes")
    one = next(masks.rglob("*.png"))
    was = one.read_bytes()
    try:
        collection.save(one, np.zeros((8, 8), np.uint8))
        refused(painting(trained, masks), data, tmp_path, "has 8 x 8 pixels where the image has 32 x 32")
        collection.save(one, np.full((32, 32), 200, np.uint8))
        refused(painting(trained, masks), data, tmp_path, "number classes from 0 on|has class 200")
        collection.save(one, np.zeros((32, 32, 3), np.uint8))
        refused(painting(trained, masks), data, tmp_path, "give one band of class numbers")
        one.unlink()
        refused(painting(trained, masks), data, tmp_path, "1 of .* images have no mask")
    finally:
        one.write_bytes(was)


def test_a_fine_tuned_model_is_no_foundation(trained, data, tmp_path, rsprune):
    finetune(sharpening(trained), {**STEPS, "data": str(data)}, tmp_path / "m", device="cpu")
    refused(sharpening(tmp_path / "m"), data, tmp_path, "is fine-tuned itself")
    assert "image-to-image" in (tmp_path / "m" / "README.md").read_text()
    with pytest.raises(ConfigError, match="is fine-tuned to follow an image"):
        Denoiser.load(tmp_path / "m")
    code, _, err = rsprune("finetune", "semantic", trained, "--data", data, "-o", tmp_path / "x")
    assert (code, "give maps of class numbers with --masks" in err) == (2, True)


def killed(trained: Path, data: Path, work: Path) -> None:
    """Dies in step 5, after the checkpoint of step 4."""
    update, done = ema.Ema.update, []

    def dying(*arguments):
        update(*arguments)
        done.append(1)
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    ema.Ema.update = dying
    wish = {**STEPS, "data": str(data), "max_train_steps": 6, "checkpointing_steps": 2}
    finetune(sharpening(trained), wish, work / "killed", device="cpu")


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed(*(Path(argument) for argument in sys.argv[1:]))
