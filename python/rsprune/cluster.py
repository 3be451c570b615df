"""k-means on the assignment kernel, with scikit-learn's conventions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from rsprune import _C
from rsprune.ops import kmeans_assign

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 18  # rows read at a time, so that a memory map is never in memory as a whole
_SEED_ROWS = 32  # per cluster, that k-means++ chooses from; with more, inertia gains less than seeds differ
_CANDIDATES = 16  # columns of the seeding kernel


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Lloyd's k-means with exact assignment, and a centre update that no thread count changes.

    Data are used as float32 or, where they already are, float16; other types are converted to float32.
    A memory map is read in blocks, once per iteration. With tensors on a CUDA device (PyTorch, CuPy), or with
    `device`, the iterations run there; `labels_` is then a PyTorch tensor on that device.

    Args:
        n_clusters: Number of clusters, K.
        init: "k-means++" (greedy, on a sample of at most 32 rows per cluster), "random" (distinct rows), or
            centres `[K, D]`.
        max_iter: Most iterations.
        tol: Stop when the centres' squared movement is at most this fraction of the mean variance.
        random_state: Seed or generator.
        device: PyTorch device for the iterations, as "cuda"; rows that do not fit its memory are streamed from
            the host in blocks. None: where X is.

    Attributes:
        cluster_centers_: float32 `[K, D]`.
        labels_: int32 `[N]`, nearest centre of each row.
        inertia_: Sum of squared distances to the nearest centre.
        n_iter_: Iterations run.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        max_iter: int = 50,
        tol: float = 1e-4,
        random_state: Any = None,
        device: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None) -> KMeans:  # X: [N, D]
        """Finds the centres.

        Raises:
            ValueError: A setting or the data cannot be used; fewer rows than clusters.
        """
        self._check_settings()
        if self.device is not None or _on_device(X):
            return self._fit_on_device(X)
        x = self._check_data(X, reset=True)
        if len(x) < self.n_clusters:
            raise ValueError(f"n_samples={len(x)} should be >= n_clusters={self.n_clusters}.")
        centers = self._initial_centers(
            lambda rows: x[rows].astype(np.float32), x.shape, check_random_state(self.random_state)
        )
        tolerance = self.tol * _mean_variance(x) if self.tol else 0.0

        labels = np.full(len(x), -1, np.int32)
        distances = np.empty(len(x), np.float32)
        iterations, unchanged, shift = 0, False, np.inf
        while iterations < self.max_iter and not unchanged and shift > tolerance:
            moved, unchanged = _iterate(x, centers, labels, distances)
            shift = np.square(moved.astype(np.float64) - centers).sum()
            if not unchanged:
                centers = moved
            iterations += 1
        if not unchanged:
            _assign(x, centers, labels, distances)

        self._warn_of_empty(len(np.unique(labels)))
        self.cluster_centers_ = centers
        self.labels_: Any = labels
        self.inertia_ = float(distances.sum(dtype=np.float64))
        self.n_iter_ = iterations
        return self

    def _fit_on_device(self, X: Any) -> KMeans:
        try:
            import torch
        except ImportError as error:
            raise ImportError(
                "KMeans on a device needs PyTorch; install it with: pip install 'rsprune[torch]'"
            ) from error
        x: Any = _to_torch(X) if _on_device(X) else self._check_data(X, reset=True, finite=False)
        device: torch.device = torch.device(x.device if self.device is None else self.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return self._fit_rows(x, device)

    def _fit_rows(self, x: Any, device: torch.device) -> KMeans:
        import torch

        from rsprune import cluster_device

        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"X must have shape [N, D], got {list(x.shape)}")
        self.n_features_in_ = x.shape[1]
        if len(x) < self.n_clusters:
            raise ValueError(f"n_samples={len(x)} should be >= n_clusters={self.n_clusters}.")
        rows = cluster_device.Rows(x, device)
        cluster_device.check_finite(rows)
        centers = self._initial_centers(rows.take, rows.shape, check_random_state(self.random_state))
        fitted = cluster_device.fit(
            rows,
            centers,
            max_iter=self.max_iter,
            tolerance=self.tol * cluster_device.mean_variance(rows) if self.tol else 0.0,
            fill_empty=_fill_empty,
        )
        self._warn_of_empty(len(torch.unique(fitted.labels)))
        self.cluster_centers_ = fitted.centers.cpu().numpy()
        self.labels_ = fitted.labels
        self.inertia_ = float(fitted.distances.sum(dtype=torch.float64))
        self.n_iter_ = fitted.iterations
        return self

    def _warn_of_empty(self, found: int) -> None:
        if found < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({found}) found smaller than n_clusters ({self.n_clusters}). "
                "Possibly due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def predict(self, X: Any) -> Any:  # X: [N, D]
        """Nearest centre of each row: int32 `[N]`, on the device of X."""
        check_is_fitted(self)
        if _on_device(X):
            import torch

            x = _to_torch(X)
            return kmeans_assign(x, torch.from_numpy(self.cluster_centers_).to(x.device))[0]
        return kmeans_assign(self._check_data(X, reset=False), self.cluster_centers_)[0]

    def transform(self, X: Any) -> np.ndarray:  # X: [N, D]
        """Euclidean distance to every centre: `[N, K]`."""
        check_is_fitted(self)
        distances: np.ndarray = euclidean_distances(self._check_data(X, reset=False), self.cluster_centers_)
        return distances

    def score(self, X: Any, y: Any = None) -> float:  # X: [N, D]
        """Minus the sum of squared distances to the nearest centre."""
        check_is_fitted(self)
        distances = kmeans_assign(self._check_data(X, reset=False), self.cluster_centers_)[1]
        return -float(distances.sum(dtype=np.float64))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _check_settings(self) -> None:
        for name in ("n_clusters", "max_iter"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.tol, Real) or not self.tol >= 0:
            raise ValueError(f"tol must be a number of at least 0, got {self.tol!r}")
        if isinstance(self.init, str) and self.init not in ("k-means++", "random"):
            raise ValueError(f"init must be 'k-means++', 'random' or an array of centres, got {self.init!r}")

    def _check_data(self, X: Any, *, reset: bool, finite: bool = True) -> np.ndarray:
        kept = [np.float32, np.float16]
        x: np.ndarray = validate_data(
            self, _to_host(X), reset=reset, dtype=kept, order="C", ensure_all_finite=False
        )
        for block in (
            _blocks(x) if finite else ()
        ):  # in blocks: a mask of all of X could be larger than memory
            if not np.isfinite(block).all():
                what = "NaN" if np.isnan(block).any() else "infinity or a value too large for float32"
                raise ValueError(f"Input X contains {what}; KMeans needs finite values.")
        return x

    def _initial_centers(
        self,
        take: Callable[[np.ndarray], np.ndarray],  # rows by number, float32
        shape: tuple[int, ...],
        random: np.random.RandomState,
    ) -> np.ndarray:
        n, dim = shape
        if not isinstance(self.init, str):
            centers = np.array(_to_host(self.init, "init"), np.float32, order="C")
            if centers.shape != (self.n_clusters, dim):
                raise ValueError(
                    f"init must have shape [{self.n_clusters}, {dim}], got {list(centers.shape)}"
                )
            if not np.isfinite(centers).all():
                raise ValueError("init must be finite, got NaN or infinity")
            return centers
        wanted = self.n_clusters if self.init == "random" else _SEED_ROWS * self.n_clusters
        rows = np.arange(n) if wanted >= n else np.sort(random.choice(n, wanted, replace=False))
        sample = take(rows)
        if self.init == "random":
            return random.permutation(sample)
        return _plus_plus(sample, self.n_clusters, random)


def _on_device(x: Any) -> bool:
    module = type(x).__module__.partition(".")[0]
    return module == "cupy" or (module == "torch" and x.device.type == "cuda")


def _to_torch(x: Any) -> Any:
    """A PyTorch or CuPy array as a tensor of a type the kernels take, without a copy where it is one."""
    import torch

    x = x.detach() if isinstance(x, torch.Tensor) else torch.utils.dlpack.from_dlpack(x)
    return x if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x.float()


def _to_host(x: Any, name: str = "X") -> Any:
    """A PyTorch or CuPy array as NumPy, where that needs no copy between devices."""
    module = type(x).__module__.partition(".")[0]
    if module == "cupy" or (module == "torch" and x.device.type != "cpu"):
        raise ValueError(
            f"{name} must be on the cpu, got {getattr(x, 'device', module)}; move it with .cpu() or .get()"
        )
    if module == "torch":
        x = x.detach()
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return x


def _blocks(*arrays: np.ndarray) -> Iterator[Any]:
    for first in range(0, len(arrays[0]), _BLOCK):
        parts = tuple(a[first : first + _BLOCK] for a in arrays)
        yield parts if len(parts) > 1 else parts[0]


def _mean_variance(x: np.ndarray) -> float:
    """Variance of each feature, averaged over the features."""
    total = sum(block.sum(axis=0, dtype=np.float64) for block in _blocks(x))
    mean = total / len(x)
    squares = 0.0
    for first in range(0, len(x), 4096):
        squares += float(np.square(x[first : first + 4096] - mean).sum())
    return squares / x.size


def _assign(x: np.ndarray, centers: np.ndarray, labels: np.ndarray, distances: np.ndarray) -> None:
    for rows, label, distance in _blocks(x, labels, distances):
        kmeans_assign(rows, centers, out=(label, distance))


def _iterate(
    x: np.ndarray, centers: np.ndarray, labels: np.ndarray, distances: np.ndarray
) -> tuple[np.ndarray, bool]:
    """One pass over x: new labels and distances in place; returns the moved centres and if no label changed."""
    sums = np.zeros(centers.shape, np.float64)
    counts = np.zeros(len(centers), np.int64)
    unchanged = True
    for rows, label, distance in _blocks(x, labels, distances):
        before = label.copy()
        kmeans_assign(rows, centers, out=(label, distance))
        unchanged = unchanged and np.array_equal(before, label)
        _C.kmeans_sums(rows, label, sums, counts)
    _fill_empty(lambda i: x[i].astype(np.float64), labels, distances, sums, counts)
    moved = centers.copy()
    filled = counts > 0
    moved[filled] = sums[filled] / counts[filled, None]
    return moved, unchanged


def _fill_empty(
    row_of: Callable[[int], np.ndarray],
    labels: np.ndarray,
    distances: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Gives each empty cluster the row farthest from its centre, taken from a cluster that keeps others."""
    empty = np.flatnonzero(counts == 0)
    if not empty.size:
        return
    farthest = iter(np.argsort(-distances, kind="stable"))
    for k in empty:
        for row in farthest:
            if distances[row] == 0:
                return  # fewer distinct rows than clusters
            giver = labels[row]
            if counts[giver] > 1:
                value = row_of(row)
                sums[giver] -= value
                counts[giver] -= 1
                sums[k], counts[k] = value, 1
                break


def _plus_plus(x: np.ndarray, k: int, random: np.random.RandomState) -> np.ndarray:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): of 2 + ln K draws, the one that lowers the inertia most."""
    x = np.ascontiguousarray(x, np.float32)
    n, dim = x.shape
    trials = min(2 + int(np.log(k)), _CANDIDATES)
    candidates = np.zeros((dim, _CANDIDATES), np.float32)
    closer = np.empty((n, _CANDIDATES), np.float32)
    potential = np.empty(_CANDIDATES)
    closest = np.full(n, np.inf, np.float32)
    chosen = np.empty(k, np.int64)
    draws = np.array([random.randint(n)])
    for i in range(k):
        candidates[:, : len(draws)] = x[draws].T
        _C.kmeans_closer(x, candidates, closest, closer, potential)
        best = potential[: len(draws)].argmin()
        chosen[i], closest = draws[best], closer[:, best].copy()
        weights = np.cumsum(closest, dtype=np.float64)
        if weights[-1] == 0:  # every row coincides with a chosen one
            chosen[i + 1 :] = random.choice(n, k - i - 1)
            break
        draws = np.searchsorted(weights, random.random_sample(trials) * weights[-1], side="right")
        draws = np.minimum(draws, n - 1)
    return x[chosen]
