"""One set of images, however it is stored, is one training."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsprune import config
from rsprune.export import export
from rsprune.reading import Reader
from rsprune.run import Run
from rsprune.stages import Job, scan_images
from rsprune.training.pool import load
from run_folder import make_run
from training_case import settings, tiles


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pool(run):
    return load(settings(run.path, resolution=64))


@pytest.mark.parametrize("format", ["copy", "webdataset", "parquet"])
def test_an_export_is_the_same_training_data_as_its_run(run, pool, tmp_path, format):
    export(run, tmp_path / "export", format=format)
    exported = load(settings(tmp_path / "export", resolution=64))
    assert exported.ids == pool.ids
    np.testing.assert_array_equal(exported.pixels, pool.pixels)
    assert exported.digest == pool.digest


def test_a_tar_shard_by_its_own_path(tmp_path):
    data = tiles(tmp_path / "data", 4)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for file in sorted(data.rglob("*.png")):
            member = tarfile.TarInfo(file.relative_to(data).as_posix())
            member.size = file.stat().st_size
            shard.addfile(member, io.BytesIO(file.read_bytes()))
    folder, packed = load(settings(data)), load(settings(tmp_path / "shard.tar"))
    assert packed.ids == [id.removesuffix(".png") for id in folder.ids]  # the key of WebDataset
    np.testing.assert_array_equal(packed.pixels, folder.pixels)


def scanned(data: Path, out: Path, **source) -> Run:
    """A run that has looked at files, and selected nothing yet."""
    values = {"scan": {"sources": [{"path": str(data), **source}]}}
    job = Job(Run(out), config.settings(values), workers=1, device="cpu")
    out.mkdir()
    scan_images(job)
    return Run(out)


def test_windows_of_a_scene_are_read_without_an_export(tmp_path):
    (tmp_path / "scenes").mkdir()
    pixels = (
        np.random.default_rng(0).integers(0, 4000, (4, 64, 96), np.uint16).cumsum(axis=2, dtype=np.uint32)
    )
    pixels = (pixels // 40).astype(np.uint16)
    profile = {"driver": "GTiff", "width": 96, "height": 64, "count": 4, "dtype": "uint16"}
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        file = rasterio.open(tmp_path / "scenes" / "scene.tif", "w", **profile)
    with file:
        file.write(pixels)
    run = scanned(tmp_path / "scenes", tmp_path / "run", tile=32)
    loaded = load(settings(run.path, resolution=32, kept="all"))
    assert loaded.pixels.shape == (6, 32, 32, 4)
    assert loaded.pixels.dtype == np.uint16
    pairs = np.array(Reader(run).radiometry[0].scale)
    for id, image in zip(loaded.ids, loaded.pixels, strict=True):
        x, y, w, h = (int(v) for v in id.rpartition("#")[2].split(","))
        stored = pixels[:, y : y + h, x : x + w].transpose(1, 2, 0)
        expected = np.clip((stored - pairs[:, 0]) / (pairs[:, 1] - pairs[:, 0]) * 65536, 0, 65535)
        np.testing.assert_array_equal(image, np.floor(expected).astype(np.uint16))


def test_a_run_over_shards_reads_their_members(tmp_path):
    data = tiles(tmp_path / "data", 10)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for file in sorted(data.rglob("*.png")):
            shard.add(file, file.relative_to(data).as_posix())
    run = scanned(tmp_path / "shard.tar", tmp_path / "run")
    loaded = load(settings(run.path, resolution=32, kept="all"))
    folder = load(settings(data))
    assert [f"{id}.png" for id in loaded.ids] == folder.ids
    np.testing.assert_array_equal(loaded.pixels, folder.pixels)
