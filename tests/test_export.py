from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rsprune.errors import ConfigError
from rsprune.export import MARKER, export
from rsprune.files import write_table
from rsprune.sources import ids
from run_folder import HOSTILE, make_run, make_window_run

WINDOWS = [(0, 0, 64, 64), (64, 0, 64, 64), (0, 64, 64, 64), (100, 60, 64, 64)]


def tree(folder: Path) -> dict[str, bytes]:
    """Contents by relative path; links as what they point to."""
    return {
        str(p.relative_to(folder)): os.fsencode(p.readlink()) if p.is_symlink() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def keep_also(run, names):
    """Marks further images as kept, behind the others."""
    decisions = run.decisions
    kept = pc.or_(decisions["kept"], pc.is_in(decisions["id"], value_set=names))
    rank = np.argsort(np.argsort(~kept.to_numpy(), kind="stable"))
    write_table(
        run.path / "decisions.parquet",
        decisions.set_column(2, "kept", kept).set_column(4, "rank", [rank]),
    )


@pytest.fixture
def run(tmp_path):
    import pyarrow as pa

    run = make_run(tmp_path)
    keep_also(run, pa.array([ids.encode(name) for name in HOSTILE]))
    return run


def kept(run):
    return [d for d in run.decisions.sort_by("rank").to_pylist() if d["kept"]]


def test_list(tmp_path):
    run = make_run(tmp_path)
    result = export(run, tmp_path / "out")
    assert (result.count, result.path) == (10, tmp_path / "out")
    assert (tmp_path / "out" / "kept.txt").read_bytes() == (run.path / "kept.txt").read_bytes()
    rows = pq.read_table(tmp_path / "out" / "kept.parquet").to_pylist()
    assert list(rows[0]) == ["id", "uri", "rank", "cluster", "scene", "x", "y", "w", "h", "member"]
    assert [r["id"] for r in rows] == run.kept_ids
    assert [r["rank"] for r in rows] == list(range(10))
    expected = {d["id"]: (d["uri"], d["cluster"], d["scene"]) for d in kept(run)}
    assert {r["id"]: (r["uri"], r["cluster"], r["scene"]) for r in rows} == expected


def test_copy_gives_the_original_bytes_and_names(run, tmp_path):
    result = export(run, tmp_path / "out", "copy")
    files = tree(tmp_path / "out")
    del files[MARKER]
    assert result.count == len(files) == len(kept(run)) > len(HOSTILE)
    for d in kept(run):
        name = ids.decode(d["id"])
        name = d["id"] if "\n" in name else name
        assert files[name] == Path(ids.decode(d["uri"])).read_bytes()
    assert {"50% #1.png", os.fsdecode(b"caf\xe9.png"), "new%0Aline.png", "sub dir/日本.png"} <= set(files)


def test_copy_keeps_the_time(run, tmp_path):
    first = kept(run)[0]
    os.utime(ids.decode(first["uri"]), ns=(10**18, 10**18))
    export(run, tmp_path / "out", "copy")
    assert (tmp_path / "out" / ids.decode(first["id"])).stat().st_mtime_ns == 10**18


def test_symlinks_are_absolute(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(run, "out", "symlink").count == len(kept(run))
    for d in kept(run):
        name = d["id"] if "\n" in ids.decode(d["id"]) else ids.decode(d["id"])
        assert str((tmp_path / "out" / name).readlink()) == ids.decode(d["uri"])


@pytest.mark.parametrize("format", ["list", "copy", "symlink"])
def test_same_call_again_gives_the_same_files(run, tmp_path, format):
    export(run, tmp_path / "out", format)
    first = tree(tmp_path / "out")
    export(run, tmp_path / "out", format)
    assert tree(tmp_path / "out") == first


@pytest.mark.parametrize("format", ["copy", "symlink"])
def test_sidecars_travel_along(tmp_path, format):
    run = make_run(tmp_path)
    path = Path(ids.decode(kept(run)[0]["uri"]))
    beside = {
        f"{path.stem}.txt": b"a caption", f"{path.stem}.json": b"{}", f"{path.stem}.PGW": b"10",
        f"{path.name}.aux.xml": b"<a/>",
    }  # fmt: skip
    for name, content in {
        **beside,
        f"{path.stem}.doc": b"no",
        f"{path.stem}x.txt": b"no",
        "a.txt": b"no",
    }.items():
        (path.parent / name).write_bytes(content)
    export(run, tmp_path / "out", format)
    folder = (tmp_path / "out" / ids.decode(kept(run)[0]["id"])).parent
    found = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".png" and p.name != MARKER}
    assert found == beside


def test_files_of_an_older_selection_go_and_others_stay(tmp_path):
    large, small = make_run(tmp_path, keep=0.4), make_run(tmp_path / "b", keep=0.1)
    out = tmp_path / "out"
    export(large, out, "copy")
    (out / "mine.txt").write_text("a note")
    (out / "woods" / "mine.txt").parent.mkdir(exist_ok=True)
    (out / "woods" / "mine.txt").write_text("another")
    export(small, out, "copy")
    expected = {ids.decode(d["id"]) for d in kept(small)} | {MARKER, "mine.txt", "woods/mine.txt"}
    assert set(tree(out)) == expected
    export(small, out, "list")
    assert set(tree(out)) == {"kept.txt", "kept.parquet", MARKER, "mine.txt", "woods/mine.txt"}
    assert [p.name for p in out.iterdir() if p.is_dir()] == ["woods"]


def test_foreign_folders_are_refused(tmp_path):
    run = make_run(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"precious")
    for format in ("list", "copy", "symlink"):
        with pytest.raises(ConfigError, match="holds files that no export wrote"):
            export(run, out, format)
    assert tree(out) == {"photo.jpg": b"precious"}
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        export(run, out / "photo.jpg")
    (out / MARKER).write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        export(run, out)
    (out / MARKER).unlink()
    (out / MARKER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="holds files that no export wrote"):
        export(run, out)


@pytest.mark.parametrize(
    "evil", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "a//evil.png", "./evil.png", ".."]
)
def test_ids_cannot_leave_the_folder(tmp_path, evil):
    run = make_run(tmp_path)
    first = run.kept_ids[0]
    for stage in ("scan", "score", "cluster"):
        for part in run.parts(stage):
            write_table(part, renamed(pq.read_table(part), first, evil))
    write_table(run.path / "decisions.parquet", renamed(run.decisions, first, evil))
    before = {p for p in tmp_path.rglob("*") if tmp_path / "out" not in p.parents}
    with pytest.raises(
        ConfigError, match=r"1 of 10 kept images could not be exported.*would leave the folder"
    ):
        export(run, tmp_path / "out", "copy")
    after = {p for p in tmp_path.rglob("*") if tmp_path / "out" not in p.parents}
    assert after - before == {tmp_path / "out"}
    assert len(tree(tmp_path / "out")) == 9 + 1


@pytest.mark.parametrize(
    "encoded", ["%2E%2E/evil.png", "%2Fetc%2Fevil.png", "a%2F..%2F..%2Fevil.png", "%00.png"]
)
def test_encoded_separators_stay_encoded(tmp_path, encoded):
    run = make_run(tmp_path)
    first = run.kept_ids[0]
    for part in run.parts("scan"):
        write_table(part, renamed(pq.read_table(part), first, encoded))
    write_table(run.path / "decisions.parquet", renamed(run.decisions, first, encoded))
    export(run, tmp_path / "out", "copy")
    assert encoded in tree(tmp_path / "out")


def renamed(table, old, new):
    import pyarrow as pa

    names = [new if name == old else name for name in table["id"].to_pylist()]
    return table.set_column(table.column_names.index("id"), "id", pa.array(names))


def test_two_ids_never_share_a_file(tmp_path):
    run = make_run(tmp_path)
    one, two = run.kept_ids[:2]
    new = {one: "new%0Aline.png", two: "new%250Aline.png"}  # a newline, and the characters "%0A"
    for table, path in [(pq.read_table(p), p) for p in run.parts("scan")] + [
        (run.decisions, run.path / "decisions.parquet")
    ]:
        for old, name in new.items():
            table = renamed(table, old, name)
        write_table(path, table)
    export(run, tmp_path / "out", "copy")
    files = tree(tmp_path / "out")
    assert len(files) == 10 + 1
    assert {"new%0Aline.png", "new%250Aline.png"} <= set(files)


def test_links_in_the_folder_are_not_followed(tmp_path):
    run = make_run(tmp_path)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    precious = elsewhere / "precious"
    precious.write_bytes(b"precious")
    export(run, out, "copy")
    inside = next(p for p in out.rglob("*.png") if p.parent != out)
    original = inside.read_bytes()
    inside.unlink()
    inside.symlink_to(precious)
    export(run, out, "copy")
    assert not inside.is_symlink()
    assert inside.read_bytes() == original
    assert precious.read_bytes() == b"precious"
    folder = inside.parent
    shutil.rmtree(folder)
    folder.symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(ConfigError, match="do not follow links"):
        export(run, out, "copy")
    export(run, out, "list")  # removes what the marker lists, but not through the link
    assert tree(elsewhere) == {"precious": b"precious"}


def test_marker_cannot_remove_files_outside(tmp_path):
    run = make_run(tmp_path)
    out = tmp_path / "out"
    export(run, out)
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (out / MARKER).write_text(json.dumps({"files": ["../precious", str(precious), "", ".", "kept.txt"]}))
    export(run, out, "copy")
    assert precious.exists()
    assert not (out / "kept.txt").exists()


@pytest.mark.parametrize("format", ["copy", "symlink"])
def test_images_that_have_gone_are_counted_and_the_rest_is_there(tmp_path, format):
    run = make_run(tmp_path)
    gone = [Path(ids.decode(d["uri"])) for d in kept(run)[3:5]]
    for path in gone:
        path.rename(path.with_suffix(".away"))
    gone_id = kept(run)[3]["id"]
    with pytest.raises(ConfigError, match="2 of 10 kept images could not be exported") as error:
        export(run, tmp_path / "out", format)
    assert f"(first: {gone_id} cannot be read: No such file or directory)" in str(error.value)
    assert len(tree(tmp_path / "out")) == 8 + 1
    for path in gone:
        path.with_suffix(".away").rename(path)
    assert export(run, tmp_path / "out", format).count == 10
    assert len(tree(tmp_path / "out")) == 10 + 1


def test_copy_of_an_image_that_has_gone_is_not_removed(tmp_path):
    run = make_run(tmp_path)
    export(run, tmp_path / "out", "copy")
    first = tree(tmp_path / "out")
    Path(ids.decode(kept(run)[0]["uri"])).unlink()
    with pytest.raises(ConfigError, match="1 of 10 kept images could not be exported"):
        export(run, tmp_path / "out", "copy")
    assert tree(tmp_path / "out") == first


def test_interrupted_export_can_be_repeated(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    replace = Path.replace
    left = [5]

    def stop(self, target):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "out", "copy")
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert export(run, tmp_path / "out", "copy").count == 10
    assert len(tree(tmp_path / "out")) == 10 + 1


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    run = make_run(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(ConfigError, match=r"cannot write to .*out: No space left on device"):
        export(run, tmp_path / "out", "copy")


def test_windows_are_not_linked(tmp_path):
    Image.new("RGB", (192, 128)).save(tmp_path / "scene.png")
    run = make_window_run(tmp_path, tmp_path / "scene.png", WINDOWS, "uint8", 3)
    with pytest.raises(ConfigError, match="no files to link to"):
        export(run, tmp_path / "out", "symlink")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mode", "format"), [("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG"), ("I;16", "PNG")]
)
def test_windows_of_plain_scenes_become_lossless_png(tmp_path, mode, format):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 4096, (128, 192), np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (128, 192, 4), np.uint8), "RGBA").convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(rng.integers(0, 2, (128, 192), np.uint8) * 255))
    path = tmp_path / "odd #scene.img"  # codecs go by content
    image.save(path, format)
    with Image.open(path) as stored:
        pixels = np.asarray(stored)
    run = make_window_run(
        tmp_path, path, WINDOWS, "uint16" if mode == "I;16" else "uint8", 1 if mode in ("L", "I;16") else 3
    )
    assert export(run, tmp_path / "out", "copy").count == 4
    files = sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != MARKER)
    assert files == sorted(f"odd #scene_{x}_{y}_{w}_{h}.png" for x, y, w, h in WINDOWS)
    for x, y, w, h in WINDOWS:
        with Image.open(tmp_path / "out" / f"odd #scene_{x}_{y}_{w}_{h}.png") as crop:
            np.testing.assert_array_equal(np.asarray(crop), pixels[y : y + h, x : x + w])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float64"])
@pytest.mark.parametrize("name", ["scene.tif", os.fsdecode(b"caf\xe9.tif")])
def test_windows_of_geotiff_scenes_stay_geotiff(tmp_path, dtype, name):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(0, 200, (4, 128, 192)).astype(dtype)
    transform = rasterio.transform.from_origin(500_000, 4_000_000, 10, 10)
    profile = {"driver": "GTiff", "width": 192, "height": 128, "count": 4, "dtype": dtype, "nodata": 0}
    plain = tmp_path / "plain.tif"
    with rasterio.open(plain, "w", crs="EPSG:32618", transform=transform, **profile) as scene:
        scene.write(pixels)
        scene.descriptions = ("B02", "B03", "B04", "B08")
        scene.update_tags(PLATFORM="Sentinel-2")
    path = tmp_path / name
    plain.rename(path)
    run = make_window_run(tmp_path, path, WINDOWS, "uint16" if dtype == "uint16" else "uint8", 4)
    export(run, tmp_path / "out", "copy")
    first = tree(tmp_path / "out")
    for x, y, w, h in WINDOWS:
        crop_path = tmp_path / "out" / f"{path.stem}_{x}_{y}_{w}_{h}.tif"
        with crop_path.open("rb") as file, rasterio.open(file) as crop:
            np.testing.assert_array_equal(crop.read(), pixels[:, y : y + h, x : x + w])
            assert crop.dtypes == (dtype,) * 4
            assert crop.crs.to_epsg() == 32618
            assert crop.transform == transform @ rasterio.Affine.translation(x, y)
            assert crop.nodata == 0
            assert crop.descriptions == ("B02", "B03", "B04", "B08")
            assert crop.tags()["PLATFORM"] == "Sentinel-2"
    export(run, tmp_path / "out", "copy")
    assert tree(tmp_path / "out") == first


def test_window_of_a_scene_without_coordinates_with_a_mask(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(1, 200, (3, 128, 192), np.uint8)
    mask = np.zeros((128, 192), np.uint8)
    mask[:, :80] = 255
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(tmp_path / "scene.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "scene.tif", "r+") as scene:
            scene.write_mask(mask)
        run = make_window_run(tmp_path, tmp_path / "scene.tif", WINDOWS[1:2], "uint8", 3)
        export(run, tmp_path / "out", "copy")
        assert set(tree(tmp_path / "out")) == {"scene_64_0_64_64.tif", MARKER}
        with rasterio.open(tmp_path / "out" / "scene_64_0_64_64.tif") as crop:
            np.testing.assert_array_equal(crop.read(), pixels[:, :64, 64:128])
            np.testing.assert_array_equal(crop.read_masks(1), mask[:64, 64:128])


def test_scene_that_has_gone(tmp_path):
    Image.new("RGB", (192, 128)).save(tmp_path / "scene.png")
    run = make_window_run(tmp_path, tmp_path / "scene.png", WINDOWS, "uint8", 3)
    (tmp_path / "scene.png").unlink()
    with pytest.raises(ConfigError, match="4 of 4 kept images could not be exported"):
        export(run, tmp_path / "out", "copy")
