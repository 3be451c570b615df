"""Kept images for those who train: for torch, for torchgeo, and for Hugging Face `datasets`.

Nothing is exported: images are read from where they lie, whether they are files, windows of scenes, members of tar
shards or rows of tables.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from rsprune.errors import ConfigError

if TYPE_CHECKING:
    from rsprune.datasets.huggingface import to_huggingface
    from rsprune.datasets.kept import KeptDataset
    from rsprune.datasets.windows import KeptWindowSampler

__all__ = ["KeptDataset", "KeptWindowSampler", "to_huggingface"]

# Where a name lies, and what it needs: packages as they are imported, and the extra that brings them.
_LAZY = {
    "KeptDataset": ("rsprune.datasets.kept", ("torch",), "torch"),
    "KeptWindowSampler": ("rsprune.datasets.windows", ("torch", "torchgeo"), "torchgeo"),
    "to_huggingface": ("rsprune.datasets.huggingface", ("datasets",), "datasets"),
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'rsprune.datasets' has no attribute {name!r}")
    module, packages, extra = _LAZY[name]
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as e:
            if e.name != package:
                raise
            raise ConfigError(f"{name} needs {package}: run `pip install 'rsprune[{extra}]'`") from None
    globals()[name] = value = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
