"""How far samples are from real images: distances, precision and recall, diversity, memorisation.

Every function takes features [N, D] of somebody's extractor, NumPy arrays or torch tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsprune.evaluation.copies import Memorization, memorization
    from rsprune.evaluation.frechet import FDInfinity, fd_infinity, frechet_distance
    from rsprune.evaluation.kernel import KernelDistance, kernel_distance
    from rsprune.evaluation.neighbours import PRDC, prdc
    from rsprune.evaluation.vendi import vendi_score

__all__ = [
    "PRDC",
    "FDInfinity",
    "KernelDistance",
    "Memorization",
    "fd_infinity",
    "frechet_distance",
    "kernel_distance",
    "memorization",
    "prdc",
    "vendi_score",
]

_MODULES = {
    "PRDC": "neighbours",
    "FDInfinity": "frechet",
    "KernelDistance": "kernel",
    "Memorization": "copies",
    "fd_infinity": "frechet",
    "frechet_distance": "frechet",
    "kernel_distance": "kernel",
    "memorization": "copies",
    "prdc": "neighbours",
    "vendi_score": "vendi",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'rsprune.evaluation' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rsprune.evaluation.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
