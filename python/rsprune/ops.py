"""The kernels on arrays: NumPy, PyTorch (CPU and CUDA) or CuPy in, the same library out.

Results are allocated here, on the device of the first argument, unless `out` is given; CUDA work goes to
the caller's current stream. Arrays that are not C-contiguous, or not of native byte order, are copied first;
read-only arrays (memory maps) are fine as inputs. What a kernel computes is defined by `rsprune.reference`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from rsprune import _C
from rsprune.reference import bin_table, scale_pairs

Array = Any  # NumPy, PyTorch or CuPy
Scale = Sequence[float] | Sequence[Sequence[float]]


def patch_entropy(
    images: Array,  # [N, H, W] or [N, H, W, C]
    patch: int = 32,
    *,
    valid: Array | None = None,  # [N, H, W]
    scale: Scale | None = None,
    out: Array | None = None,
) -> Array:
    """Shannon entropy, in bits, of the 256-bin histogram of each patch of each band.

    Patches are `patch` x `patch` pixels without overlap; a ragged last row or column of patches counts its own
    pixels only. A constant patch gives exactly 0; every device and thread count gives the same bits.

    Args:
        images: uint8 or uint16 `[N, H, W]` or `[N, H, W, C]`, as decoders leave it.
        patch: Side of a patch in pixels.
        valid: bool or uint8 `[N, H, W]`; pixels where it is 0 are not counted.
        scale: `(lo, hi)` for all bands or one pair per band: value v counts in bin
            `floor((v - lo) / (hi - lo) * 256)`, clipped to 0..255. Needed for uint16; uint8 defaults to (0, 256),
            one bin per value.
        out: float32 array of the result's shape to write to.

    Returns:
        float32 `[N, ceil(H / patch), ceil(W / patch)]`, with `C` last if the images have bands; NaN where no
        pixel of a patch is valid.

    Raises:
        ValueError: An argument has the wrong shape, dtype or device.
    """
    patch = operator.index(patch)
    images = _input("images", images)
    if images.ndim not in (3, 4):
        raise ValueError(f"images must have shape [N, H, W] or [N, H, W, C], got {list(images.shape)}")
    if patch < 1:
        raise ValueError(f"patch must be at least 1 pixel, got {patch}")
    bits = {"uint8": 8, "uint16": 16}.get(_dtype_name(images))
    if bits is None:
        raise ValueError(f"images must be uint8 or uint16, got {_dtype_name(images)}")
    if scale is None and bits == 16:
        raise ValueError("scale must be given for uint16 images, got None")
    channels = images.shape[3] if images.ndim == 4 else 1
    table = None
    if scale is not None:
        pairs = scale_pairs(scale, channels)
        if bits == 16 or set(pairs) != {(0.0, 256.0)}:
            table = _place_like(_bin_table(pairs, bits), images)
    if valid is not None:
        valid = _input("valid", valid)
    n, height, width = images.shape[:3]
    shape = (n, -(-height // patch), -(-width // patch), *images.shape[3:])
    out = _empty(shape, "float32", images) if out is None else _output("out", out)
    with _on_device(images):
        _C.patch_entropy(images, valid, table, out, patch, _stream(images))
    return out


def kmeans_assign(
    x: Array,  # [N, D]
    centers: Array,  # [K, D]
    *,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Nearest centre of each row, and the squared Euclidean distance to it.

    The label is the argmin of the exact squared distance between the given values, ties to the lower index.
    A row with a NaN or an infinity gets label -1 and distance NaN; a centre with one is never chosen.

    Args:
        x: float32, float16 or bfloat16 `[N, D]`.
        centers: float32 `[K, D]`.
        out: Arrays to write to: int32 `[N]` labels and float32 `[N]` distances.

    Returns:
        Labels, int32 `[N]`, and squared distances, float32 `[N]`.

    Raises:
        ValueError: An argument has the wrong shape, dtype or device.
    """
    x = _input("x", x)
    centers = _input("centers", centers)
    if x.ndim != 2:
        raise ValueError(f"x must have shape [N, D], got {list(x.shape)}")
    if out is None:
        labels, distances = _empty(x.shape[:1], "int32", x), _empty(x.shape[:1], "float32", x)
    else:
        labels, distances = _output("out[0]", out[0]), _output("out[1]", out[1])
    if _library(x) == "cupy" or (_library(x) == "torch" and x.is_cuda):
        with _on_device(x):
            workspace = _empty((_C.kmeans_workspace(x, centers),), "uint8", x)
            _C.kmeans_assign(x, centers, labels, distances, _stream(x), workspace)
    else:
        _C.kmeans_assign(x, centers, labels, distances)
    return labels, distances


_bin_table = functools.lru_cache(maxsize=64)(bin_table)


def _library(x: Array) -> str:
    module = type(x).__module__.partition(".")[0]
    return module if module in ("torch", "cupy") else "numpy"


def _dtype_name(x: Array) -> str:
    return str(x.dtype).removeprefix("torch.")


def _input(name: str, x: Array) -> Array:
    library = _library(x)
    if library == "torch":
        return x.detach().contiguous()
    if library == "cupy":
        import cupy

        return cupy.ascontiguousarray(x)
    if not hasattr(x, "__array__") and hasattr(x, "__dlpack__"):
        return x
    x = np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be an array of numbers, got dtype {x.dtype}")
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)


def _output(name: str, x: Array) -> Array:
    if not hasattr(x, "__dlpack__"):
        raise ValueError(f"{name} must be a NumPy, PyTorch or CuPy array, got {type(x).__name__}")
    return x


def _empty(shape: Sequence[int], dtype: str, like: Array) -> Array:
    library = _library(like)
    if library == "torch":
        import torch

        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=like.device)
    if library == "cupy":
        import cupy

        with like.device:
            return cupy.empty(shape, dtype)
    return np.empty(shape, dtype)


def _place_like(table: np.ndarray, like: Array) -> Array:
    library = _library(like)
    if library == "torch" and like.is_cuda:
        import torch

        return torch.from_numpy(table.copy()).to(like.device)
    if library == "cupy":
        import cupy

        with like.device:
            return cupy.asarray(table)
    return table


def _on_device(x: Array) -> AbstractContextManager[Any]:
    """Makes the GPU of an array current, as its library does it: without a context on the one that was."""
    library = _library(x)
    if library == "torch" and x.is_cuda:
        import torch

        return torch.cuda.device(x.device)
    return x.device if library == "cupy" else nullcontext()


def _stream(x: Array) -> int:
    library = _library(x)
    if library == "torch" and x.is_cuda:
        import torch

        return torch.cuda.current_stream(x.device).cuda_stream
    if library == "cupy":
        import cupy

        return int(cupy.cuda.get_current_stream(x.device.id).ptr)
    return 0
