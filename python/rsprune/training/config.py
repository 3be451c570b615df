"""Settings of training and sampling, with the reason beside each default; names as in diffusers' scripts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from rsprune.config import STRICT, checked

__all__ = ["FREE", "SampleConfig", "TrainConfig", "checked", "differences"]


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """What is trained on what; all but `FREE` settings belong to the identity of a training run."""

    data: str
    max_train_steps: int = Field(
        default=10_000, ge=1, description="Optimiser steps; arms of any size see the same number of images."
    )
    kept: str | None = Field(
        default=None,
        description="Ids to train on: FILE, a run folder, or all; a run's kept images if not given.",
    )
    resolution: int | None = Field(
        default=None, ge=8, description="Side of training images (pixels); that of the data if not given."
    )
    fit: Literal["crop", "resize"] = Field(
        default="crop", description="How larger images come to the resolution: crop keeps metres per pixel."
    )
    center_crop: bool = Field(default=False, description="Crop the centre instead of a random place.")
    random_flip: bool = Field(default=False, description="Mirror at random, left-right and up-down.")
    train_batch_size: int = Field(default=32, ge=1, description="Images per process and forward pass.")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Forward passes per optimiser step."
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="Highest learning rate of AdamW.")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    lr_warmup_steps: int = Field(default=200, ge=0, description="Steps over which the learning rate rises.")
    adam_weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    # fp16 would need a loss scale in every checkpoint; bf16 has the range of float32.
    mixed_precision: Literal["no", "bf16"] = Field(default="no", description="Type of the forward pass.")
    use_ema: bool = Field(default=True, description="Save the moving average of the weights as the model.")
    # With the warm-up (1 + step) / (10 + step) the average never reaches back over more than 1/9 of the run.
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="Highest decay of the moving average.")
    model: Literal["unet", "dit"] = Field(default="unet", description="Convolutional network or transformer.")
    model_config: str | None = Field(
        default=None, description="JSON file with arguments of the diffusers model, over the preset's."
    )
    pixel_unshuffle: int = Field(
        default=1, ge=1, description="Fold K x K pixels into channels first: 2 is about 3.5 times faster."
    )
    vae: str | None = Field(
        default=None,
        description="Folder with a diffusers AutoencoderKL: train on its latents instead of pixels.",
    )
    # 16 bits keep the quiet half of a scene's range, where sea and shadow lie, and take twice the memory.
    bits: int | None = Field(
        default=None,
        ge=8,
        le=16,
        multiple_of=8,
        description="8 or 16 per pixel; 16 if all images have more than 8.",
    )
    compile: bool = Field(default=False, description="Compile the network first; for GPUs and long runs.")
    objective: Literal["flow", "ddpm"] = Field(default="flow", description="Flow matching, or DDPM.")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = Field(
        default="epsilon", description="What the network predicts; ddpm only."
    )
    timestep_sampling: Literal["logit_normal", "uniform"] = Field(
        default="logit_normal", description="Which times are trained more; flow only."
    )
    condition: Literal["none", "scene", "cluster"] = Field(
        default="none", description="What the model can be asked for when it is sampled."
    )
    condition_dropout: float = Field(
        default=0.1, gt=0, lt=1, description="Share of images trained without their condition, for guidance."
    )
    sample_weights: str | None = Field(
        default=None,
        description="Draw scenes or clusters equally often: scene, cluster or FILE with weights.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="The same seed gives the same model.")
    checkpointing_steps: int = Field(default=1000, ge=1, description="Steps between checkpoints.")
    checkpoints_total_limit: int | None = Field(
        default=3, ge=1, description="Checkpoints to keep; older ones are deleted."
    )
    resume_from_checkpoint: str = Field(
        default="latest", description="PATH, latest, or none to refuse old ones."
    )
    validation_steps: int = Field(default=1000, ge=1, description="Steps between grids of samples.")
    validation_images: int = Field(default=16, ge=0, description="Images in such a grid; 0 draws none.")
    report_to: Literal["none", "jsonl", "tensorboard", "wandb"] = Field(
        default="jsonl", description="Where losses are written."
    )
    logging_steps: int = Field(
        default=10, ge=1, description="Steps between looks at the losses; each step is written."
    )

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.resolution and self.resolution % self.pixel_unshuffle:
            raise ValueError(
                f"--resolution {self.resolution} is not a multiple of --pixel-unshuffle {self.pixel_unshuffle}"
            )
        if self.vae and self.pixel_unshuffle > 1:
            raise ValueError("--vae and --pixel-unshuffle exclude each other: give one of them")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that, with the data and the network, decide the weights at a given step."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}


# May differ when a run is continued: they change nothing at a step, or their content is compared instead.
FREE = {
    "max_train_steps", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint",
    "validation_steps", "validation_images", "report_to", "logging_steps",
    "train_batch_size", "gradient_accumulation_steps",
    "data", "kept", "sample_weights", "model_config", "vae",
}  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class SampleConfig:
    n: int = Field(default=16, ge=1, description="Images to draw.")
    steps: int = Field(default=25, ge=1, description="Denoising steps per image.")
    scene: str | None = Field(default=None, description="Scene or cluster to draw; of any kind if not given.")
    guidance: float = Field(
        default=1.0, ge=0, description="How strongly the condition counts; 1 is as trained, 2 is stronger."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Image i is the same for every --n and --batch-size."
    )
    mean_of: int = Field(
        default=1,
        ge=1,
        description="With --given: images whose mean is written; with --steps 1, the expected image.",
    )
    batch_size: int = Field(default=64, ge=1, description="Images drawn at once.")
    format: Literal["png", "tif", "npy"] = Field(
        default="png", description="A PNG or TIFF per image, or one array of all."
    )
    bits: int | None = Field(
        default=None, ge=8, le=16, multiple_of=8, description="8 or 16 per value; as trained if not given."
    )


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Names of settings that differ, with both values, in words."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in names)
