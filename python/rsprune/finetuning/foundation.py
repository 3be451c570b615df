"""The model that a fine-tuning starts from: its settings, its weights, and how they fit a wider network."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from rsprune.encoders.packaged import sha256
from rsprune.errors import ConfigError
from rsprune.training import models, publish
from rsprune.training.config import TrainConfig
from rsprune.training.folder import STATE

# Not as in the foundation's training: conditions are dropped, and a seed is of one training.
OWN = ("condition", "condition_dropout", "seed")
INPUTS = ("conv_in.weight", "pos_embed.proj.weight")  # first convolution of a UNet, of a transformer


@dataclass(frozen=True)
class Foundation:
    """A trained model without anything given.

    Attributes:
        folder: Where it lies.
        state: Its ``trainer_state.json``.
        network: With its published weights, which are averaged ones where it was trained with them.
        labels: Number of its conditions.
        unshuffle: Side of the blocks of pixels that it folds.
        sha256: Of its weights.
    """

    folder: Path
    state: dict[str, Any]
    network: ModelMixin
    labels: int
    unshuffle: int
    sha256: str

    @classmethod
    def open(cls, folder: Path) -> Foundation:
        """The model in `folder`. Raises `ConfigError` where there is none to start from."""
        network = models.load(folder)
        if (folder / "vae").is_dir():
            raise ConfigError(
                f"{folder} works on latents, which cannot be fine-tuned yet: give a model trained on pixels"
            )
        if models.given_channels(network):
            raise ConfigError(f"{folder} is fine-tuned itself: give the model that it was made from")
        try:
            state = json.loads((folder / STATE).read_text("utf-8"))
            _ = state["settings"], state["resolution"], state["bits"], state["images_per_step"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{folder} has no readable {STATE}, so nobody knows how it was trained: "
                "give a model made with 'rsprune train'"
            ) from None
        index = publish.read_index(folder)
        weights = sha256(models.weights_of(folder))
        return cls(folder, state, network, len(index["labels"]), index["pixel_unshuffle"], weights)

    @property
    def bands(self) -> int:
        """Of its images."""
        return self.network.config.out_channels // self.unshuffle**2

    def training(self) -> dict[str, Any]:
        """Settings of its training, for one with the same network."""
        known = {f.name for f in fields(TrainConfig)} - set(OWN)
        values = {k: v for k, v in self.state["settings"].items() if k in known and v is not None}
        return {
            **values,
            "model": kind(self.network),
            "model_config": str(self.folder.absolute() / models.FOLDERS[kind(self.network)] / "config.json"),
            "resolution": self.state["resolution"],
            "bits": self.state["bits"],
            **self._batch(),
        }

    def _batch(self) -> dict[str, int]:
        """As many images per step as the foundation had, in pieces that fit where the default does."""
        images = max(1, self.state["images_per_step"] // int(os.environ.get("WORLD_SIZE", "1")))
        size = max(n for n in range(1, TrainConfig.train_batch_size + 1) if images % n == 0)
        return {"train_batch_size": size, "gradient_accumulation_steps": images // size}


def kind(network: ModelMixin) -> str:
    """ "unet" or "dit"."""
    return next(name for name, of in models.CLASSES.items() if isinstance(network, of))


@torch.no_grad()
def widen(model: torch.nn.Module, foundation: torch.nn.Module, *, labels: int) -> None:
    """Copies weights into a network that is given more channels, whose weights become zero.

    So what is given has no effect at first. Of a foundation with `labels` conditions the new network, which has none,
    is what the foundation is without any of them.

    Raises:
        ConfigError: The networks differ in more than their input.
    """
    old, new = dict(foundation.state_dict()), model.state_dict()
    for name in [n for n in old if n.endswith("embedding_table.weight")]:  # of a transformer
        nothing = old[name][labels if labels else 0]
        old[name] = nothing.expand_as(new[name])
    if (names := old.pop("class_embedding.weight", None)) is not None:  # of a UNet, added to that of the time
        bias = "time_embedding.linear_2.bias"
        old[bias] = old[bias] + names[labels]
    for name, value in new.items():
        source = old.pop(name, None)
        if source is not None and name in INPUTS:
            value[:, : source.shape[1]] = source
            value[:, source.shape[1] :] = 0
        elif source is not None and source.shape == value.shape:
            value.copy_(source)
        else:
            old[name] = value
    if old:
        raise ConfigError(f"the foundation is another network: {next(iter(old))} differs")
