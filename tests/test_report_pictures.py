from __future__ import annotations

import base64
import io
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from safetensors.numpy import save_file

from report_page import Page, read
from rsprune.columns import Columns
from rsprune.files import write_array, write_table
from rsprune.report import charts, examples, sheets, write_report
from rsprune.report import page as page_module
from rsprune.sources import ids
from run_folder import make_run, make_window_run


def test_sheets_hold_the_images(reported, page):
    first = next(i for i in page.all("img") if "best first" in i["alt"])
    sheet = Image.open(io.BytesIO(base64.b64decode(first["src"].partition(",")[2]))).convert("RGB")
    assert (sheet.width, sheet.height) == (int(first["width"]), int(first["height"]))
    best = reported.kept_ids[0]
    uri = pc.index(reported.decisions["id"], best).as_py()
    with Image.open(ids.decode(reported.decisions["uri"][uri].as_py())) as original:
        pixels = np.asarray(original, np.float32)
    at = sheets.RING + sheets.GAP // 2
    shown = np.asarray(sheet, np.float32)[at : at + 64, at : at + 64]
    assert np.abs(shown - pixels).mean() < 12  # lossy, but that very image


def test_kept_images_are_outlined():
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    sheet = sheets.contact_sheet(
        [(white, sheets.KEPT), (white, None), (None, sheets.KEPT), (white, sheets.STAYS)], columns=2
    )
    pixels = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(sheet["src"].partition(",")[2]))).convert("RGBA")
    )
    assert pixels.shape == (2 * sheets.PITCH, 2 * sheets.PITCH, 4)
    middle = sheets.PITCH // 2
    ring = pixels[middle, 2].astype(int)
    assert np.abs(ring - sheets.KEPT).max() < 60
    assert np.abs(pixels[sheets.PITCH + middle, sheets.PITCH + 2].astype(int) - sheets.STAYS).max() < 60
    assert pixels[middle, sheets.PITCH + 2, 3] == 0  # no ring: the page shows through
    edge = pixels[middle, sheets.PITCH + 3].astype(int)  # but a line, or ice would vanish on white paper
    assert np.abs(edge - sheets.EDGE).max() < 60
    assert 60 < pixels[sheets.PITCH + 10, middle, 3] < 140  # grey cell
    assert pixels[-1, 0, 3] == 0


@pytest.mark.parametrize(
    ("shape", "size"),
    [((200, 100), (32, 64)), ((64, 64), (64, 64)), ((10, 20), (60, 30)), ((1, 500), (64, 1))],
)
@pytest.mark.parametrize("bands", [1, 2, 3, 13])
def test_thumbnails_of_any_shape_and_band_count(shape, size, bands):
    class Reader:
        def uint8(self, row):
            return np.full((*shape, bands), 77, np.uint8)

    thumbnail = sheets._thumbnail(Reader(), {})
    assert thumbnail.size == size
    assert thumbnail.getpixel((0, 0)) == (77, 77, 77)


def test_images_that_have_gone_are_grey_cells(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "tiles" / "noise" / "0.png").unlink()
    (tmp_path / "tiles" / "noise" / "1.png").write_bytes(b"other")
    assert "2 of the images shown below could not be read when this page was made" in read(run).text
    shutil.rmtree(tmp_path / "tiles")
    page = read(run)
    assert len(page.all("img")) > 8
    assert re.search(r"\d\d of the images shown below could not be read", page.text)


def test_several_sources_have_a_histogram_each(tmp_path):
    page = read(make_run(tmp_path, sources=3))
    shown = {t.strip() for t in page.texts}
    assert {"s0, 17 images", "s1, 17 images", "s2, 17 images"} <= shown  # each panel has a scale of its own
    assert any("of each of 3 sources" in s["aria-label"] for s in page.all("svg"))
    assert [r[0] for r in page.table("source")] == ["s0", "s1", "s2"]


def test_duplicates_stand_beside_the_image_that_stays(tmp_path):
    run = make_run(tmp_path, keep=0.9)
    n, found = examples.duplicate_groups(Columns(run))
    names = run.decisions["id"].to_pylist()
    groups = {names[first]: [names[i] for i in rows[1:]] for first, _, rows in found}
    assert n == len(groups)
    assert all(size == len(rows) - 1 for _, size, rows in found)
    assert sorted(map(len, groups.values())) == [3, 4]
    near = next(of for of, rows in groups.items() if len(rows) == 4)
    assert sorted(groups.pop(near)) == [f"nearly {k}.png" for k in range(4)]
    ((stays, rows),) = groups.items()
    assert len({stays, *rows} & {f"copy {k}.png" for k in range(3)}) >= 2
    page = read(run)
    reasons = dict(zip(names, run.decisions["reason"].to_pylist(), strict=True))
    assert f"and 4 like it · {said(reasons[near])}" in page.text
    assert f"and 3 like it · {said(reasons[stays])}" in page.text


def said(reason):
    """What the heading of a group says of the image that stays."""
    return "kept" if reason == "kept" else f"dropped itself: {reason.replace('_', ' ')}"


def test_few_clusters_are_all_shown_and_many_in_part(reported, monkeypatch):
    monkeypatch.setattr(examples, "PER_ORDER", 1)
    monkeypatch.setattr(examples, "ORDERS", (("largest first", "size", True),) * 4)
    assert len(examples.clusters(Columns(reported), 0)) == 4
    monkeypatch.setattr(examples, "ORDERS", (("largest first", "size", True),) * 3)
    assert len(examples.clusters(Columns(reported), 0)) == 1


def test_names_break_between_their_parts():
    name = "a/b_<c>.tif#0,64"
    assert page_module._breakable(name) == "a/<wbr>b_<wbr>&lt;c&gt;.tif#<wbr>0,<wbr>64"


def test_windows_of_a_scene_are_read_together(tmp_path, monkeypatch):
    scene = tmp_path / "scene.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (128, 192, 3), np.uint8)).save(scene)
    run = make_window_run(
        tmp_path, scene, [(x, y, 64, 64) for x in (128, 0, 64) for y in (64, 0)], "uint8", 3
    )
    seen = []
    read_one = sheets._thumbnail
    monkeypatch.setattr(
        sheets, "_thumbnail", lambda r, row: (seen.append((row["y"], row["x"])), read_one(r, row))[1]
    )
    assert "6 of 6 images kept" in read(run).text
    assert seen == sorted(seen)
    assert len(seen) == 6


def test_amount_shown_is_bounded(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    n = 30_000
    rng = np.random.default_rng(0)
    decisions = run.decisions.take(rng.integers(0, 51, n))
    names = pa.array([f"{i:06d} a rather long name of an image.png" for i in range(n)])
    cluster = pa.array(rng.integers(0, 900, n), pa.int32())
    decisions = decisions.set_column(0, "id", names).set_column(7, "cluster", cluster)
    scan = run.table("scan").take(rng.integers(0, 51, n)).set_column(0, "id", names)
    score = run.table("score").take(rng.integers(0, 51, n)).set_column(0, "id", names)
    assigned = run.table("cluster").take(rng.integers(0, 51, n))
    for stage, table in (("scan", scan), ("score", score), ("cluster", assigned)):
        for part in run.parts(stage):
            part.unlink()
        write_table(run.part(stage, 0), table)
    write_table(run.path / "decisions.parquet", decisions)
    save_file({"spreads": rng.random(900, np.float32)}, run.path / "clusters.safetensors")
    for part in run.parts("embed"):
        part.unlink()
    write_array(run.part("embed", 0), rng.normal(size=(n, 16)).astype(np.float16))
    reads = []
    tile = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    monkeypatch.setattr(sheets, "_thumbnail", lambda reader, row: (reads.append(row["id"]), tile)[1])
    path = write_report(run)
    assert path.stat().st_size < 12e6
    assert len(reads) == len(set(reads)) < 3500
    page = Page(path.read_text("utf-8"))
    assert re.search(r"1\d\d of 900 clusters: those that come first by size", page.text)
    assert "A sample of 70 of the" in page.text


@pytest.mark.parametrize("log", [False, True])
def test_charts_of_extreme_input(log):
    nothing = np.empty(0, np.float32)
    one = np.array([3.0], np.float32)
    for panels, threshold in (
        ({"a": (nothing, nothing)}, None),
        ({"a": (one, nothing)}, 3.0),
        ({"a": (one, one), "$\\frac{": (np.linspace(0, 8, 100), nothing)}, 12.0),
        ({"a": (np.linspace(0, 8, 100), nothing)}, float(np.float32(2.1))),
    ):
        svg = charts.histogram(panels, threshold, label="bits", alt="alt", log=log)
        assert svg.startswith("<svg viewBox=")
        assert "#0102" not in svg
    svg = charts.scene_shares(
        [("", 0.0, 0.0), ("x\ny\0" * 30, 1.0, 0.0), ("京\u0627", 0.5, 0.1)], alt='a "quote"'
    )
    assert "a &quot;quote&quot;" in svg
    assert "\0" not in svg


def test_bars_of_the_histogram_do_not_straddle_the_threshold(monkeypatch):
    seen = []
    monkeypatch.setattr(
        np, "histogram", lambda values, edges: (seen.append(edges), (np.ones(len(edges) - 1), edges))[1]
    )
    values = np.random.default_rng(0).normal(5, 1, 1000)
    charts.histogram({"a": (values, values)}, 4.321, label="bits", alt="alt")
    assert np.abs(seen[0] - 4.321).min() < 1e-9
    assert seen[0][0] <= values.min()
    assert seen[0][-1] >= values.max()
