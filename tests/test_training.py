"""Training as a whole: resuming, sharing, learning, and what it says about bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import training_case
from rsprune.errors import ConfigError
from rsprune.training import checkpoint, models
from rsprune.training import train as training
from rsprune.training.config import TrainConfig, checked
from rsprune.training.train import DivergedError, OutOfMemory, train
from run_folder import make_run
from training_case import settings, tiles

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiles(tmp_path_factory.mktemp("training") / "data")


# Other processes ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_processes_that_are_killed_or_share_the_work(data, tmp_path):
    # Killed five times: bitwise the same losses, weights, moving average and optimiser.
    # Shared: the same losses to 1e-5 in one process, in two halves and in two processes.
    done = subprocess.run(
        [sys.executable, TESTS / "training_children.py", data, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_model_loads_where_rsprune_is_not_imported(data, tmp_path):
    train(settings(data, max_train_steps=2), tmp_path / "plain", device="cpu")
    train(
        settings(data, max_train_steps=2, model="dit", condition="scene", pixel_unshuffle=2),
        tmp_path / "dit", device="cpu",
    )  # fmt: skip
    code = f"""
import sys
from diffusers import DiffusionPipeline
import torch
torch.set_num_threads(1)
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "plain")!r})
image = pipe(batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[1]
print(type(pipe).__name__, type(pipe.scheduler).__name__, image.size, image.mode)
DiffusionPipeline.from_pretrained({str(tmp_path / "dit")!r}, custom_pipeline={str(tmp_path / "dit")!r}, trust_remote_code=True)
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "dit")!r}, trust_remote_code=True)
image = pipe(class_labels=["water", "crops"], guidance_scale=2.0, num_inference_steps=3).images[0]
print(type(pipe).__name__, pipe.config.labels, image.size)
print("rsprune" in sys.modules)
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.splitlines() == [
        "DDPMPipeline FlowMatchEulerDiscreteScheduler (16, 16) RGB",
        "TilePipeline ['built', 'coast', 'crops', 'water', 'woody'] (16, 16)",
        "False",
    ], out.stderr


# Learning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "steps", "limit"), [("flow", 200, 0.4), ("ddpm", 80, 0.5)])
def test_eight_images_are_learnt_by_heart(tmp_path, objective, steps, limit):
    wish = settings(
        tiles(tmp_path / "data", 8),
        objective=objective, max_train_steps=steps, train_batch_size=8, learning_rate=5e-3, lr_warmup_steps=10,
        center_crop=True, pixel_unshuffle=2, network={"block_out_channels": [24, 32]},
    )  # fmt: skip
    train(wish, tmp_path / "model", device="cpu")
    losses = training_case.losses(tmp_path / "model")
    assert losses[0] > 0.9
    assert np.mean(losses[-30:]) < limit, losses[-30:]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "dit", "condition": "scene", "mixed_precision": "bf16"},
        {"objective": "ddpm", "prediction_type": "v_prediction", "use_ema": False, "sample_weights": "scene"},
        {
            "condition": "scene",
            "gradient_accumulation_steps": 2,
            "report_to": "none",
            "network": {"dropout": 0.1},
        },
    ],
)
def test_every_kind_trains_draws_and_resumes_exactly(data, tmp_path, changes):
    wish = {"validation_images": 2, "checkpointing_steps": 2, **changes}
    whole = train(settings(data, max_train_steps=4, **wish), tmp_path / "whole", device="cpu")
    parts = {"lr_scheduler": "constant", **wish}
    train(settings(data, max_train_steps=4, **parts), tmp_path / "a", device="cpu")
    train(settings(data, max_train_steps=2, **parts), tmp_path / "b", device="cpu")
    train(settings(data, max_train_steps=4, **parts), tmp_path / "b", device="cpu")
    a, b = (checkpoint.load(tmp_path / name / "checkpoint-4")[0]["model"] for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole["images_seen"] == 4 * whole["images_per_step"]
    assert (tmp_path / "whole" / "samples" / "step-000004.png").is_file()
    assert (tmp_path / "whole" / "log.jsonl").exists() == (wish.get("report_to") != "none")


def test_arms_of_different_size_see_the_same_number_of_images(data, tmp_path):
    for name, n in (("small", 5), ("large", 20)):
        train(settings(tiles(tmp_path / f"{name}_data", n)), tmp_path / name, device="cpu")
    seen = [
        json.loads((tmp_path / a / "trainer_state.json").read_text())["images_seen"]
        for a in ("small", "large")
    ]
    assert seen == [24, 24]


def test_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard")
    train(settings(data, report_to="tensorboard"), tmp_path / "model", device="cpu")
    assert list((tmp_path / "model").rglob("events.out.tfevents*"))


# Continuing -----------------------------------------------------------------------------------------------


def test_continuing_says_what_it_does(data, tmp_path):
    said = []
    train(
        settings(data, max_train_steps=4, checkpointing_steps=2),
        tmp_path / "m",
        device="cpu",
        say=said.append,
    )
    assert said[0] == f"no checkpoint in {tmp_path / 'm'}: starting at step 0"
    file = tmp_path / "m" / "checkpoint-4" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    before, said[:] = training_case.losses(tmp_path / "m"), []
    train(
        settings(data, max_train_steps=4, checkpointing_steps=2),
        tmp_path / "m",
        device="cpu",
        say=said.append,
    )
    assert "checkpoint-4 is damaged: optimizer.safetensors" in said[0]
    assert said[1] == "continuing from checkpoint-2: step 2 of 4"
    assert training_case.losses(tmp_path / "m") == before


def test_a_run_killed_before_its_model_was_written_is_finished(data, tmp_path):
    train(settings(data, validation_images=1), tmp_path / "m", device="cpu")
    assert (tmp_path / "m" / "samples" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "m" / "model_index.json").unlink()
    shutil.rmtree(tmp_path / "m" / "unet")
    assert train(settings(data), tmp_path / "m", device="cpu")["step"] == 6
    assert (tmp_path / "m" / "model_index.json").is_file()
    assert (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_folder_of_another_training_is_left_alone(data, tmp_path):
    train(settings(data), tmp_path / "m", device="cpu")
    before = sorted(p.name for p in (tmp_path / "m").rglob("*"))
    with pytest.raises(ConfigError, match=r"another training \(learning_rate was 0.0005 and is 0.1\)"):
        train(settings(data, learning_rate=0.1), tmp_path / "m", device="cpu")
    with pytest.raises(ConfigError, match=r"another training \(data was"):
        train(settings(tiles(tmp_path / "fewer", 5)), tmp_path / "m", device="cpu")
    with pytest.raises(ConfigError, match="latest, or --overwrite"):
        train(settings(data, resume_from_checkpoint="none"), tmp_path / "m", device="cpu")
    assert sorted(p.name for p in (tmp_path / "m").rglob("*")) == before
    train(settings(data, learning_rate=0.1), tmp_path / "m", device="cpu", overwrite=True)
    assert json.loads((tmp_path / "m" / "log.jsonl").read_text().splitlines()[3])["lr"] > 0.01


def test_nothing_of_another_model_is_left_by_one_that_takes_its_place(data, tmp_path):
    out = tmp_path / "m"
    train(settings(data, pixel_unshuffle=2, max_train_steps=1), out, device="cpu")
    (out / "vae").mkdir()  # as of an autoencoder, which `rsprune sample` would decode with
    (out / "vae" / "config.json").write_text("{}")
    (out / "metrics.json").write_text("{}")
    assert (out / "pipeline.py").is_file()
    train(settings(data, model="dit", max_train_steps=1), out, device="cpu", overwrite=True)
    assert type(models.load(out)).__name__ == "DiTTransformer2DModel"
    assert not (out / "unet").exists()
    assert not (out / "vae").exists()
    assert not (out / "metrics.json").exists()


def test_files_that_no_training_wrote_are_left_alone(data, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="no training wrote"):
            train(settings(data), tmp_path / "m", device="cpu", overwrite=overwrite)
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["thesis.tex"]


def test_a_run_folder_is_no_place_for_a_model(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(ConfigError, match="is a run folder"):
        train(settings(run.path), run.path, device="cpu")


# What goes wrong ------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_at_its_step(data, tmp_path, monkeypatch):
    wish = settings(data, max_train_steps=9, checkpointing_steps=3)
    calls, real = [0], training.mse_loss

    def nan_at_the_fifth(*arguments):
        calls[0] += 1
        return real(*arguments) * (float("nan") if calls[0] == 5 else 1)

    monkeypatch.setattr(training, "mse_loss", nan_at_the_fifth)
    with pytest.raises(
        DivergedError, match=r"loss is not finite at step 5; the last good .*checkpoint-3; lower"
    ):
        train(wish, tmp_path / "m", device="cpu")
    assert [p.name for p in checkpoint.everything(tmp_path / "m")] == ["checkpoint-3"]
    monkeypatch.setattr(training, "mse_loss", real)
    assert train(wish, tmp_path / "m", device="cpu")["step"] == 9
    training_case.losses(tmp_path / "m")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_to_lower(data, tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(training, "mse_loss", full)
    with pytest.raises(OutOfMemory, match="lower --train-batch-size"):
        train(settings(data), tmp_path / "m", device="cpu")


def test_no_space_ends_in_a_sentence(data, tmp_path, rsprune, monkeypatch):
    def full(path, values):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    code, _, err = rsprune("train", "--data", data, "-o", tmp_path / "m", *tiny(data))
    assert code == 1
    assert "no space left to write to" in err
    assert not checkpoint.everything(tmp_path / "m")
    assert not list((tmp_path / "m").glob(".*.tmp"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_train_steps": 0}, "--max-train-steps is 0"),
        ({"objective": "gan"}, "--objective is 'gan'"),
        ({"resolution": 30, "pixel_unshuffle": 4}, "not a multiple of --pixel-unshuffle 4"),
        ({"no_such": 1}, "there is no setting no_such"),
    ],
)
def test_wrong_settings(changes, said):
    with pytest.raises(ConfigError, match=said):
        checked(TrainConfig, {"data": "x", **changes})


# The command ----------------------------------------------------------------------------------------------


def tiny(data: Path) -> list[str]:
    wish = settings(data)
    return ["--model-config", wish.model_config, "--resolution", "16", "--train-batch-size", "4",
            "--max-train-steps", "3", "--validation-images", "0", "--device", "cpu"]  # fmt: skip


def test_train_from_a_run_folder(tmp_path, rsprune):
    run = make_run(tmp_path)
    code, out, err = rsprune("train", "--data", run.path, "-o", tmp_path / "m", *tiny(run.path), "--json")
    assert code == 0, err
    state = json.loads(out)
    assert (state["step"], state["images_seen"]) == (3, 12)
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"{len(run.kept_ids)} images (kept ids of a run)" in card
    code, _, err = rsprune(
        "train", "--config", tmp_path / "m" / "train.toml", "-o", tmp_path / "again", "--device", "cpu"
    )
    assert code == 0, err
    assert training_case.losses(tmp_path / "again") == training_case.losses(tmp_path / "m")


def test_train_without_data(tmp_path, rsprune):
    code, _, err = rsprune("train", "-o", tmp_path / "m")
    assert code == 2
    assert "give a run folder or images with --data" in err


def test_train_without_its_packages(tmp_path, rsprune, monkeypatch):
    from rsprune.training import cli

    monkeypatch.setattr(cli, "NEEDED", ("torch", "no_such_package"))
    code, _, err = rsprune("train", "--data", tmp_path, "-o", tmp_path / "m")
    assert code == 2
    assert "train needs no_such_package: run pip install 'rsprune[train]'" in err
