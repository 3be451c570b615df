"""Rates of the CUDA kernels beside the device's limits and the rivals, all in one process and in turn.

python benchmarks/gpu_bench.py {assign,entropy} OUTPUT KERNEL...

OUTPUT gets one JSON line per measurement, with every sample in milliseconds; what fails is a line with its error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsprune import _C, patch_entropy
from rsprune.cluster_device import _add, _memory, _stream

DRY = bool(os.environ.get("RSPRUNE_GPU_DRY"))
DEVICE = torch.device("cpu" if DRY else "cuda")
ROUNDS = 2 if DRY else 12
ROOT = Path(__file__).parent.parent


class Record:
    """Measurements of one process, written as they come."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.path.write_text("")

    def add(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        print({k: v for k, v in values.items() if k != "ms"}, flush=True)


def samples(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float] | str]:
    """Milliseconds of each call in every round; a call that raises has its error instead.

    A round makes every call once, so all meet the same clocks. Events lie around a call, after one untimed call.
    """
    times: dict[str, list[float] | str] = {}
    for name, call in calls.items():
        try:
            call()
            synchronize()
            times[name] = []
        except Exception as error:
            traceback.print_exc()
            times[name] = f"{type(error).__name__}: {error}"[:300]
    for _ in range(rounds):
        for name, call in calls.items():
            if isinstance(times[name], list):
                times[name].append(milliseconds(call))
    return times


def milliseconds(call: Callable[[], Any]) -> float:
    if DRY:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def with_kernel(name: str, value: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        with environment(name, value):
            call()

    return run


def clocks() -> str:
    command = [
        "nvidia-smi",
        "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu",
        "--format=csv,noheader",
    ]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    return ""


# ---- limits of this device, on random data


def limits(record: Record) -> None:
    n = 256 if DRY else 8192
    a, b = (torch.randn(n, n, device=DEVICE).bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    source = torch.randint(0, 256, (1 << 20 if DRY else 4 << 30,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    times = samples(
        {"bf16 product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)}
    )
    for name, work, unit in (
        ("bf16 product", 2 * n**3 / 1e12, "TFLOP/s"),
        ("copy", 2 * source.numel() / 1e12, "TB/s"),
    ):
        add(record, "limits", name, times[name], work, unit, clocks=clocks())


def add(
    record: Record, group: str, name: str, ms: list[float] | str, work: float, unit: str, **more: Any
) -> None:
    """One measurement; `work` is what a call does, in `unit` times seconds."""
    if isinstance(ms, str):
        record.add(group=group, name=name, error=ms, **more)
        return
    middle = statistics.median(ms)
    record.add(group=group, name=name, median=middle, rate=1e3 * work / middle, unit=unit, ms=ms, **more)


# ---- assignment and k-means iteration


def points(n: int, k: int, dim: int, dtype: torch.dtype, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x `[n, dim]`, centers `[k, dim]` float32: "mixture" of k clusters as wide as they are apart, or "random"."""
    generator = torch.Generator(DEVICE).manual_seed(n + dim)
    centers = torch.randn(k, dim, generator=generator, device=DEVICE)
    x = torch.empty(n, dim, dtype=dtype, device=DEVICE)
    for first in range(0, n, 1 << 20):
        part = x[first : first + (1 << 20)]
        values = torch.randn(part.shape, generator=generator, device=DEVICE)
        if kind == "mixture":
            values += centers[torch.randint(0, k, (len(part),), generator=generator, device=DEVICE)]
        part.copy_(values)
    return x, centers


class Assignment:
    """One assignment problem: our kernels and the rivals on the same tensors."""

    def __init__(self, x: torch.Tensor, centers: torch.Tensor) -> None:
        self.x, self.centers = x, centers
        self.labels = torch.arange(len(x), device=DEVICE).remainder(len(centers)).int()
        self.distances = torch.empty(len(x), dtype=torch.float32, device=DEVICE)
        self.rechecked = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self.bounds: dict[str, torch.Tensor] = {}
        self.half = centers.square().sum(1) / 2
        self.low = centers.to(x.dtype)
        self.squares = torch.cat([part.float().square().sum(1) for part in x.split(1 << 18)])

    def ours(self, distances: bool = False) -> None:
        if DRY:
            _C.kmeans_assign(self.x, self.centers, self.labels, self.distances)
            return
        memory = _memory(_C.kmeans_workspace(self.x, self.centers), self.x)
        wanted, known = (self.distances, None) if distances else (None, self.known_bounds())
        _C.kmeans_assign(
            self.x, self.centers, self.labels, wanted, _stream(self.x), memory, known, self.rechecked
        )

    def known_bounds(self) -> torch.Tensor:
        """Measured once for each kind of operand, as a fit does."""
        kind = os.environ.get("RSPRUNE_CUDA_OPERAND", "same")
        if kind not in self.bounds:
            self.bounds[kind] = torch.empty(len(self.x), 2, dtype=torch.float32, device=DEVICE)
            _C.kmeans_bounds(self.x, self.bounds[kind], _stream(self.x))
        return self.bounds[kind]

    def iteration(self) -> None:
        self.ours()
        sums = torch.zeros(self.centers.shape, dtype=torch.float64, device=DEVICE)
        counts = torch.zeros(len(sums), dtype=torch.int64, device=DEVICE)
        _add(self.x, self.labels, sums, counts)
        moved = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), self.centers.double())
        (moved.float().double() - self.centers).square().sum()

    def update(self) -> None:
        sums = torch.zeros(self.centers.shape, dtype=torch.float64, device=DEVICE)
        counts = torch.zeros(len(sums), dtype=torch.int64, device=DEVICE)
        _add(self.x, self.labels, sums, counts)

    def torch_chunked(self) -> torch.Tensor:
        """A product of 16-bit values per chunk, then the argmin in a second pass: what one writes without a kernel."""
        rows = max((1 << 30) // (len(self.centers) * 4), 1)
        return torch.cat(
            [(part @ self.low.T).float().sub_(self.half).argmax(1) for part in self.x.split(rows)]
        )

    def flash(self) -> torch.Tensor:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton

        return euclid_assign_triton(self.x[None], self.low[None], self.squares[None])

    def flash_iteration(self) -> None:
        from flash_kmeans.kmeans_triton_impl import _euclid_iter

        _euclid_iter(self.x[None], self.squares[None], self.low[None])

    def wrong(self, labels: torch.Tensor, rows: int = 4096) -> int:
        """Rows, of the last `rows`, whose label is not the argmin of the squared distance in float64."""
        part, found, wrong = self.x[-rows:].double(), labels.reshape(-1)[-rows:].long(), 0
        for first in range(0, len(part), 64):
            d = (part[first : first + 64, None] - self.centers.double()).square().sum(2)
            wrong += int((d.argmin(1) != found[first : first + 64]).sum())
        return wrong


def bench_assign(record: Record, kernels: list[str]) -> None:
    limits(record)
    half, bfloat, single = torch.float16, torch.bfloat16, torch.float32
    cases = [
        (1 << 22, 1024, 128, bfloat, "random", ROUNDS),
        (1 << 22, 1024, 128, bfloat, "mixture", ROUNDS),
        (1 << 20, 4096, 768, bfloat, "random", ROUNDS),
        (4_000_000, 4096, 768, bfloat, "mixture", ROUNDS),
        (1 << 22, 1024, 128, half, "random", ROUNDS),
        (1 << 20, 1024, 128, single, "random", ROUNDS),
        (10_500_000, 5000, 768, half, "mixture", 3),
    ]
    for n, k, dim, dtype, kind, rounds in cases:
        if DRY:
            n, k, dim = 512, 16, 32
        case = f"N {n} K {k} D {dim} {str(dtype).removeprefix('torch.')} {kind}"
        try:
            problem = Assignment(*points(n, k, dim, dtype, kind))
            bench_case(record, case, problem, kernels, rounds)
            del problem
        except Exception as error:
            traceback.print_exc()
            record.add(group=f"assign {case}", name="all", error=f"{type(error).__name__}: {error}"[:300])
        if not DRY:
            torch.cuda.empty_cache()


def bench_case(record: Record, case: str, problem: Assignment, kernels: list[str], rounds: int) -> None:
    (n, dim), k = problem.x.shape, len(problem.centers)
    flop = 2 * n * k * dim / 1e12
    alone = n > 5_000_000  # one pass over a large set: ours only
    slow = flop > 3 and not DRY  # more than a second for kernels without matrix units
    used = [kernel for kernel in kernels if not (slow and kernel == "simple")]
    calls = {kernel: with_kernel("RSPRUNE_CUDA_KERNEL", kernel, problem.ours) for kernel in used}
    if problem.x.dtype == torch.bfloat16 and "wgmma" in used:
        alike = with_kernel("RSPRUNE_CUDA_KERNEL", "wgmma", problem.ours)
        calls["wgmma as float16"] = with_kernel("RSPRUNE_CUDA_OPERAND", "half", alike)
    for kernel in used:
        if not alone:
            calls[f"{kernel} with distances"] = with_kernel(
                "RSPRUNE_CUDA_KERNEL", kernel, lambda: problem.ours(distances=True)
            )
    if not alone and problem.x.dtype != torch.float32:
        calls |= {"torch": problem.torch_chunked, "flash-kmeans": problem.flash}
    times = samples(calls, rounds)
    for name, ms in times.items():
        more: dict[str, Any] = {}
        if name in used or name == "wgmma as float16":
            problem.labels.fill_(-7)
            problem.rechecked.zero_()
            calls[name]()
            more = {"wrong of 4096": problem.wrong(problem.labels), "rechecked": int(problem.rechecked) / n}
        elif name in ("flash-kmeans", "torch") and isinstance(ms, list):
            more = {"wrong of 4096": problem.wrong(calls[name]())}
        add(record, f"assign {case}", name, ms, flop, "TFLOP/s", clocks=clocks(), **more)
    if alone or problem.x.dtype == torch.float32:
        return
    iterations = {k: with_kernel("RSPRUNE_CUDA_KERNEL", k, problem.iteration) for k in used if k != "simple"}
    iterations |= {"flash-kmeans": problem.flash_iteration}
    for name, ms in samples(iterations, rounds).items():
        add(record, f"iteration {case}", name, ms, flop, "TFLOP/s")
    read = problem.x.numel() * problem.x.element_size() / 1e12
    for name, ms in samples({"update": problem.update}, rounds).items():
        add(record, f"update {case}", name, ms, read, "TB/s")


# ---- entropy


def real_pixels(size: int) -> np.ndarray:
    """About `size` bytes of real grey tiles of 256 pixels: `[N, 256, 256]`; windows of scenes, mirrored and turned."""
    from PIL import Image

    with contextlib.suppress(ImportError):
        from rates import blue_marble, tiles

        image = blue_marble("L")
        return np.resize(tiles(image), (max(size >> 16, 1), 256, 256))
    scenes = [
        np.asarray(Image.open(p).convert("L")) for p in sorted((ROOT / "tests/data/sentinel2").rglob("*.png"))
    ]
    random = np.random.default_rng(0)
    out = np.empty((max(size >> 16, 1), 256, 256), np.uint8)
    for tile in out:
        scene = np.rot90(scenes[random.integers(len(scenes))], random.integers(4))
        scene = np.pad(scene, [(0, max(0, 256 - s)) for s in scene.shape], mode="reflect")
        y, x = (random.integers(s - 255) for s in scene.shape)
        tile[:] = scene[y : y + 256, x : x + 256]
    return out


def by_torch(images: torch.Tensor, patch: int) -> torch.Tensor:
    """The best torch has: one bincount over (patch, value), then a logarithm per bin."""
    n, side = images.shape[0], images.shape[1] // patch
    number = torch.arange(n * side * side, device=images.device).reshape(n, side, 1, side, 1)
    index = (number * 256 + images.reshape(n, side, patch, side, patch)).flatten()
    p = torch.bincount(index, minlength=n * side * side * 256).reshape(-1, 256) / patch**2
    return torch.special.entr(p).sum(1).reshape(n, side, side) / np.log(2)


def by_cupy(images: torch.Tensor, patch: int) -> Any:
    import cupy

    x = cupy.from_dlpack(images)
    n, side = x.shape[0], x.shape[1] // patch
    number = cupy.arange(n * side * side).reshape(n, side, 1, side, 1)
    index = (number * 256 + x.reshape(n, side, patch, side, patch)).ravel()
    p = cupy.bincount(index, minlength=n * side * side * 256).reshape(-1, 256) / patch**2
    return -(p * cupy.log2(cupy.maximum(p, 1e-30))).sum(1)


def bench_entropy(record: Record, kernels: list[str]) -> None:
    limits(record)
    size = 1 << 18 if DRY else 1 << 30
    real = torch.from_numpy(np.array(real_pixels(min(size, 1 << 27))))
    real = real.repeat(max(size // real.numel(), 1), 1, 1).to(DEVICE)
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, device=DEVICE)
    ramp = torch.arange(256, device=DEVICE)
    smooth = ((ramp[:, None] + ramp) // 16).to(torch.uint8).expand(real.shape).contiguous()
    kinds = {"real": real, "constant": torch.full_like(real, 7), "smooth": smooth, "noise": noise}
    whole = real.numel() // (3 * 65536) * 3
    kinds["real rgb"] = real[:whole].reshape(-1, 3, 256, 256).permute(0, 2, 3, 1).contiguous()
    kinds["real uint16"] = (real[: len(real) // 2].to(torch.int32) * 40).to(torch.uint16)
    for kind, images in kinds.items():
        for patch in (32, 16, 64) if kind in ("real", "constant", "smooth") else (32,):
            scale = (0, 10240) if kind == "real uint16" else None
            out = torch.empty_like(patch_entropy(images, patch, scale=scale))
            calls: dict[str, Callable[[], Any]] = {
                kernel: with_kernel(
                    "RSPRUNE_CUDA_ENTROPY",
                    kernel,
                    lambda i=images, p=patch, s=scale, o=out: patch_entropy(i, p, scale=s, out=o),
                )
                for kernel in kernels
            }
            if kind == "real":
                few = images[: len(images) // 16]  # 16-byte indices of every pixel: a part is enough
                calls |= {
                    "torch": lambda f=few, p=patch: by_torch(f, p),
                    "cupy": lambda f=few, p=patch: by_cupy(f, p),
                }
            for name, ms in samples(calls).items():
                pixels = images.numel() * images.element_size() / (16 if name in ("torch", "cupy") else 1)
                add(record, f"entropy {kind} p {patch}", name, ms, pixels / 1e12, "TB/s", clocks=clocks())


if __name__ == "__main__":
    what, path, *names = sys.argv[1:]
    sys.stderr = sys.stdout if isinstance(sys.stdout, io.TextIOWrapper) else sys.stderr
    {"assign": bench_assign, "entropy": bench_entropy}[what](Record(path), names)
