"""Super-resolution: the network is given the image with larger pixels, brought to full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from rsprune.errors import ConfigError
from rsprune.evaluation.images import REACH, psnr, squared_error, ssim
from rsprune.finetuning import comparison
from rsprune.finetuning.config import SuperResolutionConfig
from rsprune.finetuning.finetune import Finetuning
from rsprune.finetuning.foundation import Foundation
from rsprune.finetuning.given import bicubic, drawn, lowered, tensor_of
from rsprune.training import publish
from rsprune.training.batches import Images
from rsprune.training.config import TrainConfig
from rsprune.training.pipeline import TilePipeline

SHOWN = 10  # held-out images in the picture


class SuperResolution(Finetuning):
    """Images of full resolution from those whose pixels are `scale` times as large."""

    name = "super-resolution"
    # The expected image is asked of pure noise, a time that logit-normal sampling hardly ever trains.
    defaults = {"timestep_sampling": "uniform"}  # noqa: RUF012
    settings: SuperResolutionConfig

    def __init__(self, settings: SuperResolutionConfig, foundation: Foundation, *, device: str = "cpu"):
        super().__init__(settings, foundation, device=device)
        self.scale, self.residual = settings.scale, settings.residual
        self._lpips: Any = None

    @property
    def given_bands(self) -> int:
        return self.foundation.bands

    def about(self) -> dict[str, Any]:
        return {"scale": self.scale, "residual": self.residual}

    def check(self, training: TrainConfig) -> None:
        side = training.resolution or self.foundation.state["resolution"]
        if side % self.scale:
            raise ConfigError(
                f"--scale {self.scale} does not divide images of {side} pixels: give another one"
            )
        if side <= 2 * REACH:
            raise ConfigError(f"SSIM needs {2 * REACH + 1} pixels a side and the images have {side}")
        if self.settings.lpips:
            from rsprune.evaluation.lpips import Lpips

            weights = Path(self.settings.weights) if self.settings.weights else None
            self._lpips = Lpips(weights=weights, device=self.device)
            self._lpips.check(side=side, bands=self.foundation.bands)

    def given(self, batch: Images) -> torch.Tensor:
        image = pixel_shuffle(batch.image, self.foundation.unshuffle)
        low = lowered(image, self.scale, bits=self.foundation.state["bits"])
        return pixel_unshuffle(bicubic(low, self.scale), self.foundation.unshuffle)

    def validate(
        self, pipe: TilePipeline, output: Path, step: int, settings: TrainConfig
    ) -> dict[str, float]:
        truth = self.truth[: settings.validation_images]
        images = self._methods(pipe, truth, settings)
        comparison.write(output / "samples" / f"step-{step:06d}.png", {**images, "truth": truth})
        publish.write_curve(output)
        del images["given"]
        return {f"psnr_{name}": _decibels(found, truth) for name, found in images.items()}

    def measure(self, pipe: TilePipeline, training: TrainConfig, output: Path) -> dict[str, Any]:
        truth = self.truth
        images = self._methods(pipe, truth, training)
        given = images.pop("given")
        error = squared_error(images["bicubic"], truth)
        # From easy to hard by what bicubic makes of them, which no model has a say in.
        rows = np.argsort(error)[np.linspace(0, len(truth) - 1, min(SHOWN, len(truth))).round().astype(int)]
        shown = {"given": given, **images, "truth": truth}
        comparison.write(output / "samples" / "held-out.png", {k: v[rows] for k, v in shown.items()})
        return {
            "drawn": {
                "expected": {"steps": self._expected_steps(training), "mean_of": self.settings.estimates},
                "sample": {"steps": self.settings.sample_steps, "mean_of": 1},
            },
            "lpips": None if self._lpips is None else self._lpips.facts,
            "scores": {name: self._scores(found, truth, given, error) for name, found in images.items()},
        }

    def _methods(self, pipe: TilePipeline, truth: np.ndarray, training: TrainConfig) -> dict[str, np.ndarray]:
        """What is given, and the images [N, R, R, C] that each method makes of it."""
        bits = 8 * truth.itemsize
        low = lowered(tensor_of(truth), self.scale, bits=bits)
        given = bicubic(low, self.scale)
        common = {"bits": bits, "seed": training.seed}
        return {
            "given": _pixels(low, bits),
            "bicubic": _pixels(given, bits),
            "expected": drawn(
                pipe, given, steps=self._expected_steps(training), mean_of=self.settings.estimates, **common
            ),
            "sample": drawn(pipe, given, steps=self.settings.sample_steps, **common),
        }

    def _expected_steps(self, training: TrainConfig) -> int:
        # One step of flow matching from pure noise ends in the expectation; one of DDPM divides by almost nothing.
        return 1 if training.objective == "flow" else self.settings.sample_steps

    def _scores(
        self, images: np.ndarray, truth: np.ndarray, given: np.ndarray, bicubic_error: np.ndarray
    ) -> dict[str, float | None]:
        error = squared_error(images, truth)
        low = _pixels(lowered(tensor_of(images), self.scale, bits=8 * truth.itemsize), 8 * truth.itemsize)
        return {
            # Of the mean squared error over all images: a blank one without any error is infinitely good.
            "psnr": float(psnr(error.mean())),
            "psnr_median": float(psnr(max(np.median(error), np.finfo(float).tiny))),
            "ssim": float(ssim(images, truth).mean()),
            "lpips": None if self._lpips is None else float(self._lpips(images, truth).mean()),
            "consistency": float(psnr(max(squared_error(low, given).mean(), np.finfo(float).tiny))),
            "nearer_than_bicubic": float((error < bicubic_error).mean()),
        }


def _decibels(images: np.ndarray, truth: np.ndarray) -> float:
    return float(psnr(squared_error(images, truth).mean()))


def _pixels(images: torch.Tensor, bits: int) -> np.ndarray:
    """Images [N, C, H, W] in -1..1 as [N, H, W, C] uint8 or uint16."""
    half = (2**bits - 1) / 2
    found = ((images + 1) * half).round().permute(0, 2, 3, 1).numpy()
    return found.astype(np.uint16 if bits == 16 else np.uint8)
