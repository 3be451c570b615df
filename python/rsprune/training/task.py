"""What a network is trained for: its data, what it is given beside the noise, and how it is judged on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import ModelMixin

from rsprune.training import publish
from rsprune.training.batches import Images
from rsprune.training.config import SampleConfig, TrainConfig
from rsprune.training.pipeline import TilePipeline
from rsprune.training.pool import Pool, load
from rsprune.training.sample import draw


class Task(Protocol):
    """`train` asks these, in this order."""

    # Unit in which the network draws what the first given bands lack; 0 where it draws the image itself.
    residual: float

    @property
    def given_bands(self) -> int:
        """Of what the network is given: concatenated to its input, folded like the image."""
        ...

    def identity(self) -> dict[str, Any]:
        """What of the task decides the weights; joins the settings that a folder belongs to."""
        ...

    def pool(self, settings: TrainConfig, say: Callable[[str], None]) -> Pool:
        """The training images."""
        ...

    def start(self, model: ModelMixin) -> None:
        """Puts weights into the new network, where the task has some."""
        ...

    def given(self, batch: Images) -> torch.Tensor | None:
        """What the network is given beside these images [B, given_bands * K * K, R / K, R / K], in -1..1."""
        ...

    def validate(
        self, pipe: TilePipeline, output: Path, step: int, settings: TrainConfig
    ) -> dict[str, float]:
        """Draws into ``output/samples`` and returns metrics, which are logged."""
        ...


class Generation:
    """Drawing images like those of the pool, of a condition if there is one."""

    given_bands = 0
    residual = 0.0

    def identity(self) -> dict[str, Any]:
        return {}

    def pool(self, settings: TrainConfig, say: Callable[[str], None]) -> Pool:
        return load(settings, say=say)

    def start(self, model: ModelMixin) -> None:
        pass  # its weights are those of the seed

    def given(self, batch: Images) -> torch.Tensor | None:
        return None

    def validate(
        self, pipe: TilePipeline, output: Path, step: int, settings: TrainConfig
    ) -> dict[str, float]:
        wish = SampleConfig(n=settings.validation_images, seed=settings.seed)
        images = np.concatenate(list(draw(pipe, wish)))
        publish.write_grid(output / "samples" / f"step-{step:06d}.png", images)
        publish.write_curve(output)
        return {}
