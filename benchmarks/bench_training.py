"""Images per core-second of the training loop, beside those of a bare forward, backward and step.

    OMP_NUM_THREADS=1 python benchmarks/bench_training.py [--steps 40] [--precision bf16]

The loop is the whole of `rsprune train`: drawing, cropping, noise, moving average, clipping, logging. The bare
rate is the same network and batch, as fast as we know how to make it, with one fixed input, in turns with the loop on the same thread, in
processor time: other work on the machine then disturbs both alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import mse_loss

from rsprune.training import models, speed
from rsprune.training import train as loop
from rsprune.training.config import TrainConfig, checked

SIDE, BATCH, IMAGES = 32, 32, 512


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (2 * SIDE, 2 * SIDE, 3), np.uint8)).save(folder / f"{i:04d}.png")


class Bare:
    """One network, one batch, forward, backward, clip, step."""

    def __init__(self, settings: TrainConfig):
        torch.manual_seed(0)
        self.model = models.build(settings, bands=3, resolution=SIDE, conditions=0).train()
        speed.prepare_cpu(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        k = settings.pixel_unshuffle
        self.x = torch.randn(BATCH, 3 * k * k, SIDE // k, SIDE // k)
        self.target, self.t = torch.randn_like(self.x), 1000 * torch.rand(BATCH)
        self.bf16 = settings.mixed_precision == "bf16"

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            predicted = self.model(self.x, timestep=self.t).sample
        mse_loss(predicted.float(), self.target).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--pixel-unshuffle", type=int, default=2)
    wish = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_images(data)
        settings = checked(
            TrainConfig,
            {
                "data": str(data), "resolution": SIDE, "train_batch_size": BATCH, "random_flip": True,
                "max_train_steps": wish.steps + 1, "checkpointing_steps": 10**9, "validation_images": 0,
                "mixed_precision": wish.precision, "pixel_unshuffle": wish.pixel_unshuffle,
            },
        )  # fmt: skip
        bare, seconds = Bare(settings), {"loop": [], "bare": []}
        for _ in range(3):
            bare.step()

        # `learning_rate` is the first thing in a step: the time between two calls is a step of the loop.
        began, rate = [], loop.learning_rate

        def between(step: int, wanted: TrainConfig) -> float:
            now = time.process_time()
            if began:
                seconds["loop"].append(now - began.pop())
            bare.step()
            began.append(time.process_time())
            seconds["bare"].append(began[0] - now)
            return rate(step, wanted)

        loop.learning_rate = between
        flops = speed.step_flops(bare.model, bare.x, bare.t, None) / BATCH
        state = loop.train(settings, Path(folder) / "model", device="cpu")
        rates = {name: BATCH / np.median(s[3:]) for name, s in seconds.items()}
        print(f"{state['parameters'] / 1e6:.2f} M parameters, {SIDE} px, pixel-unshuffle {wish.pixel_unshuffle}, "
              f"{wish.precision}, batch {BATCH}, one thread, {flops / 1e9:.2f} GFLOP per image")  # fmt: skip
        print(f"bare forward, backward, step  {rates['bare']:6.1f} images per core-second")
        print(f"training loop                 {rates['loop']:6.1f} images per core-second")
        print(f"the loop costs {rates['bare'] / rates['loop'] - 1:.1%} more")


if __name__ == "__main__":
    main()
