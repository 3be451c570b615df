"""Settings of ``rsprune evaluate``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rsprune.config import STRICT, _sentence
from rsprune.errors import ConfigError


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    # Of another family than the default encoder: who selected must not judge.
    extractor: str = Field(
        "alexnet", description="Network that measures: alexnet, vgg16, lite0, onnx:PATH, hf:PATH."
    )
    weights: str | None = Field(None, description="Archive with the weights of alexnet and vgg16; once.")
    resize: int | None = Field(
        None, ge=32, description="Side (pixels) that alexnet and vgg16 see images at; 128 if not given."
    )
    reference_kind: str = Field(
        "not stated", description="What the reference stands for: natural, balanced, ..."
    )
    k: int = Field(5, ge=1, description="Neighbours of precision, recall, density and coverage.")
    subsets: int = Field(100, ge=1, description="Random subsets of the kernel distance.")
    subset_size: int | None = Field(
        None, ge=2, description="Images of a subset; 1,000 or half of the smaller set if not given."
    )


def checked(values: dict[str, Any]) -> EvaluateConfig:
    """Settings from plain values. Raises `ConfigError`."""
    try:
        return TypeAdapter(EvaluateConfig).validate_python(values)
    except ValidationError as e:
        raise ConfigError("; ".join(_sentence(error) for error in e.errors())) from None
