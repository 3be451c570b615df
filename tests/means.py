"""An encoder that is quick and has learnt nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Means:
    """Means of twelve stretches of an image."""

    name, weight_hash, device, dim = "means", "", "cpu", 12

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        rows = [[part.mean() for part in np.array_split(image.ravel(), self.dim)] for image in images]
        return np.array(rows, np.float32)
