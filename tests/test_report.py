from __future__ import annotations

import base64
import io
import itertools
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from rsprune import charts, report, sheets
from rsprune.errors import ConfigError
from rsprune.filters import REASONS
from rsprune.report import write_report
from rsprune.run import Run, write_json, write_table
from rsprune.sources import ids
from run_folder import HOSTILE, SCENES, make_run, make_window_run

VOID = {"meta", "img", "br", "path", "use", "rect"}  # the last three close themselves in SVG


class Page(HTMLParser):
    """Tags, texts and table rows of a page; fails on tags that are not closed in turn."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.html, self.open, self.tags, self.texts, self.tables = html, [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def table(self, first_head):
        """Rows below the head of the table whose first column has that title."""
        (found,) = [t for t in self.tables if t[0][0].strip() == first_head]
        return [[cell.strip() for cell in row] for row in found[1:]]

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(run: Run) -> Page:
    return Page(write_report(run).read_text("utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(run):
    return read(run)


def test_numbers_are_those_of_the_decisions(run, page):
    reasons = Counter(run.decisions["reason"].to_pylist())
    assert len(reasons) >= 8
    rows = page.table("outcome")
    for (name, count, share, _), reason in zip(rows[:-1], [r for r in REASONS if reasons[r]], strict=True):
        assert name.startswith(reason.replace("_", " "))
        assert int(count) == reasons[reason]
        assert share == f"{100 * reasons[reason] / 52:.1f} %"
    assert rows[-1][:2] == ["all images", "52"]
    assert f"{reasons['kept']} of 52 images kept" in page.text
    assert page.text.count("low entropy") == 2  # the table, and the sheet of dropped ones


def test_scene_numbers_are_those_of_the_decisions(run, page):
    decisions = run.decisions.filter(pc.is_valid(run.decisions["scene"])).to_pylist()
    before = Counter(d["scene"] for d in decisions)
    after = Counter(d["scene"] for d in decisions if d["kept"])
    rows = page.table("scene")
    assert {r[0]: (int(r[1]), int(r[2])) for r in rows} == {s: (before[s], after[s]) for s in SCENES}
    assert [int(r[1]) for r in rows] == sorted(before.values(), reverse=True)


def test_threshold_and_seconds_are_shown(run, page):
    threshold = pc.min(run.decisions.filter(run.decisions["kept"])["threshold"]).as_py()
    assert f"12 images lie below the threshold of {threshold:.2f} bits" in page.text
    stages = {e["stage"]: e["seconds"] for e in run.log()}
    assert {r[0]: r[1] for r in page.table("stage")} == {
        s: f"{t:.1f}" for s, t in stages.items() if s != "report"
    }


def test_page_needs_nothing_from_outside(page):
    assert not re.search(
        r"(?i)https?:|//[a-z]+\.|javascript:|@import|<script|<link|<iframe|<object", page.html
    )
    for tag, attributes in page.tags:
        assert not [a for a in attributes if a.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/webp;base64,", "#")), tag
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page.html))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_hostile_names_are_shown_as_text(page):
    assert [t for t in page.tags if t[1].get("src") == "x"] == []
    shown = {t.strip() for t in page.texts}
    assert {ids.encode(name) for name in HOSTILE} <= shown
    assert {"new%0Aline.png", "caf%E9.png"} <= shown
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in page.html
    assert "<b>" not in page.html
    assert "<b>town</b> & $x_1$" in page.texts  # also as a label of the chart


def test_every_name_and_every_dropped_reason_has_its_place(run, page):
    pictured = [
        d["id"] for d in run.decisions.to_pylist() if d["reason"] not in ("unreadable", "over_budget")
    ]
    assert set(pictured) <= {t.strip() for t in page.texts}
    headings = [t.strip() for t in page.texts]
    for heading in ("nodata", "noise", "low entropy", "exact duplicate", "near duplicate", "over budget"):
        assert heading in headings
    assert page.table("image") == [["broken.png", "is damaged"]]


def test_page_is_accessible(page):
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(len(i["alt"]) > 10 for i in page.all("img"))
    assert all(s["role"] == "img" and len(s["aria-label"]) > 10 for s in page.all("svg"))
    found = [a["id"] for _, a in page.tags if "id" in a]
    assert len(found) == len(set(found))


def test_colours_have_enough_contrast(page):
    names = ("paper", "ink", "soft", "rule", "bar", "accent")
    palettes = re.findall("; ".join(rf"--{name}: (#\w+)" for name in names), page.html)
    assert len(palettes) == 2

    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (
            0.2126,
            0.7152,
            0.0722,
        )

    def contrast(a, b):
        hi, lo = sorted((luminance(a), luminance(b)), reverse=True)
        return (hi + 0.05) / (lo + 0.05)

    for paper, ink, soft, _, bar, accent in palettes:
        assert min(contrast(paper, c) for c in (ink, soft, accent)) >= 4.5
        assert contrast(paper, bar) >= 3


def test_same_folder_gives_the_same_bytes(run):
    first = write_report(run).read_bytes()
    run.note(stage="report", started="2026-01-01T00:00:00+00:00", seconds=4.2)
    assert write_report(Run.open(run.path)).read_bytes() == first
    assert not list(run.path.glob("*.tmp"))


def test_sheets_hold_the_images(run, page):
    first = page.all("img")[0]
    sheet = Image.open(io.BytesIO(base64.b64decode(first["src"].partition(",")[2]))).convert("RGB")
    assert (sheet.width, sheet.height) == (int(first["width"]), int(first["height"]))
    best = run.kept_ids[0]
    uri = pc.index(run.decisions["id"], best).as_py()
    with Image.open(ids.decode(run.decisions["uri"][uri].as_py())) as original:
        pixels = np.asarray(original, np.float32)
    at = sheets.RING + sheets.GAP // 2
    shown = np.asarray(sheet, np.float32)[at : at + 64, at : at + 64]
    assert np.abs(shown - pixels).mean() < 12  # lossy, but that very image


def test_kept_images_are_outlined():
    red = Image.new("RGB", (64, 64), (200, 0, 0))
    sheet = sheets.contact_sheet([(red, True), (red, False), (None, True)], columns=2)
    pixels = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(sheet["src"].partition(",")[2]))).convert("RGBA")
    )
    assert pixels.shape == (2 * sheets.PITCH, 2 * sheets.PITCH, 4)
    middle = sheets.PITCH // 2
    ring = pixels[middle, 2].astype(int)
    assert np.abs(ring - sheets.OUTLINE).max() < 60
    assert pixels[middle, sheets.PITCH + 2, 3] == 0  # no ring: the page shows through
    assert 60 < pixels[sheets.PITCH + 10, middle, 3] < 140  # grey cell
    assert pixels[-1, -1, 3] == 0


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


def test_notes(tmp_path):
    plain = make_run(tmp_path / "a")
    assert read(plain).text.count("1 image could not be read") == 1
    assert "pseudo-scenes" not in read(plain).text
    assert "Fewer images" not in read(plain).text
    greedy = make_run(tmp_path / "b", keep=0.9, references=())
    write_json(greedy.path / "radiometry.json", [{**greedy.json("radiometry.json")[0], "estimated": True}])
    text = read(greedy).text
    assert "No labelled reference was given" in text
    assert "Fewer images are left than were asked for: 27 instead of 46." in text
    assert "The value range of tiles was estimated" in text
    assert "(estimated)" in text


def test_several_sources_have_a_histogram_each(tmp_path):
    page = read(make_run(tmp_path, sources=3))
    assert {"s0", "s1", "s2"} <= {t.strip() for t in page.texts}
    assert "of each of 3 sources" in page.all("svg")[0]["aria-label"]
    assert [r[0] for r in page.table("source")] == ["s0", "s1", "s2"]


def test_duplicates_stand_beside_the_image_that_stays(tmp_path):
    run = make_run(tmp_path, keep=0.9)
    columns = report._columns(run)
    groups = {
        columns["id"][i]: [columns["id"][j] for j in rows]
        for i, rows in report._duplicate_groups(run, columns)
    }
    assert sorted(map(len, groups.values())) == [3, 4]
    near = next(of for of, rows in groups.items() if len(rows) == 4)
    assert sorted(groups.pop(near)) == [f"nearly {k}.png" for k in range(4)]
    ((stays, rows),) = groups.items()
    assert len({stays, *rows} & {f"copy {k}.png" for k in range(3)}) >= 2
    assert "4 like it" in read(run).text


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
    for stage, table in (("scan", scan), ("score", score)):
        for part in run.parts(stage):
            part.unlink()
        write_table(run.part(stage, 0), table)
    write_table(run.path / "decisions.parquet", decisions)
    reads = []
    tile = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    monkeypatch.setattr(sheets, "_thumbnail", lambda reader, row: (reads.append(row["id"]), tile)[1])
    path = write_report(run)
    assert path.stat().st_size < 8e6
    assert len(reads) == len(set(reads)) < 500
    page = Page(path.read_text("utf-8"))
    assert "The 40 largest of 900 clusters" in page.text
    assert "A sample of 70 of the" in page.text


@pytest.mark.parametrize(
    "calibration",
    [
        "",
        "no json",
        "[]",
        '{"references": null}',
        '{"references": {}, "joint": {}}',
        '{"references": {"<b>": {"<b>": {"<b>": "<b>"}, "<i>": []}}, "joint": 3}',
        '{"references": [3, null, {}]}',
        '{"references": [{"name": "<b>", "nmi": null, "deep": {"a": [1, {"b": true}]}, "empty": []}]}',
    ],
)
def test_any_calibration_gives_a_page(tmp_path, calibration):
    run = make_run(tmp_path)
    (run.path / "calibration.json").write_text(calibration)
    assert "<b>" not in read(run).html


def test_reference_benchmark_is_shown(tmp_path):
    run = make_run(tmp_path)
    agreement = {
        "at_classes": {"nmi": 0.52341, "clusters": 1200},
        "at_granularity": {"nmi": None, "purity": 1.0},
    }
    calibration = {
        "encoder": "lite0",
        "references": {"land use": {"images": 900, "classes": ["a", "b"], **agreement}},
        "joint": {"reached": False, **agreement},
    }
    write_json(run.path / "calibration.json", calibration)
    page = read(run)
    rows = [["at classes", "0.523", "1,200", "–"], ["at granularity", "–", "–", "1.000"]]
    assert [t[1:] for t in page.tables if t[0][0] == "clusters of the reference"] == [rows, rows]
    assert "land use images 900 classes a, b" in page.text
    assert "labels reached no" in page.text


def test_charts_of_extreme_input():
    nothing = np.empty(0, np.float32)
    one = np.array([3.0], np.float32)
    for panels, threshold in (
        ({"a": (nothing, nothing)}, None),
        ({"a": (one, nothing)}, 3.0),
        ({"a": (one, one), "$\\frac{": (np.linspace(0, 8, 100), nothing)}, 12.0),
        ({"a": (np.linspace(0, 8, 100), nothing)}, float(np.float32(2.1))),
    ):
        svg = charts.entropy_histogram(panels, threshold, alt="alt")
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
    charts.entropy_histogram({"a": (values, values)}, 4.321, alt="alt")
    assert np.abs(seen[0] - 4.321).min() < 1e-9
    assert seen[0][0] <= values.min()
    assert seen[0][-1] >= values.max()


def test_nothing_selected_yet(tmp_path):
    run = make_run(tmp_path)
    (run.path / ".stages" / "select.json").unlink()
    with pytest.raises(ConfigError, match="rsprune select"):
        write_report(run)
    assert not run.report_path.exists()
