"""Kept windows asked of a torchgeo data set: of torchgeo where it is installed, else of a stand-in."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import torch
from rasterio.transform import from_origin
from torch.utils.data import DataLoader

import rsprune
import torchgeo_case
from image_files import write_tiff
from rsprune.errors import ConfigError
from rsprune.run import Run

with torchgeo_case.installed():
    from rsprune.datasets import KeptDataset, KeptWindowSampler

TILE, SIDE = 16, 64
DAYS = ("a_20240110", "b_20240220")  # of the same ground


def prune(folder: Path, **profile) -> Run:
    """16 windows of each of two scenes of one place at two dates; half of them are kept."""
    (folder / "scenes").mkdir()
    rng = np.random.default_rng(0)
    for name in DAYS:
        pixels = rng.integers(1, 256, (SIDE, SIDE, 3), np.uint8)
        write_tiff(folder / "scenes" / f"{name}.tif", pixels, **profile)
    np.save(folder / "x.npy", rng.normal(size=(32, 8)).astype(np.float16))
    return rsprune.prune(
        [], folder / "run", keep=0.5, workers=1, device="cpu",
        settings={
            "scan": {"sources": [{"path": str(folder / "scenes"), "tile": TILE}]},
            "score": {"patch": 8}, "embed": {"embeddings": str(folder / "x.npy")},
            "filter": {"autocorrelation_min": -1, "saturated_max": 1, "entropy_drop": 0},
            "select": {"near_duplicate": 2, "spatial_overlap": 1},
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    place = from_origin(500_000, 5_100_000, 10, 10)
    return prune(tmp_path_factory.mktemp("torchgeo"), crs="EPSG:32632", transform=place)


def scenes(run, names=DAYS, crs=None):
    return torchgeo_case.rasters([run.path.parent / "scenes" / f"{name}.tif" for name in names], crs)


def test_a_query_gives_the_pixels_of_its_window_and_date(run):
    data, kept = scenes(run), KeptDataset(run)
    sampler = KeptWindowSampler(data, run.path)
    assert sampler.ids == run.kept_ids
    assert {id.partition(".")[0] for id in sampler.ids} == set(DAYS)
    queries = list(sampler)
    assert len(queries) == len(sampler) == 16
    for query, item in zip(queries, kept, strict=True):
        np.testing.assert_array_equal(data[query]["image"], item["image"])
        assert query[2].start.strftime("%Y%m%d") == item["id"][2:10]


def test_works_in_a_loader_and_shuffles_by_its_generator(run):
    data = scenes(run)
    sampler = KeptWindowSampler(data, run, shuffle=True, generator=torch.Generator().manual_seed(0))
    images = [b["image"] for b in DataLoader(data, sampler=sampler, batch_size=None)]
    first = torch.stack(images).flatten(1).sum(1)
    again = torch.stack([data[query]["image"] for query in sampler]).flatten(1).sum(1)
    assert first.tolist() != again.tolist()
    assert sorted(first.tolist()) == sorted(again.tolist())


def test_windows_outside_the_data_set_are_left_out(run):
    data = scenes(run, DAYS[:1])
    sampler = KeptWindowSampler(data, run)
    # The other date shows the same ground, so its windows are taken from the scene that is there.
    assert sampler.ids == run.kept_ids
    data.index = data.index.set_geometry(data.index.geometry.scale(0.5, 0.5))
    inner = KeptWindowSampler(data, run)
    places = {tuple(map(int, id.rpartition("#")[2].split(",")[:2])) for id in inner.ids}
    assert places <= {(x, y) for x in (16, 32) for y in (16, 32)}
    assert 0 < len(inner) < len(sampler)
    data.index = data.index.set_geometry(data.index.geometry.translate(1e6))
    with pytest.raises(ConfigError, match="no kept window"):
        KeptWindowSampler(data, run)


def test_another_size_is_cut_around_the_middle_on_whole_pixels(run):
    data = scenes(run)
    for query, (x, y, _) in zip(
        KeptWindowSampler(data, run), KeptWindowSampler(data, run, size=7), strict=True
    ):
        assert x.stop - x.start == y.stop - y.start == 70
        assert abs(x.start + x.stop - query[0].start - query[0].stop) <= 10
        assert (x.start - 500_000) % 10 == (y.start - 5_100_000) % 10 == 0
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        KeptWindowSampler(data, run, size=0)


def test_windows_are_found_in_another_coordinate_system(run):
    data = scenes(run, crs="EPSG:32633")
    here = KeptWindowSampler(scenes(run), run)
    there = KeptWindowSampler(data, run)
    assert there.ids == here.ids
    for (x, y, _), (u, v, _) in zip(here, there, strict=True):
        corners = geopandas.GeoSeries.from_xy([x.start, x.stop], [y.start, y.stop], crs=32632).to_crs(32633)
        assert u.start - 1e-6 <= corners.x.min() <= corners.x.max() <= u.stop + 1e-6
        assert v.start - 1e-6 <= corners.y.min() <= corners.y.max() <= v.stop + 1e-6
        assert u.stop - u.start < 1.2 * (x.stop - x.start)


def test_images_without_coordinates_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="without coordinates"):
        KeptWindowSampler(None, prune(tmp_path))
