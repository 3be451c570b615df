"""What makes steps fast must not change them; how fast they are is counted right."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

import training_case
from rsprune.training import models, speed
from rsprune.training.batches import Batches
from rsprune.training.pool import load
from rsprune.training.sampler import Sampler
from rsprune.training.speed import Meter
from rsprune.training.train import train
from training_case import settings, tiles


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiles(tmp_path_factory.mktemp("training") / "data")


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_attention_over_few_tokens_is_the_same_attention(data, kind):
    plain = models.build(settings(data, model=kind), bands=3, resolution=16, conditions=2).eval()
    tuned = copy.deepcopy(plain)
    speed.prepare_cpu(tuned)
    processors = [m.processor for m in tuned.modules() if hasattr(m, "set_processor")]
    assert processors
    assert all(type(p) is speed.FewTokens for p in processors)
    assert all(type(m.processor) is AttnProcessor2_0 for m in plain.modules() if hasattr(m, "set_processor"))
    x, t, label = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 900.0]), torch.tensor([0, 2])
    outputs = [m(x, timestep=t, class_labels=label).sample for m in (plain, tuned)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_flops_of_a_convolution_by_hand():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.second = torch.nn.Conv2d(8, 3, 1, bias=False)

        def forward(self, x, *, timestep, class_labels):
            return type("Output", (), {"sample": self.second(self.first(x))})

    network, x = Network(), torch.zeros(5, 3, 16, 16)
    first, second = (2 * 5 * 16 * 16 * 8 * 3 * taps for taps in (9, 1))
    # Backward twice the forward, less the gradient of the image, which nobody wants.
    assert speed.step_flops(network, x, torch.zeros(5), None) == 2 * first + 3 * second
    assert network.first.weight.grad is None
    assert network.first.weight.device.type == "cpu"


def test_the_meter_counts_steps_only(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: clock[0])
    meter = Meter(images=32, peak=None)
    clock[0] += 60  # compiling, in the first step
    meter.stop(1)
    assert meter.words(99) == ""
    meter.begin(1)
    clock[0] += 5
    meter.stop(11)
    clock[0] += 1000  # a checkpoint
    meter.begin(11)
    clock[0] += 5
    meter.stop(21)
    assert meter.words(79) == ", 64 images/s, about 40 s left"
    meter.flops = 2e9
    assert ", 128 GFLOP/s, " in meter.words(79)


def test_the_share_of_the_peak_is_per_device(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: clock[0])
    meter = Meter(images=1000, peak=1e15, processes=4)
    meter.flops = 4e11
    meter.begin(0)
    clock[0] += 1
    meter.stop(1)
    assert ", 100.0 TFLOP/s (10% of the peak), " in meter.words(1)


@pytest.mark.parametrize(
    ("name", "bf16", "expected"),
    [
        ("NVIDIA H200", True, 989e12),
        ("NVIDIA H100 PCIe", True, 756e12),
        ("NVIDIA H100 80GB HBM3", False, 67e12),
        ("NVIDIA A100-SXM4-80GB", True, 312e12),
        ("NVIDIA A10G", True, None),
        ("NVIDIA L40", True, None),
    ],
)
def test_peaks_by_the_names_that_drivers_give(monkeypatch, name, bf16, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert speed.peak(torch.device("cuda"), bf16=bf16) == expected
    assert speed.peak(torch.device("cpu"), bf16=bf16) is None


@pytest.mark.parametrize("changes", [{"ahead": 2}, {"resident": False}])
def test_batches_drawn_ahead_or_from_memory_are_the_same(data, changes):
    wish = settings(data, condition="scene", random_flip=True, pixel_unshuffle=2)
    pool = load(wish)
    sampler = Sampler(pool, seed=0, resolution=16, random_flip=True, condition_dropout=0.3)
    plain = Batches(sampler, pool, torch.device("cpu"), wish)
    other = Batches(sampler, pool, torch.device("cpu"), wish, ahead=changes.get("ahead", 0))
    other.is_resident = changes.get("resident", True)
    positions = [np.arange(first, first + 4) for first in range(0, 28, 4)]
    a, b = list(plain.feed(positions)), list(other.feed(positions))
    assert len(a) == len(b) == 7
    for one, two in zip(a, b, strict=True):
        for name in ("image", "noise", "time", "normal_time", "label"):
            assert torch.equal(getattr(one, name), getattr(two, name))


def test_a_reader_that_stops_early_leaves_no_thread_behind(data):
    wish, before = settings(data), threading.active_count()
    pool = load(wish)
    batches = Batches(Sampler(pool, seed=0, resolution=16), pool, torch.device("cpu"), wish, ahead=2)
    feed = batches.feed(np.arange(k, k + 4) for k in range(10**6))
    next(feed)
    feed.close()
    assert threading.active_count() == before


def test_the_speed_is_said(data, tmp_path):
    said = []
    train(settings(data, max_train_steps=3), tmp_path / "m", device="cpu", say=said.append)
    assert "images/s, " in said[-1]
    assert "FLOP/s, about 0 s left" in said[-1]


def test_a_compiled_network_learns_the_same(data, tmp_path, monkeypatch):
    # What is traced and where it breaks is what matters here; a C++ compiler is not asked.
    compiled = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: compiled.append(m) or real(m, backend="aot_eager"))
    for name, compile in (("plain", False), ("compiled", True)):
        train(settings(data, max_train_steps=3, compile=compile), tmp_path / name, device="cpu")
    assert len(compiled) == 1
    plain, other = (training_case.losses(tmp_path / name) for name in ("plain", "compiled"))
    np.testing.assert_allclose(other, plain, rtol=0, atol=1e-5)
