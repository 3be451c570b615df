"""Settings of ``rsprune evaluate``."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from rsprune.config import STRICT

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of noise that the held-out loss is measured at


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    # Of another family than the default encoder: who selected must not judge.
    extractor: str = Field(
        default="alexnet", description="Network that measures: alexnet, vgg16, lite0, onnx:PATH, hf:PATH."
    )
    weights: str | None = Field(
        default=None, description="Archive with the weights of alexnet and vgg16; once."
    )
    resize: int | None = Field(
        default=None,
        ge=32,
        description="Side (pixels) that alexnet and vgg16 see images at; 128 if not given.",
    )
    reference_kind: str = Field(
        default="not stated", description="What the reference stands for: natural, balanced, ..."
    )
    k: int = Field(default=5, ge=1, description="Neighbours of precision, recall, density and coverage.")
    subsets: int = Field(default=100, ge=1, description="Random subsets of the kernel distance.")
    subset_size: int | None = Field(
        default=None, ge=2, description="Images of a subset; 1,000 or half of the smaller set if not given."
    )
    draw: int = Field(
        default=0,
        ge=0,
        description="Images to draw from a MODEL for the other scores; 0 measures its held-out loss.",
    )
    draw_steps: int = Field(default=25, ge=1, description="Denoising steps of a drawn image.")
