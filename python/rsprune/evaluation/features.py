"""Feature matrices as the metrics take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = Any  # a NumPy array or a torch tensor
ROWS = 4096  # that are looked at together


def as_features(name: str, x: Array, least: int = 2) -> np.ndarray:
    """`x` [N, D] as float32 or float64 of the same values.

    Raises:
        ValueError: `x` is no matrix of finite real numbers, or has fewer than `least` rows.
    """
    if type(x).__module__.partition(".")[0] == "torch":
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be real numbers [N, D], got {x.dtype} {list(x.shape)}")
    if len(x) < least:
        raise ValueError(f"{name} has {len(x)} rows, but at least {least} are needed")
    x = x.astype(np.float32 if x.dtype in (np.float16, np.float32) else np.float64, copy=False)
    for rows in blocks(len(x)):
        broken = ~np.isfinite(x[rows]).all(axis=1)
        if broken.any():
            raise ValueError(
                f"{name} has NaN or infinity in row {rows.start + int(broken.argmax())} of {len(x)}"
            )
    return x


def as_pair(
    samples: Array, reference: Array, least: int = 2, names: tuple[str, str] = ("samples", "reference")
) -> tuple[np.ndarray, np.ndarray]:
    """Both [N, D] and [M, D] as `as_features` gives them. Raises `ValueError`, also where D differs."""
    x, y = as_features(names[0], samples, least), as_features(names[1], reference, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} have {x.shape[1]} features but {names[1]} have {y.shape[1]}: use one extractor for both"
        )
    return x, y


def blocks(n: int, rows: int = ROWS) -> Iterator[slice]:
    """Slices that cover n rows."""
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
