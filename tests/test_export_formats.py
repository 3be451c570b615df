"""Shards, tables and lists: what an export holds, and that it is a source with the same ids and bytes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

import rsprune
from image_files import texture, write_png
from rsprune.config import SourceConfig
from rsprune.errors import ConfigError
from rsprune.export import export
from rsprune.run import Run
from rsprune.sources import ids, open_source
from run_folder import make_run
from shard_files import png, write_table

FORMATS = ["list", "copy", "webdataset", "parquet", "huggingface"]


def originals(path: Path) -> dict[str, dict[str, bytes]]:
    """Files of every image below `path` by id."""
    source = open_source(SourceConfig(str(path)))
    return {item.id: source.originals(item) for item in source.items()}


def kept_originals(run: Run) -> dict[str, dict[str, bytes]]:
    """Original files of the kept images by id, read from where they lie."""
    found = {}
    for row in run.decisions.to_pylist():
        if row["kept"]:
            path = Path(ids.decode(row["uri"]))
            beside = path.with_suffix(".txt")
            found[row["id"]] = {path.suffix[1:]: path.read_bytes()}
            if beside.exists():
                found[row["id"]]["txt"] = beside.read_bytes()
    return found


def tiles(folder: Path, count: int = 24) -> Path:
    """A folder of small images, every third with a caption, and their embeddings in ``x.npy`` beside it."""
    rng = np.random.default_rng(5)
    for i in range(count):
        path = folder / "tiles" / f"{'ab'[i % 2]}.dir" / f"tile {i:02d}.v1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.sort(rng.integers(0, 256, (16, 16, 3), np.uint8), axis=0)).save(path)
        if i % 3 == 0:
            path.with_suffix(".txt").write_text(f"caption ü {i}", "utf-8")
    np.save(folder / "x.npy", rng.normal(size=(count, 8)).astype(np.float16))
    return folder / "tiles"


def prune(data: Path, folder: Path, name: str = "run", keep: float = 0.5, **source: object) -> Run:
    settings = {
        "scan": {"sources": [{"path": str(data), **source}]},
        "embed": {"embeddings": str(folder / "x.npy")},
        "score": {"patch": 8},
        "filter": {"autocorrelation_min": -1, "saturated_max": 1, "entropy_drop": 0},
        "select": {"near_duplicate": 2},
    }
    return rsprune.prune([], folder / name, keep=keep, workers=1, device="cpu", settings=settings)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("pruned")
    return prune(tiles(folder), folder)


@pytest.mark.parametrize("format", FORMATS)
def test_read_back_it_has_the_same_ids_and_bytes(pruned, tmp_path, format):
    result = export(pruned, tmp_path / "out", format)
    expected = kept_originals(pruned)
    assert result.count == len(expected) == 12
    assert originals(tmp_path / "out") == expected


@pytest.mark.parametrize("format", ["webdataset", "parquet", "huggingface"])
def test_hostile_names_come_back(tmp_path, format):
    run = make_run(tmp_path, keep=0.8)
    export(run, tmp_path / "out", format)
    found, expected = originals(tmp_path / "out"), kept_originals(run)
    assert set(found) == set(expected)
    assert any("%0A" in id for id in found)
    assert found == expected


@pytest.fixture(scope="module", params=["webdataset", "parquet"])
def again(request, pruned, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("again")
    export(pruned, folder / "first", request.param)
    np.save(folder / "x.npy", np.random.default_rng(3).normal(size=(12, 8)).astype(np.float16))
    return prune(folder / "first", folder)


@pytest.mark.parametrize("second", FORMATS)
def test_from_shards_and_tables_to_any_format(pruned, again, tmp_path, second):
    before = kept_originals(pruned)
    export(again, tmp_path / "second", second)
    found = originals(tmp_path / "second")
    assert {ids.decode(id) for id in found} == {ids.decode(id) for id in again.kept_ids}
    assert len(found) == 6
    assert all(found[id] == before[id] for id in found)


def test_shards_are_webdatasets(pruned, tmp_path):
    export(pruned, tmp_path / "out", "webdataset", shard_size=0.002)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert len(shards) > 2
    keys = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
        assert all((m.mtime, m.uid, m.uname) == (0, 0, "") for m in members)
        assert sum(m.size for m in members) <= 2000 or len(members) <= 2
        keys += dict.fromkeys(m.name.rpartition("/")[2].split(".")[0] for m in members)
    assert len(keys) == len(set(keys)) == 12
    index = pq.read_table(tmp_path / "out" / "kept.parquet").to_pylist()
    assert [row["id"] for row in index] == pruned.kept_ids
    assert {row["shard"] for row in index} == {shard.name for shard in shards}


@pytest.mark.parametrize("format", ["webdataset", "parquet", "huggingface"])
def test_the_same_call_gives_the_same_files_and_removes_older_shards(pruned, tmp_path, format):
    def contents() -> dict[str, bytes]:
        out = tmp_path / "out"
        return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}

    export(pruned, tmp_path / "out", format)
    once = contents()
    export(pruned, tmp_path / "out", format, shard_size=0.001)
    assert len(contents()) > len(once)
    export(pruned, tmp_path / "out", format)
    assert contents() == once


def test_hugging_face_loads_it(pruned, tmp_path):
    datasets = pytest.importorskip("datasets")
    export(pruned, tmp_path / "out", "huggingface", shard_size=0.003)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["id"]) == sorted(pruned.kept_ids)
    expected = kept_originals(pruned)
    for row in loaded:
        with Image.open(io.BytesIO(expected[row["id"]]["png"])) as image:
            assert np.array_equal(np.asarray(row["image"]), np.asarray(image))
        assert (row["caption"] or "").encode() == expected[row["id"]].get("txt", b"")


def scene(folder: Path, crs: str, left: float, top: float, size: float) -> Path:
    path = folder / "scenes" / f"{crs.replace(':', '')}.v2.tif"
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(2).integers(0, 9, (3, 64, 96)).cumsum(axis=2) % 256
    with rasterio.open(
        path, "w", driver="GTiff", width=96, height=64, count=3, dtype="uint8", crs=crs,
        transform=from_origin(left, top, size, size),
    ) as file:  # fmt: skip
        file.write(pixels.astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("windows")
    scene(folder, "EPSG:32632", 500_000, 5_200_000, 10)
    scene(folder, "EPSG:32601", 165_000, 1_000_000, 1000)  # lies on both sides of the antimeridian
    np.save(folder / "x.npy", np.random.default_rng(1).normal(size=(12, 8)).astype(np.float16))
    return prune(folder / "scenes", folder, tile=32)


@pytest.mark.parametrize("format", ["list", "webdataset", "parquet", "geotiff-list"])
def test_windows_come_back_with_their_ids_and_pixels(windows, tmp_path, format):
    export(windows, tmp_path / "out", format)
    source = open_source(SourceConfig(str(tmp_path / "out")))
    items = {item.id: item for item in source.items()}
    assert set(items) == set(windows.kept_ids)
    here = open_source(windows.settings.scan.sources[0])
    for item in here.items():
        if item.id in items:
            there = source.read(items[item.id])
            assert np.array_equal(there.pixels, here.read(item).pixels)
            assert source.header(items[item.id]).left == here.header(item).left


def test_footprints_lie_where_the_windows_do(windows, tmp_path):
    out = tmp_path / "out"
    export(windows, out, "geotiff-list")
    collection = json.loads((out / "footprints.geojson").read_text("utf-8"))
    assert [f["properties"]["id"] for f in collection["features"]] == windows.kept_ids
    manifest = {row["id"]: row for row in windows.table("scan").to_pylist()}
    table = pq.read_table(out / "kept.parquet")
    about = json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]
    assert about["encoding"] == "WKB"
    kinds = set()
    for feature, wkb in zip(collection["features"], table["geometry"].to_pylist(), strict=True):
        shape = feature["geometry"]
        kinds.add(shape["type"])
        polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
        assert all(np.ptp(np.array(p[0])[:, 0]) < 180 for p in polygons)
        row = manifest[feature["properties"]["id"]]
        if shape["type"] == "Polygon":
            corners = np.array(shape["coordinates"][0])
            assert wkb[:9] == b"\x01\x03\x00\x00\x00\x01\x00\x00\x00"
            assert np.array_equal(np.frombuffer(wkb[13:], "<f8").reshape(-1, 2), corners)
            middle = corners[:4].mean(axis=0)
            assert middle == pytest.approx([row["centre_lon"], row["centre_lat"]], abs=0.02)
            x, y = corners.T  # counter-clockwise: a positive area
            assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0
    assert kinds == {"Polygon", "MultiPolygon"} == set(about["geometry_types"])


def test_images_without_coordinates_have_no_footprints(pruned, tmp_path):
    with pytest.raises(ConfigError, match=r"12 of 12 kept images have no coordinates .* --format list"):
        export(pruned, tmp_path / "out", "geotiff-list")


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_an_image_that_has_gone_is_named_and_the_others_are_there(tmp_path, format):
    run = make_run(tmp_path)
    gone = run.kept_ids[3]
    Path(ids.decode(next(r["uri"] for r in run.decisions.to_pylist() if r["id"] == gone))).unlink()
    with pytest.raises(ConfigError, match="1 of 10 kept images could not be exported"):
        export(run, tmp_path / "out", format)
    assert set(originals(tmp_path / "out")) == set(run.kept_ids) - {gone}


def test_a_sidecar_that_is_no_text_is_said(pruned, tmp_path):
    run = make_run(tmp_path)
    path = Path(ids.decode(next(r["uri"] for r in run.decisions.to_pylist() if r["id"] == run.kept_ids[0])))
    path.with_suffix(".txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"not UTF-8 text: .*--format webdataset"):
        export(run, tmp_path / "out", "parquet")
    export(run, tmp_path / "shards", "webdataset")
    assert originals(tmp_path / "shards")[run.kept_ids[0]]["txt"] == b"\xff\xfe"


@pytest.mark.parametrize(("format", "words"), [("zip", "no export format"), ("webdataset", "above 0")])
def test_settings_that_make_no_sense(pruned, tmp_path, format, words):
    with pytest.raises(ConfigError, match=words):
        export(pruned, tmp_path / "out", format, shard_size=0)


def listed(folder: Path, **columns) -> Run:
    """A run over a table in `folder`, of which everything is kept."""
    path = write_table(folder / "t.parquet", **columns)
    np.save(
        folder / "x.npy", np.random.default_rng(0).normal(size=(len(columns["id"]), 8)).astype(np.float32)
    )
    return prune(path, folder, keep=1.0)


def test_copies_of_rows_that_name_files_have_their_extension_and_sidecars(tmp_path):
    for i, name in enumerate("uvw"):
        write_png(tmp_path / f"{name}.png", texture(24, 24, seed=i))
        (tmp_path / f"{name}.txt").write_text(name)
    run = listed(tmp_path, id=["123", "S2.0101", "S2.0102"], path=["u.png", "v.png", "w.png"])
    export(run, tmp_path / "out", "copy")
    found = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")}
    names = {"123": "u", "S2.0101": "v", "S2.0102": "w"}
    assert found == {
        f"{id}.{kind}": (tmp_path / f"{name}.{kind}").read_bytes()
        for id, name in names.items() for kind in ("png", "txt")
    }  # fmt: skip


def test_two_ids_that_ask_for_one_name(tmp_path):
    """One lacks the extension that the other has."""
    run = listed(tmp_path, id=["1", "1.png", "2"], image=[png(i) for i in range(3)])
    export(run, tmp_path / "out", "copy")
    found = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")}
    assert found == {"1.png": png(0), "1%232.png": png(1), "2.png": png(2)}


def test_a_sidecar_that_cannot_be_read_is_said(tmp_path):
    run = make_run(tmp_path)
    path = Path(ids.decode(next(r["uri"] for r in run.decisions.to_pylist() if r["id"] == run.kept_ids[0])))
    path.with_suffix(".txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=rf"1 of 10 kept images .*{path.stem}.txt, which cannot be read"):
        export(run, tmp_path / "out", "copy")


def test_where_no_image_can_be_read_that_is_said(tmp_path):
    run = make_run(tmp_path)
    for row in run.decisions.to_pylist():
        Path(ids.decode(row["uri"])).unlink(missing_ok=True)
    for format in ("webdataset", "parquet", "copy"):
        with pytest.raises(ConfigError, match="10 of 10 kept images could not be exported"):
            export(run, tmp_path / format, format)
