"""Calls the kernels on the arrays in FOLDER, once and then twice, with a mark before, between and after.

Run under callgrind with `--dump-before=getppid`: the part with two calls less the part with one is one call.
"""

import os
import sys
from pathlib import Path

import numpy as np

from rsprune import _C

folder = Path(sys.argv[1])
pixels, x, centers = (np.load(folder / f"{name}.npy") for name in ("pixels", "x", "centers"))
bits = np.empty((len(pixels), 2, 2, 3), np.float32)
labels, distances = np.empty(len(x), np.int32), np.empty(len(x), np.float32)

CALLS = (
    lambda: _C.patch_entropy(pixels, None, None, bits, 32),
    lambda: _C.kmeans_assign(x, centers, labels, distances),
)
for call in CALLS:
    call()  # tables and thread pools are made once
    for count in (1, 2):
        os.getppid()
        for _ in range(count):
            call()
    os.getppid()
