"""Lloyd's iterations with PyTorch tensors: on a CUDA device nothing but a few numbers comes back per iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rsprune import _C
from rsprune.ops import kmeans_assign

_BLOCK_BYTES = 1 << 28  # of rows that are streamed; two such blocks are on the device at a time
_COPY_BYTES = 1 << 28  # of a float64 copy of rows; there are two at a time
_FREE_SHARE = 0.7  # of free device memory that resident rows may take


@dataclass(frozen=True)
class Fitted:
    """What `fit` finds; tensors are on the device."""

    centers: torch.Tensor  # [K, D] float32
    labels: torch.Tensor  # [N] int32
    distances: torch.Tensor  # [N] float32, squared
    iterations: int


class Rows:
    """`[N, D]` rows for a device, which holds all of them, or two blocks at a time that come through pinned memory.

    Args:
        x: float32, float16 or (tensors) bfloat16; a NumPy array, which may be a memory map, or a tensor.
        device: Where to compute.
        block_rows: Rows of a block where they are streamed; None: decided by the free memory.
    """

    def __init__(self, x: Any, device: torch.device, block_rows: int | None = None) -> None:
        self.device = device
        self.shape = tuple(x.shape)
        self._host: Any = None
        self._resident: Any = None
        if isinstance(x, torch.Tensor) and x.device == device:
            self._resident = x.contiguous()
        elif block_rows is None and self._fits(x):
            self._resident = _tensor(x).to(device).contiguous()
        else:
            self._host = x
            row_bytes = max(_tensor(x[:1]).nbytes, 1)
            self._block = block_rows or max(_BLOCK_BYTES // row_bytes, 1)
        self.dtype = _tensor(x[:1]).dtype
        self._bounds: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def _fits(self, x: Any) -> bool:
        if self.device.type != "cuda":
            return True
        return x.nbytes < _FREE_SHARE * torch.cuda.mem_get_info(self.device)[0]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number: float32 `[n, D]` on the host."""
        if self._host is not None:
            return _tensor(self._host[rows]).float().cpu().numpy()
        return self._resident[torch.from_numpy(rows).to(self.device)].float().cpu().numpy()

    def bounds(self) -> torch.Tensor | None:
        """What certificates need to know of resident rows, measured once; None where it would not be used."""
        if self._host is not None or self.device.type != "cuda":
            return None
        if self._bounds is None:
            self._bounds = torch.empty(len(self), 2, dtype=torch.float32, device=self.device)
            _C.kmeans_bounds(self._resident, self._bounds, _stream(self._resident))
        return self._bounds

    def __iter__(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of rows on the device, in order; a block is valid until the next one is asked for."""
        if self._host is None:
            yield slice(0, len(self)), self._resident
        elif self.device.type == "cuda":
            yield from self._stream_blocks()
        else:
            for rows in self._slices():
                yield rows, _tensor(self._host[rows])

    def _slices(self) -> list[slice]:
        return [slice(i, min(i + self._block, len(self))) for i in range(0, len(self), self._block)]

    def _stream_blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        shape = (min(self._block, len(self)), self.shape[1])
        staged = [torch.empty(shape, dtype=self.dtype, pin_memory=True) for _ in range(2)]
        blocks = [torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in range(2)]
        used = [torch.cuda.Event() for _ in range(2)]
        compute, copy = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        copy.wait_stream(compute)  # the buffers may still be in use under another name
        slices = self._slices()

        def send(i: int) -> None:
            b, rows = i % 2, slices[i]
            n = rows.stop - rows.start
            copied[b].synchronize()  # the staging buffer's last copy; at once the first time
            staged[b][:n].copy_(_tensor(self._host[rows]))
            with torch.cuda.stream(copy):
                copy.wait_event(used[b])
                blocks[b][:n].copy_(staged[b][:n], non_blocking=True)
                copied[b].record(copy)

        with torch.cuda.device(self.device):
            try:
                send(0)
                for i, rows in enumerate(slices):
                    compute.wait_event(copied[i % 2])
                    if i + 1 < len(slices):
                        send(i + 1)
                    yield rows, blocks[i % 2][: rows.stop - rows.start]
                    used[i % 2].record(compute)
            finally:  # also where nobody asks for the next block: what has the memory next must wait for the copy
                compute.wait_stream(copy)


def fit(
    rows: Rows,
    centers: np.ndarray,  # [K, D]
    *,
    max_iter: int,
    tolerance: float,
    fill_empty: Callable[..., None],
) -> Fitted:
    """Lloyd's iterations from `centers`, as `rsprune.cluster.KMeans.fit` runs them on the host."""
    device = rows.device
    center = torch.from_numpy(np.ascontiguousarray(centers, np.float32)).to(device)
    labels = torch.full((len(rows),), -1, dtype=torch.int32, device=device)
    distances = torch.empty(len(rows), dtype=torch.float32, device=device)
    iterations, unchanged, shift = 0, False, np.inf
    while iterations < max_iter and not unchanged and shift > tolerance:
        sums = torch.zeros(center.shape, dtype=torch.float64, device=device)
        counts = torch.zeros(len(center), dtype=torch.int64, device=device)
        changed = torch.zeros((), dtype=torch.bool, device=device)
        for part, block in rows:
            before = labels[part].clone()
            _assign(rows, block, center, labels[part], distances[part])
            changed |= (before != labels[part]).any()
            _add(block, labels[part], sums, counts)
        if not counts.all():  # rare, so it may cost another pass
            measure(rows, center, labels, distances)
            _fill(rows, labels, distances, sums, counts, fill_empty)
        moved = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), center.double()).float()
        numbers = torch.stack([(moved.double() - center.double()).square().sum(), (~changed).double()])
        shift, unchanged = numbers.tolist()
        if not unchanged:
            center = moved
        iterations += 1
    measure(rows, center, labels, distances)
    return Fitted(center, labels, distances, iterations)


def measure(rows: Rows, center: torch.Tensor, labels: torch.Tensor, distances: torch.Tensor) -> None:
    """Labels `[N]` and squared distances `[N]` of all rows, in place."""
    for part, block in rows:
        kmeans_assign(block, center, out=(labels[part], distances[part]))


def check_finite(rows: Rows) -> None:
    """Raises:
    ValueError: A value is NaN or infinite."""
    for _, block in rows:
        for part in block.split(_copied_rows(rows)):
            if not torch.isfinite(part).all():
                what = "NaN" if torch.isnan(part).any() else "infinity or a value too large for float32"
                raise ValueError(f"Input X contains {what}; KMeans needs finite values.")


def mean_variance(rows: Rows) -> float:
    """Variance of each feature, averaged over the features."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for _, block in rows:
        for part in block.split(_copied_rows(rows)):
            total += part.double().sum(0)
    mean = total / len(rows)
    squares = torch.zeros((), dtype=torch.float64, device=rows.device)
    for _, block in rows:
        for part in block.split(_copied_rows(rows)):
            squares += (part.double() - mean).square().sum()
    return float(squares) / (rows.shape[0] * rows.shape[1])


def _copied_rows(rows: Rows) -> int:
    return max(1, _COPY_BYTES // (8 * max(rows.shape[1], 1)))


def _assign(
    rows: Rows, block: torch.Tensor, center: torch.Tensor, labels: torch.Tensor, distances: torch.Tensor
) -> None:
    if block.is_cuda:  # labels alone: distances would need another look at x
        memory = _memory(_C.kmeans_workspace(block, center), block)
        _C.kmeans_assign(
            block, center, labels, None, _stream(block), memory, rows.bounds() if len(memory) else None
        )
    else:
        _C.kmeans_assign(block, center, labels, distances)


def _add(block: torch.Tensor, labels: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> None:
    if block.is_cuda:
        memory = _memory(_C.kmeans_sums_workspace(block, sums), block)
        _C.kmeans_sums(block, labels, sums, counts, _stream(block), memory)
    else:
        _C.kmeans_sums(block, labels, sums, counts)


def _fill(
    rows: Rows,
    labels: torch.Tensor,
    distances: torch.Tensor,
    sums: torch.Tensor,
    counts: torch.Tensor,
    fill_empty: Callable[..., None],
) -> None:
    host = [t.cpu().numpy() for t in (labels, distances, sums, counts)]
    fill_empty(lambda i: rows.take(np.array([i]))[0], *host)
    sums.copy_(torch.from_numpy(host[2]))
    counts.copy_(torch.from_numpy(host[3]))


def _memory(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def _stream(x: torch.Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream


def _tensor(x: Any) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x, order="C"))
