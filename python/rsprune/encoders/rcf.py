"""Random convolutional features: filters are whitened patches of the pool itself, so no weights are needed.

After MOSAIKS (Rolf et al., Nature Communications 12, 2021) and Coates and Ng (2012). Differences, each by
measurement on labelled Sentinel-2 tiles (docs/encoders.md): whitening is milder, the rectified responses have
no bias, and there is no maximum beside the mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rsprune.encoders import checked_image
from rsprune.errors import ConfigError

WHITENING = 0.1  # added to the eigenvalues, of which the sum is 1
ROWS = 512  # positions per matrix product: responses stay in the cache


class RandomConvolutions:
    """The encoder rcf: mean of the positive and of the negative responses to every filter.

    It computes on the CPU, on any number of bands, at the resolution of the image: a larger image is looked at
    on a coarser grid of positions, not made smaller.
    """

    name = "rcf"
    device = "cpu"
    weight_hash = ""
    dim = 0  # until its filters are there
    fit_images = 512
    size = 6  # side of a filter in pixels
    filters = 512
    grid = 64  # positions along a side, at most
    patches = 32  # of an image, for the whitening

    def fit(self, images: Iterable[np.ndarray], seed: int) -> dict[str, np.ndarray]:
        """Filters [size, size, C, F] float32 and offsets [F] for pixels of 0 to 255, F at most `filters`."""
        patches, mean, std = self._drawn(images, np.random.default_rng(seed))
        # Flat patches would give filters that see colour only, and the same one many times.
        textured = np.flatnonzero((patches != patches[:, :1]).any(axis=(1, 2)))
        x = ((patches - mean) / std).reshape(len(patches), -1)
        x -= x.mean(axis=1, keepdims=True)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x /= np.where(length > 1e-6, length, 1)  # of equal numbers a rounding error is left
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        whitening = (vectors / (np.maximum(values, 0) + WHITENING)) @ vectors.T
        # The first patch of every image, then the second: filters of as many images as possible.
        chosen = x[textured if len(textured) else slice(None)][: self.filters]
        filters = (chosen @ whitening).reshape(len(chosen), self.size, self.size, -1) / std
        offsets = -(filters * mean).sum(axis=(1, 2, 3))
        return {
            "filters": np.ascontiguousarray(filters.transpose(1, 2, 3, 0), np.float32),
            "offsets": offsets.astype(np.float32),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes over filters and offsets."""
        self._filters = np.ascontiguousarray(state["filters"], np.float32)
        self._offsets = np.ascontiguousarray(state["offsets"], np.float32)
        self._matrix = self._filters.reshape(-1, len(self._offsets))
        self.dim = 2 * len(self._offsets)
        content = self._filters.tobytes() + self._offsets.tobytes()
        self.weight_hash = hashlib.sha256(content).hexdigest()

    def check_bands(self, bands: Mapping[str, int]) -> None:
        """Raises `ConfigError` where sources differ in their bands, from each other or from the filters."""
        wanted = {"the run": self._filters.shape[2]} if self.dim else {}
        (first, count), *others = {**wanted, **bands}.items()
        for name, other in others:
            if other != count:
                raise ConfigError(
                    f"the encoder rcf needs the same bands everywhere, but {first} has {count} "
                    f"and {name} has {other}: choose as many of each with --bands"
                )

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features [n, dim] float32 of n images, each uint8 [H, W, C] of any size."""
        if not self.dim:
            raise RuntimeError("the encoder rcf has no filters yet: give it a state with restore")
        features = [self._features(self._windows(checked_image(image))) for image in images]
        return np.stack(features) if features else np.empty((0, self.dim), np.float32)

    def _features(self, windows: np.ndarray) -> np.ndarray:
        if windows.shape[-1] != self._filters.shape[2]:
            raise ConfigError(
                f"the encoder rcf has filters of {self._filters.shape[2]} bands, an image has {windows.shape[-1]}"
            )
        x = windows.reshape(-1, len(self._matrix)).astype(np.float32)
        sums, magnitudes = np.zeros((2, len(self._offsets)))
        for start in range(0, len(x), ROWS):
            response = x[start : start + ROWS] @ self._matrix
            response += self._offsets
            sums += response.sum(axis=0)
            magnitudes += np.abs(response, out=response).sum(axis=0)
        # max(r, 0) and max(-r, 0) out of |r| and r.
        return (np.concatenate([magnitudes + sums, magnitudes - sums]) / (2 * len(x))).astype(np.float32)

    def _windows(self, image: np.ndarray) -> np.ndarray:
        """All patches on the grid, [h, w, size, size, C]."""
        lacking = [max(0, self.size - side) for side in image.shape[:2]]
        if any(lacking):
            image = np.pad(image, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="edge")
        windows = sliding_window_view(image, (self.size, self.size), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
        step_y, step_x = (-(-n // self.grid) for n in windows.shape[:2])
        return windows[::step_y, ::step_x]

    def _drawn(
        self, images: Iterable[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Patches [n, size * size, C] of all images, the first of each first; band means and deviations [C]."""
        drawn: list[np.ndarray] = []
        moments: list[list[np.ndarray]] = []
        for image in images:
            windows = self._windows(checked_image(image))
            if drawn and windows.shape[-1] != drawn[0].shape[-1]:
                raise ConfigError(
                    f"the encoder rcf needs images of as many bands, got {drawn[0].shape[-1]} "
                    f"and {windows.shape[-1]}: choose them with --bands"
                )
            y, x = (rng.integers(0, n, self.patches) for n in windows.shape[:2])
            drawn.append(windows[y, x].reshape(self.patches, -1, image.shape[2]))
            pixels = image.reshape(-1, image.shape[2])
            moments.append([pixels.mean(axis=0), np.square(pixels, dtype=np.float64).mean(axis=0)])
        if not drawn:
            raise ConfigError("the encoder rcf learns its filters from the images, but none can be read")
        mean, square = np.mean(moments, axis=0)
        std = np.sqrt(np.maximum(square - mean**2, 0))
        std[std < 1e-3] = 1  # a band without contrast; 8-bit values are whole numbers
        patches = np.stack(drawn, axis=1).reshape(-1, *drawn[0].shape[1:])
        return patches, mean, std
