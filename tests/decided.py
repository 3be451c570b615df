"""A pool of three clusters, scenes with coordinates, and a command whose decisions are looked at."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import numpy as np
import pytest

from image_files import texture, write_tiff
from rsprune.cli import main
from rsprune.config import FilterConfig
from rsprune.filters import REASONS
from rsprune.run import Run


def pool(n=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], n // 3).astype(np.int32)
    x = np.eye(8)[labels] + 0.4 * rng.normal(size=(n, 8))
    return {
        "scores": {"entropy": rng.gamma(4, 1, n).astype(np.float32)},
        "hashes": [f"content {i}" for i in range(n)],
        "x": x / np.linalg.norm(x, axis=1, keepdims=True),
        "labels": labels,
        "distance": rng.random(n).astype(np.float32),
        "centers": np.eye(8)[:3],
        "filters": FilterConfig(entropy_drop=0),
    }


def reasons(decisions):
    return np.array(REASONS)[decisions.reason]


def scene(path, *, east=0.0, size=64, pixel=10.0, crs="EPSG:32618", when=None, seed=0):
    from rasterio.transform import from_origin

    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": from_origin(440_000 + east, 4_180_000, pixel, pixel)} if crs else {}
    write_tiff(path, texture(size, size, seed=seed), **place)
    if when:
        import rasterio

        with rasterio.open(path, "r+") as file:
            file.update_tags(TIFFTAG_DATETIME=when)
    return path


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def rsprune(*arguments):
    """A command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
        main([*map(str, arguments), *([] if arguments[0] == "explain" else ["--workers", "1", "-q"])])
    return Done(done.value.code or 0, out.getvalue(), err.getvalue())


def of(run, reason):
    return {d["id"]: d for d in Run.open(run).decisions.to_pylist() if d["reason"] == reason}
