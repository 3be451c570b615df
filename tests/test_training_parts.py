"""Objectives, learning rate, moving average, networks, checkpoints."""

from __future__ import annotations

import json
import resource

import numpy as np
import pytest
import torch

from rsprune.errors import ConfigError
from rsprune.training import checkpoint, models
from rsprune.training.ema import Ema
from rsprune.training.objective import learning_rate, make_objective
from rsprune.training.pool import load
from rsprune.training.sampler import Sampler
from rsprune.training.train import train
from training_case import settings, tiles


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiles(tmp_path_factory.mktemp("training") / "data")


@pytest.mark.parametrize("sampling", ["logit_normal", "uniform"])
def test_the_loss_of_a_flow_step_is_that_of_ten_lines_of_numpy(data, tmp_path, sampling):
    wish = settings(data, max_train_steps=1, pixel_unshuffle=2, timestep_sampling=sampling, random_flip=True)
    train(wish, tmp_path / "out", device="cpu")
    logged = json.loads((tmp_path / "out" / "log.jsonl").read_text())["loss"]

    pool = load(wish)
    drawn = Sampler(pool, seed=0, resolution=16, random_flip=True).batch(np.arange(4))
    crop = [pool.pixels[r][y][:, x] for r, y, x in zip(drawn.rows, drawn.ys, drawn.xs, strict=True)]
    image = np.stack(crop).transpose(0, 3, 1, 2) / 127.5 - 1
    fold = lambda a: a.reshape(4, 3, 8, 2, 8, 2).transpose(0, 1, 3, 5, 2, 4).reshape(4, 12, 8, 8)  # noqa: E731
    image, noise = fold(image), fold(drawn.noise)
    t = drawn.time if sampling == "uniform" else 1 / (1 + np.exp(-drawn.normal_time))
    mixed = (1 - t)[:, None, None, None] * image + t[:, None, None, None] * noise
    network = models.build(wish, bands=3, resolution=16, conditions=0)
    with torch.no_grad():
        predicted = network(
            torch.from_numpy(mixed).float(), torch.from_numpy(1000 * t).float()
        ).sample.numpy()
    assert logged == pytest.approx(np.mean((predicted - (noise - image)) ** 2), rel=1e-5)


def test_ddpm_mixes_and_targets_as_defined(data):
    rng = np.random.default_rng(0)
    x, e = (torch.from_numpy(rng.normal(size=(3, 1, 2, 2)).astype(np.float32)) for _ in range(2))
    time = torch.tensor([0.0, 0.25, 0.9999])
    # Nichol and Dhariwal 2021, equation 17; betas are clipped at 0.999.
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    kept = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))[[0, 250, 999]]
    a, b = (torch.from_numpy(np.sqrt(v)).float().view(3, 1, 1, 1) for v in (kept, 1 - kept))
    targets = {"epsilon": e, "sample": x, "v_prediction": a * e - b * x}
    for kind, expected in targets.items():
        task = make_objective(settings(data, objective="ddpm", prediction_type=kind)).task
        mixed, steps, target = task(x, e, time, time)
        assert steps.tolist() == [0, 250, 999]
        torch.testing.assert_close(mixed, a * x + b * e, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-5)


def test_learning_rate_by_hand(data):
    def make(kind):
        return settings(data, max_train_steps=12, lr_warmup_steps=3, learning_rate=4, lr_scheduler=kind)

    assert [learning_rate(s, make("linear")) for s in range(5)] == [1, 2, 3, 4, pytest.approx(32 / 9)]
    assert learning_rate(11, make("constant")) == 4
    assert learning_rate(6, make("cosine")) == pytest.approx(4 * 0.75)  # a third of the way down


def test_moving_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = Ema(model, decay=0.5)
    model.weight.data.fill_(1.0)
    ema.update(model, 1)  # warm-up: decay 2 / 11
    assert ema.model.weight.item() == pytest.approx(9 / 11)
    ema.update(model, 1000)  # the highest decay
    assert ema.model.weight.item() == pytest.approx(10 / 11)


def test_presets_have_the_stated_size(data):
    wish = settings(data, model_config=None)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    folded = models.build(
        settings(data, model_config=None, pixel_unshuffle=2), bands=3, resolution=32, conditions=0
    )
    assert 2.7e6 < count(models.build(wish, bands=3, resolution=32, conditions=0)) < 2.9e6
    assert 2.7e6 < count(folded) < 2.9e6
    assert 4e6 < count(models.build(settings(data, model="dit", model_config=None), bands=3, resolution=32, conditions=0)) < 6e6  # fmt: skip


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone(data):
    state = torch.get_rng_state()
    a, b, c = (models.build(settings(data, seed=s), bands=3, resolution=16, conditions=0) for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.conv_in.weight, b.conv_in.weight)
    assert not torch.equal(a.conv_in.weight, c.conv_in.weight)


@pytest.mark.parametrize(
    ("model", "said"),
    [("unet", "halves images 1 times, and 17 pixels do not"), ("dit", "patch_size 4 does not")],
)
def test_a_size_that_the_network_cannot_halve(data, model, said):
    with pytest.raises(ConfigError, match=said):
        models.build(settings(data, model=model), bands=3, resolution=17, conditions=0)


def test_a_network_that_diffusers_refuses(data):
    with pytest.raises(ConfigError, match="correct --model-config"):
        models.build(settings(data, network={"no_such_argument": 1}), bands=3, resolution=16, conditions=0)


# Checkpoints ----------------------------------------------------------------------------------------------


def written(folder, step: int = 3):
    return checkpoint.save(folder, step, {"model": {"w": torch.arange(1000.0)}}, {"seed": 1})


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    tensors, state = checkpoint.load(written(tmp_path))
    assert torch.equal(tensors["model"]["w"], torch.arange(1000.0))
    assert (state["step"], state["seed"]) == (3, 1)


@pytest.mark.parametrize("fault", ["truncated", "one bit", "missing", "no manifest"])
def test_damaged_checkpoints_are_named_and_skipped(tmp_path, fault):
    good, bad = written(tmp_path, 3), written(tmp_path, 12)
    file = bad / "model.safetensors"
    content = bytearray(file.read_bytes())
    if fault == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif fault == "one bit":
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        (file if fault == "missing" else bad / checkpoint.MANIFEST).unlink()
    said = []
    assert checkpoint.latest(tmp_path, said.append) == good
    assert "checkpoint-12" in said[0]
    assert said[0].endswith("skipped")
    with pytest.raises(ConfigError, match="give another one, or latest"):
        checkpoint.load(bad)


def test_the_newest_are_kept(tmp_path):
    for step in (2, 9, 10, 100):
        written(tmp_path, step)
    checkpoint.prune(tmp_path, 2)
    assert [p.name for p in checkpoint.everything(tmp_path)] == ["checkpoint-100", "checkpoint-10"]


def test_no_space_leaves_nothing_half_written(tmp_path):
    written(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            written(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
