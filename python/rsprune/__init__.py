"""Prune remote-sensing image collections to the part worth training on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from rsprune import _C

if TYPE_CHECKING:
    __version__: str

    from rsprune.api import prune
    from rsprune.cluster import KMeans
    from rsprune.ops import kmeans_assign, patch_entropy
    from rsprune.selection import select
    from rsprune.transformer import PatchEntropy

__all__ = [
    "KMeans",
    "PatchEntropy",
    "__version__",
    "cuda_available",
    "cuda_unavailable",
    "kmeans_assign",
    "patch_entropy",
    "prune",
    "select",
]

# Imported on first use, so that `import rsprune` takes milliseconds.
_LAZY = {
    "KMeans": "rsprune.cluster",
    "PatchEntropy": "rsprune.transformer",
    "kmeans_assign": "rsprune.ops",
    "patch_entropy": "rsprune.ops",
    "prune": "rsprune.api",
    "select": "rsprune.selection",
}


def cuda_unavailable() -> str | None:
    """Why the CUDA kernels cannot run here, in words; None where they can."""
    return _C.cuda_unavailable()


def cuda_available() -> bool:
    """Whether the CUDA kernels can run here."""
    return cuda_unavailable() is None


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    elif name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("rsprune")
        except PackageNotFoundError:  # imported from a source tree that was never installed
            value = "0+unknown"
    else:
        raise AttributeError(f"module 'rsprune' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
