"""Settings of fine-tuning, with the reason beside each default; those of training itself are in `training.config`."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from rsprune.config import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FinetuneConfig:
    """What is fine-tuned from what, and what it is measured on."""

    foundation: str
    from_scratch: bool = Field(
        False,
        description="Fresh weights for the same network: the control that shows what the foundation gave.",
    )
    validation_data: str | None = Field(
        None, description="Held-out images to measure on; a share of the data if not given."
    )
    held_out: float = Field(
        0.05, gt=0, lt=1, description="That share: by a hash of seed and id, and never trained on."
    )
    metric_images: int = Field(512, ge=8, description="Held-out images to measure on, at most.")
    sample_steps: int = Field(25, ge=1, description="Denoising steps of an image that is measured.")
    weights: str | None = Field(None, description="Archive with the weights of AlexNet; once.")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SuperResolutionConfig(FinetuneConfig):
    """Images of full resolution from those whose pixels are `scale` times as large."""

    scale: int = Field(4, ge=2, description="How many times smaller the given images are: 2, 4, ...")
    # An untrained network is nearly bicubic then, and errors of the network count an eighth: drawing the whole image,
    # 500 steps do not come near bicubic (docs/training.md). 0.125 of the range makes residuals as large as images.
    residual: float = Field(
        0.125, ge=0, description="Unit in which what bicubic lacks is drawn; 0 draws the whole image."
    )
    # The error of one estimate is that of the network and its noise; the mean of 8 has an eighth of the second.
    estimates: int = Field(8, ge=1, description="One-step estimates whose mean is the expected image.")
    lpips: bool = Field(True, description="Measure LPIPS, which needs the weights of AlexNet.")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SemanticConfig(FinetuneConfig):
    """Images that follow a layout: a map of classes."""

    masks: str
    classes: int | None = Field(
        None,
        ge=2,
        le=256,
        description="Number of classes; one more than the highest in the data if not given.",
    )
    segmenter_steps: int = Field(600, ge=1, description="Training steps of the segmenter that judges.")
    kd: bool = Field(True, description="Measure the kernel distance, which needs the weights of AlexNet.")
