"""Scenes larger than memory: windows cost as much as themselves, wherever the scene lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

import rsprune
from image_files import only, source_of, texture, write_tiff
from rsprune.errors import UnreadableImage

SIDE = 50_000
CHILD = """
import json, sys
from rsprune.config import SourceConfig
from rsprune.sources import open_source
source = open_source(SourceConfig(path=sys.argv[1], tile=500))
count = 0
for count, item in enumerate(source.items(), 1):
    if count % 400 == 0:
        header = source.header(item)
    if item.window[:2] in ((0, 0), (25_000, 49_500), (49_500, 49_500)) or count % 400 == 0:
        pixels = source.read(item).pixels
        assert pixels.shape == (500, 500, 3)
        if item.window[:2] == (25_000, 49_500):
            mark = int(pixels.max())
with open("/proc/self/status") as status:  # getrusage would count the process that this one was forked from
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))  # KB
print(json.dumps({"windows": count, "peak": peak, "mark": mark}))
"""


def huge_scene(path: Path, **profile) -> Path:
    """7.5 GB of pixels in some MB: blocks that were never written are not stored."""
    shape = {"width": SIDE, "height": SIDE, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32633", transform=rasterio.Affine(10, 0, 4e5, 0, -10, 5e6),
        SPARSE_OK="TRUE", BIGTIFF="YES", **shape, **profile,
    ) as file:  # fmt: skip
        file.write(
            np.full((3, 100, 100), 201, np.uint8), window=rasterio.windows.Window(25_100, 49_600, 100, 100)
        )
    return path


def in_a_child(path: Path) -> dict[str, int]:
    """What a process of its own found in the scene, and how much memory that took."""
    environment = {**os.environ, "PYTHONPATH": str(Path(rsprune.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("layout", ["tiles", "tiles by band", "strips", "in a shard"])
def test_a_huge_scene_is_read_in_a_gigabyte(tmp_path, layout):
    profile = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    if layout == "tiles by band":
        profile["interleave"] = "band"
    if layout == "strips":
        profile = {"compress": "deflate"}
    path = huge_scene(tmp_path / "scene.tif", **profile)
    assert path.stat().st_size < 20_000_000
    if layout == "in a shard":
        with tarfile.open(tmp_path / "s.tar", "w") as shard:
            shard.add(path, "scene.tif")
        path = tmp_path / "s.tar"
    found = in_a_child(path)
    assert found["windows"] == 100 * 100
    assert found["mark"] == 201
    assert found["peak"] < 1_000_000


def test_strips_that_are_the_whole_scene(tmp_path, monkeypatch):
    """A window of them would decode everything."""
    write_tiff(tmp_path / "a.tif", texture(300, 400), blockysize=300, compress="deflate")
    assert len(list(source_of(tmp_path, tile=64).items())) == 4 * 6
    monkeypatch.setattr("rsprune.sources.raster._MAX_BLOCK", 300 * 400 * 3 - 1)
    source = source_of(tmp_path, tile=64)
    (item,) = source.items()
    with pytest.raises(UnreadableImage, match=r"blocks of 400 x 300 pixels .*gdal_translate -co TILED=YES"):
        source.header(item)
    assert only(tmp_path).pixels.shape == (300, 400, 3)


def test_windows_of_strips_and_of_untiled_scenes(tmp_path):
    pixels = texture(64, 80)
    write_tiff(tmp_path / "a.tif", pixels, blockysize=64)
    for item in (source := source_of(tmp_path, tile=16)).items():
        x, y, w, h = item.window
        np.testing.assert_array_equal(source.read(item).pixels, pixels[y : y + h, x : x + w])


def test_windows_are_listed_one_after_another(tmp_path):
    """A scene can have more windows than fit into memory."""
    import tracemalloc

    huge_scene(tmp_path / "a.tif", tiled=True, blockxsize=512, blockysize=512)
    items = source_of(tmp_path, tile=64).items()
    first = next(items)
    tracemalloc.start()
    ids = [first.id]
    for _, item in zip(range(30_000), items, strict=False):
        assert ids[-1] < item.id
        ids[-1] = item.id
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
