"""The example of a source plug-in: slices of Zarr and NetCDF cubes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError

xarray = pytest.importorskip("xarray")
pytestmark = [pytest.mark.filterwarnings("ignore:::zarr"), pytest.mark.filterwarnings("ignore:::xarray")]
EXAMPLE = Path(__file__).parent.parent / "examples" / "cube" / "rsprune_cube.py"


@pytest.fixture(scope="module")
def cube_source():
    spec = importlib.util.spec_from_file_location("rsprune_cube", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CubeSource


@pytest.fixture(scope="module")
def cube():
    rng = np.random.default_rng(0)
    days = np.array(["2020-06-01", "2020-05-01", "2020-07-15"], "datetime64[ns]")
    values = {
        n: (("time", "y", "x"), rng.integers(0, 999, (3, 20, 30)).astype(np.int16)) for n in ("red", "nir")
    }
    return xarray.Dataset(values, {"time": days})


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_slices_and_windows(cube, cube_source, tmp_path, kind):
    path = tmp_path / f"c.{kind}"
    if kind == "nc":
        cube.to_netcdf(path, engine="scipy")
    else:
        pytest.importorskip("zarr")
        cube.to_zarr(path)
    source = cube_source(SourceConfig(path=f"cube:{path}"))
    items = list(source.items())
    days = ("2020-05-01T00:00:00", "2020-06-01T00:00:00", "2020-07-15T00:00:00")
    assert [i.id for i in items] == [f"time/{day}" for day in days]
    expected = np.stack([cube["nir"].values, cube["red"].values], axis=-1).astype(np.float32)
    np.testing.assert_array_equal(source.read(items[0]).pixels, expected[1])
    header = source.header(items[2])
    assert (header.width, header.height, header.bands, header.dtype) == (30, 20, 2, "float32")
    assert header.timestamp == "2020-07-15T00:00:00"
    tiled = cube_source(SourceConfig(path=f"cube:{path}", tile=10, bands=(2,)), prefix="c/")
    windows = list(tiled.items())
    assert len(windows) == 18
    assert [i.id for i in windows] == sorted(i.id for i in windows)
    x, y, w, h = windows[-1].window
    np.testing.assert_array_equal(tiled.read(windows[-1]).pixels, expected[2, y : y + h, x : x + w, 1:])


def test_what_is_no_cube(cube_source, tmp_path):
    (tmp_path / "x.nc").write_text("text")
    with pytest.raises(ConfigError, match="is no cube that xarray opens"):
        cube_source(SourceConfig(path=f"cube:{tmp_path / 'x.nc'}"))
