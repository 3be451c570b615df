"""A small run folder with real images, as the stages would have left it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from safetensors.numpy import save

from rsprune import config
from rsprune.files import write_array, write_atomic, write_json, write_table
from rsprune.filters import REASONS
from rsprune.run import Run
from rsprune.selection import decide
from rsprune.sources import ids

SIZE = 64  # pixels
DIM = 16  # features
FOLDERS = ("crops", "town", "woods")
SCENES = ("crops", "<b>town</b> & $x_1$", "woods", "sea")
HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "quotes \"double\" 'single' & more.png",
    "new\nline.png",
    os.fsdecode(b"caf\xe9.png"),
    "50% #1.png",
    "sub dir/\u65e5\u672c.png",
)
SCORES = (
    "entropy", "entropy_p10", "flat_fraction", "nodata_fraction", "saturated_fraction", "autocorrelation",
    "sharpness",
)  # fmt: skip


def make_run(
    folder: Path, *, keep: float = 0.2, references: Sequence[str] = ("labels",), sources: int = 1
) -> Run:
    """52 images below `folder`/tiles (or tiles0, tiles1, ...): every reason but leaks and spatial duplicates.

    Seven of them are copies of others, one is damaged; six have names that are hard to handle.
    """
    rng = np.random.default_rng(7)
    roots = [folder / ("tiles" if sources == 1 else f"tiles{i}") for i in range(sources)]
    records: list[dict[str, Any]] = []

    def add(
        name: str, pixels: np.ndarray | None, scene: int, x: np.ndarray, content: str, **scores: float
    ) -> None:
        source = len(records) % sources
        path = roots[source] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            path.write_bytes(b"\x89PNG\r\n\x1a\n cut short")
        else:
            Image.fromarray(pixels).save(path)
        prefix = f"s{source}/" if sources > 1 else ""
        row = {"entropy": 5.0, "nodata_fraction": 0.0, "autocorrelation": 0.9, **scores}
        records.append(
            {
                "id": ids.encode(prefix + name),
                "uri": ids.encode(str(path)),
                "source": source,
                "scene": scene,
                "x": x,
                "hash": content,
                "scores": row,
                "error": None if pixels is not None else "is damaged",
                "lat": 46 + 20 * (scene == 1) + 0.01 * len(records) if scene in (0, 1) else None,
                "lon": 7.0 - 80 * (scene == 1) + 0.01 * len(records) if scene in (0, 1) else None,
            }
        )

    centers = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:4]
    names = iter(HOSTILE)
    for i in range(27):
        scene = i % 3
        name = next(names, f"{FOLDERS[scene]}/tile {i:02d}.png")
        x = centers[scene] + 0.2 * rng.normal(size=DIM)
        pixels, entropy = picture(scene, rng), float(4 + 2 * rng.random())
        add(name, pixels, scene, x, f"content {i}", entropy=entropy)
        if i == 7:
            for k in range(3):
                add(f"copy {k}.png", pixels, scene, x, f"content {i}", entropy=entropy)
        if i == 8:
            for k in range(4):
                close = x + 0.005 * rng.normal(size=DIM)
                add(
                    f"nearly {k}.png",
                    np.minimum(pixels, 250) + 5,
                    scene,
                    close,
                    f"near {k}",
                    entropy=entropy - 0.1,
                )
    for i in range(12):
        add(
            f"sea/{i:02d}.png",
            picture(3, rng),
            3,
            centers[3] + 0.2 * rng.normal(size=DIM),
            f"sea {i}",
            entropy=1 + i / 50,
        )
    for i in range(3):
        noise = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        add(f"noise/{i}.png", noise, 0, rng.normal(size=DIM), f"noise {i}", entropy=7.5, autocorrelation=0.01)
    for i in range(2):
        half = picture(2, rng)
        half[: SIZE * 3 // 4] = 0
        add(
            f"edge/{i}.png",
            half,
            2,
            centers[2] + 0.3 * rng.normal(size=DIM),
            f"edge {i}",
            nodata_fraction=0.75 + i / 10,
        )
    add("broken.png", None, -1, np.full(DIM, np.nan), "")
    listed = [{"path": str(root), "name": f"s{i}" if sources > 1 else ""} for i, root in enumerate(roots)]
    settings = config.settings({
        "scan": {"sources": listed}, "select": {"keep": keep, "near_duplicate": 0.98},
        "cluster": {"reference": list(references)},
        "filter": {"entropy_drop": 0.3}, "seed": 3,
    })  # fmt: skip
    return write_run(folder / "run", settings, records, dtype="uint8", bands=3)


def make_window_run(
    folder: Path, scene: Path, windows: Sequence[tuple[int, int, int, int]], dtype: str, bands: int
) -> Run:
    """A run about windows of one scene, all of them kept."""
    rng = np.random.default_rng(1)
    records = [
        {"id": f"{ids.encode(scene.name)}#{','.join(map(str, w))}", "uri": ids.encode(str(scene)),
         "source": 0, "window": w, "scene": 0, "x": rng.normal(size=DIM), "hash": f"window {i}",
         "error": None,
         "scores": {"entropy": 5.0, "nodata_fraction": 0.0, "autocorrelation": 0.9}}
        for i, w in enumerate(windows)
    ]  # fmt: skip
    scale = [[0, 4096]] if dtype == "uint16" else None
    source = {"path": str(scene.parent), "tile": windows[0][2], "scale": scale}
    settings = config.settings({"scan": {"sources": [source]}, "select": {"keep": 1.0}})
    return write_run(folder / "run", settings, records, dtype=dtype, bands=bands)


def write_run(
    path: Path, settings: config.Settings, records: list[dict[str, Any]], *, dtype: str, bands: int
) -> Run:
    """All stages up to `select`, in parts of 20 images; `records` need not be sorted."""
    path.mkdir(parents=True)
    run, size = Run(path), 20
    records = sorted(records, key=lambda r: r["id"])
    n, readable = len(records), np.array([r["error"] is None for r in records])
    x = np.array([r["x"] for r in records], np.float32)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    labels = np.array([r["scene"] if ok else -1 for r, ok in zip(records, readable, strict=True)], np.int32)
    centers = np.array(
        [x[labels == k].mean(axis=0) if (labels == k).any() else np.zeros(DIM) for k in range(4)]
    )
    distance = np.full(n, np.nan, np.float32)
    distance[readable] = np.square(x[readable] - centers[labels[readable]]).sum(axis=1)
    scores = {
        name: np.array(
            [r["scores"].get(name, 0.5) if r["error"] is None else math.nan for r in records], np.float32
        )
        for name in SCORES
    }
    hashes = [r["hash"] if r["error"] is None else None for r in records]

    def column(key: str, type: pa.DataType) -> pa.Array:
        return pa.array([r.get(key) for r in records], type)

    windows = [r.get("window") or (None,) * 4 for r in records]
    manifest = pa.table({
        "id": column("id", pa.string()), "uri": column("uri", pa.string()),
        "source": column("source", pa.int16()),
        "width": pa.array([w[2] or SIZE for w in windows], pa.int32()),
        "height": pa.array([w[3] or SIZE for w in windows], pa.int32()),
        "bands": pa.array([bands] * n, pa.int32()), "dtype": [dtype] * n,
        "bytes": pa.array([0] * n, pa.int64()),
        **{name: pa.array([w[i] for w in windows], pa.int32()) for i, name in enumerate("xywh")},
        "member": pa.nulls(n, pa.string()), "stamp": [""] * n,
        "centre_lat": column("lat", pa.float64()), "centre_lon": column("lon", pa.float64()),
        "status": ["ok" if ok else "unreadable" for ok in readable], "error": column("error", pa.string()),
    })  # fmt: skip
    scored = pa.table(
        {
            "id": manifest["id"],
            **scores,
            "content_hash": pa.array(hashes, pa.string()),
            "error": manifest["error"],
        }
    )
    assigned = pa.table({
        "id": manifest["id"], "cluster": labels, "distance": distance,
        "scene": [SCENES[k] if k >= 0 else None for k in labels],
        "scene_similarity": np.where(readable, 0.9, np.nan).astype(np.float32),
        "scene_margin": np.where(readable, 0.2, np.nan).astype(np.float32),
    })  # fmt: skip
    d = decide(
        scores=scores, hashes=hashes, x=x, labels=labels, distance=distance, centers=centers,
        filters=settings.filter, select=settings.select, budget=settings.select.budget(int(readable.sum())),
        seed=settings.seed,
    )  # fmt: skip
    id = manifest["id"].combine_chunks()
    decisions = pa.table({
        "id": id, "uri": manifest["uri"], "kept": d.kept,
        "reason": pa.array(REASONS).take(pa.array(d.reason)),
        "rank": pa.array(d.rank, mask=d.rank < 0), "score": d.score, "threshold": d.threshold,
        "cluster": labels,
        "scene": assigned["scene"], "distance": distance,
        "duplicate_of": id.take(pa.array(d.duplicate_of, mask=d.duplicate_of < 0)),
        "nearest_kept": id.take(pa.array(d.nearest_kept, mask=d.nearest_kept < 0)),
        "nearest_kept_similarity": d.nearest_kept_similarity,
    })  # fmt: skip
    kept = id.take(pa.array(np.argsort(np.where(d.kept, d.rank, n))[: d.kept.sum()])).to_pylist()

    parts = {"scan": manifest, "score": scored, "embed": x, "cluster": assigned}
    for stage, rows in parts.items():
        with run.stage(stage, "fingerprint", settings):
            for k in range(-(-n // size)):
                write = write_array if stage == "embed" else write_table
                write(run.part(stage, k), rows[k * size : (k + 1) * size])
    scale = settings.scan.sources[0].scale or [(0, 256)]
    declared = {
        "bands": bands,
        "dtype": dtype,
        "scale": [list(p) for p in scale],
        "nodata": None,
        "estimated": False,
    }
    write_json(run.path / "radiometry.json", [declared] * len(settings.scan.sources))
    sizes = np.bincount(labels[readable], minlength=len(centers))
    summed = np.bincount(labels[readable], np.sqrt(distance[readable]), minlength=len(centers))
    arrays = {
        "centers": centers,
        "sizes": sizes,
        "spreads": (summed / np.maximum(sizes, 1)).astype(np.float32),
    }
    write_atomic(run.path / "clusters.safetensors", lambda f: f.write(save(arrays)))
    with run.stage("select", "fingerprint", settings):
        write_table(run.path / "decisions.parquet", decisions)
        write_atomic(run.path / "kept.txt", lambda f: f.write("".join(f"{k}\n" for k in kept).encode()))
    return run


def picture(scene: int, rng: np.random.Generator) -> np.ndarray:
    """Something like crops, a town, woods or the sea, [SIZE, SIZE, 3] uint8."""
    yy, xx = np.mgrid[:SIZE, :SIZE]
    if scene == 0:
        angle, colours = rng.random() * np.pi, rng.integers(70, 190, (8, 3)) * (0.9, 1.0, 0.5)
        image = colours[((xx * np.cos(angle) + yy * np.sin(angle)) // rng.integers(5, 12)).astype(int) % 8]
    elif scene == 1:
        blocks = rng.integers(90, 230, (SIZE // 8, SIZE // 8))
        image = np.kron(blocks, np.ones((8, 8)))[..., None] * (1, 0.97, 0.92)
        image[(xx % 16 < 2) | (yy % 16 < 2)] = 70
    elif scene == 2:
        coarse = rng.normal(size=(SIZE // 4, SIZE // 4))
        image = (90 + 22 * np.kron(coarse, np.ones((4, 4)))[..., None]) * (0.55, 1, 0.5)
    else:
        image = np.full((SIZE, SIZE, 3), (18, 52, 92)) + rng.integers(-4, 5, 3)
    return np.clip(image + rng.normal(scale=2, size=image.shape), 0, 255).astype(np.uint8)
