from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pyarrow.compute as pc
import pytest

from report_page import read
from rsprune.columns import Columns
from rsprune.errors import ConfigError
from rsprune.files import write_json
from rsprune.filters import REASONS
from rsprune.report import charts, maps, search, sheets, words, write_report
from rsprune.report.budget import nearest_better, what_if
from rsprune.report.calibration import calibration_section
from rsprune.report.maps import density
from rsprune.report.page import _environment
from rsprune.run import Run
from rsprune.sources import ids
from run_folder import HOSTILE, SCENES, make_run


def test_numbers_are_those_of_the_decisions(reported, page):
    reasons = Counter(reported.decisions["reason"].to_pylist())
    assert len(reasons) >= 8
    rows = page.table("outcome")
    for (name, count, share, _), reason in zip(rows[:-1], [r for r in REASONS if reasons[r]], strict=True):
        assert name.startswith(reason.replace("_", " "))
        assert int(count) == reasons[reason]
        assert share == f"{100 * reasons[reason] / 52:.1f} %"
    assert rows[-1][:2] == ["all images", "52"]
    assert f"{reasons['kept']} of 52 images kept" in page.text
    assert page.text.count("low entropy") == 2  # the table, and the sheet of dropped ones


@pytest.mark.parametrize("searched", [30, 52])
def test_as_many_images_can_be_searched_as_there_is_room_for(reported, monkeypatch, searched):
    """Those that are shown anyway take no place twice."""
    monkeypatch.setattr(search, "SEARCHED", searched)
    facts = search.facts(Columns(reported), list(range(0, 52, 3)))
    assert len(set(facts["id"])) == len(facts["id"]) == searched


def test_scene_numbers_are_those_of_the_decisions(reported, page):
    decisions = reported.decisions.filter(pc.is_valid(reported.decisions["scene"])).to_pylist()
    before = Counter(d["scene"] for d in decisions)
    after = Counter(d["scene"] for d in decisions if d["kept"])
    rows = page.table("scene")
    assert {r[0]: (int(r[1]), int(r[2])) for r in rows} == {s: (before[s], after[s]) for s in SCENES}
    assert [int(r[1]) for r in rows] == sorted(before.values(), reverse=True)
    assert {r[0]: r[3] for r in rows} == {s: f"{100 * after[s] / before[s]:.1f} %" for s in SCENES}


def test_threshold_and_seconds_are_shown(reported, page):
    threshold = pc.min(reported.decisions.filter(reported.decisions["kept"])["threshold"]).as_py()
    assert f"12 images were dropped for lying below the threshold of {threshold:.2f} bits" in page.text
    assert "No image was dropped for lying above" in page.text
    stages = {e["stage"]: e["seconds"] for e in reported.log()}
    assert {r[0]: r[1] for r in page.table("stage")} == {
        s: f"{t:.1f}" for s, t in stages.items() if s != "report"
    }
    total = sum(t for s, t in stages.items() if s != "report")
    assert f"all stages {words.duration(total)}" in page.text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.9, "1 h 0 min"),
        (7777, "2 h 10 min"),
    ],
)
def test_durations(seconds, said):
    assert words.duration(seconds) == said


def test_page_needs_nothing_from_outside(page):
    without_scripts = re.sub(r"<script.*?</script>", "", page.html, flags=re.S)
    own = re.sub(r'<script type="text/plain".*?</script>', "", page.html, flags=re.S)
    assert not re.search(r"(?i)https?:|javascript:|@import|<link|<iframe|<object|\bimport\(|\bfetch\(", own)
    for tag, attributes in page.tags:
        assert not [a for a in attributes if a.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#")), tag
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", without_scripts))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    scripts = re.search(r"script-src ([^;]*);", policy)[1].split()
    assert len(scripts) == 2
    assert all(source.startswith("'sha256-") for source in scripts)


def test_hostile_names_are_shown_as_text(page):
    assert [t for t in page.tags if t[1].get("src") == "x"] == []
    shown = {t.strip() for t in page.texts}
    assert {ids.encode(name) for name in HOSTILE} <= shown
    assert {"new%0Aline.png", "caf%E9.png"} <= shown
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in page.html
    assert "<b>" not in page.html
    assert "<b>town</b> & $x_1$" in page.texts  # also as a label of the chart
    data = next(t for t in re.findall(r'<script type="application/json".*?</script>', page.html, flags=re.S))
    assert data.count("<") == 2


def test_every_name_and_every_dropped_reason_has_its_place(reported, page):
    pictured = [
        d["id"] for d in reported.decisions.to_pylist() if d["reason"] not in ("unreadable", "over_budget")
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
    assert all(len(i["alt"]) > 10 for i in page.all("img") if "hidden" not in i)
    labelled = {a["for"] for a in page.all("label")}
    assert labelled == {a["id"] for tag in ("input", "select") for a in page.all(tag)}
    named = {a["href"][1:] for a in page.all("a")}
    assert named <= {a["id"] for _, a in page.tags if "id" in a}
    assert all(s["role"] == "img" and len(s["aria-label"]) > 10 for s in page.all("svg"))
    found = [a["id"] for _, a in page.tags if "id" in a]
    assert len(found) == len(set(found))


def test_colours_have_enough_contrast(page):
    ring = "#{:02x}{:02x}{:02x}".format(*sheets.KEPT[:3])
    assert ring in page.html  # the key of the outlines
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
        assert min(contrast(paper, bar), contrast(paper, ring)) >= 3


def test_same_folder_gives_the_same_bytes(reported):
    first = write_report(reported).read_bytes()
    reported.note(stage="report", started="2026-01-01T00:00:00+00:00", seconds=4.2)
    assert write_report(Run.open(reported.path)).read_bytes() == first
    assert not list(reported.path.glob("*.tmp"))


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
def test_any_calibration_gives_a_section(tmp_path, calibration):
    run = Run(tmp_path)
    (tmp_path / "config.toml").touch()
    (tmp_path / "calibration.json").write_text(calibration)
    benchmark = calibration_section(run)
    assert "<b>" not in _environment().get_template("report/benchmark.html.j2").render(benchmark=benchmark)


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
    rows = [["one per class", "0.523", "1,200", "–"], ["more per class", "–", "–", "1.000"]]
    assert [t[1:] for t in page.tables if t[0][0] == "clusters of the reference"] == [rows, rows]
    assert "land use images 900 classes a, b" in page.text
    assert next(t[0] for t in page.tables if t[0][0] == "clusters of the reference")[1] == "NMI"
    assert "labels purity of 90 % reached no" in page.text


def test_nothing_selected_yet(tmp_path):
    run = make_run(tmp_path)
    (run.path / ".stages" / "select.json").unlink()
    with pytest.raises(ConfigError, match="rsprune select"):
        write_report(run)
    assert not run.report_path.exists()


def test_what_if_is_what_another_budget_keeps(tmp_path):
    found = what_if(Columns(make_run(tmp_path / "a")), seed=0)
    assert found["percent"] == list(range(5, 51))
    assert not found["limited"]
    for keep in (0.1, 0.4):
        run = make_run(tmp_path / str(keep), keep=keep)
        kept = run.decisions.filter(run.decisions["kept"])
        at = found["percent"].index(round(100 * keep))
        assert found["images"][at] == len(kept)
        scenes = Counter(kept["scene"].to_pylist())
        assert found["counts"][at] == [scenes[name] for name in found["scenes"]]


def test_what_if_table_has_the_shares(reported, page):
    found = what_if(Columns(reported), seed=0)
    rows = page.table("share kept")
    assert [int(n) for n in rows[0][1:]] == [found["images"][i] for i in found["table"]]
    sums = [sum(float(row[k].rstrip(" %")) for row in rows[2:]) for k in range(1, len(rows[0]))]
    assert np.allclose(sums, 100, atol=0.3)


def test_duplicates_of_better_images(reported):
    columns = Columns(reported)
    ranked = np.flatnonzero(columns.rank >= 0)
    best_first = ranked[np.argsort(columns.rank[ranked])]
    place, similarity = nearest_better(columns, best_first, seed=0)
    x = reported.embeddings()[best_first].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert place.tolist() == list(range(len(best_first)))
    assert similarity[0] == -1
    for i in place[1:]:
        assert similarity[i] == pytest.approx((x[:i] @ x[i]).max(), abs=1e-5)


def test_a_strategy_that_ranks_only_what_it_keeps_offers_no_larger_budget(tmp_path):
    run = make_run(tmp_path, keep=0.3)
    columns = Columns(run)
    columns.run.settings.select.__dict__["strategy"] = "kcenter"
    columns.__dict__["rank"] = np.where(columns.kept, columns.rank, -1)
    found = what_if(columns, seed=0)
    assert found["limited"]
    assert found["percent"] == list(range(5, 30 + 1))
    columns.run.settings.select.__dict__["strategy"] = "of a package that is gone"
    assert what_if(columns, seed=0) is None


def test_areas_hold_all_located_images(reported):
    columns = Columns(reported)
    manifest, kept = reported.table("scan"), reported.decisions["kept"].to_numpy(zero_copy_only=False)
    located = manifest["centre_lat"].is_valid().to_numpy()
    found = density(columns)
    assert (found["n_areas"], found["located"]) == (2, located.sum())
    north = manifest["centre_lat"].to_numpy() > 60
    sums = [(a["images"].sum(), a["kept"].sum()) for a in found["areas"]]
    assert sorted(sums) == sorted((m.sum(), (m & kept).sum()) for m in (located & north, located & ~north))
    assert all((a["images"] >= a["kept"]).all() for a in found["areas"])


@pytest.mark.parametrize(("tiles", "alike"), [(59, 1), (150, 0.9)])
def test_cells_of_the_map_hold_as_many_tiles_each(tiles, alike):
    # The tiles of a scene, whose rows are not quite parallel to the equator.
    y, x = (axis.ravel() * 0.01 for axis in np.mgrid[:tiles, :tiles])
    turn = np.radians(0.2)
    lat, lon = (
        38 + y * np.cos(turn) - x * np.sin(turn),
        (y * np.sin(turn) + x * np.cos(turn)) / np.cos(np.radians(38)),
    )
    grid = maps._grid(lat, lon, np.ones(len(lat), bool))
    assert grid["images"].sum() == tiles**2
    inside = grid["images"][1:-1, 1:-1]
    assert np.mean(inside == np.median(inside)) >= alike
    assert max(grid["images"].shape) <= maps.CELLS + 1


def test_land_is_seen_on_the_cells_of_a_large_area():
    lat, lon = np.random.default_rng(0).uniform((40, 0), (50, 10), (2000, 2)).T
    grid = maps._grid(lat, lon, np.ones(len(lat), bool))
    svg = charts.density(grid, maps.land(), alt="alt")
    assert svg.rindex("stroke: var(--ink)") > svg.rindex("<image")
    small = maps._grid(lat / 10, lon / 10, np.ones(len(lat), bool))
    assert "var(--paper)" not in charts.density(small, maps.land(), alt="alt")


@pytest.mark.parametrize(
    ("lat", "lon"),
    [([5.0], [6.0]), ([5.0, 5.0], [6.0, 6.0]), ([5.0, 5.0, 5.0], [6.0, 6.1, 9.0]), ([1.0, 9.0], [2.0, 2.0])],
)
def test_map_of_a_few_places(lat, lon):
    grid = maps._grid(np.array(lat), np.array(lon), np.ones(len(lat), bool))
    assert grid["images"].sum() == grid["kept"].sum() == len(lat)
    assert np.all(np.diff(grid["lat"]) > 0)
    assert np.all(np.diff(grid["lon"]) > 0)


def test_settings_say_how_the_seats_are_divided(page):
    text = page.text
    assert "strategy rsprune" in text
    assert "pool distinct: images that pass the filters and are no duplicates" in text
    assert "seats of scenes size^0.5; no known scene at most 50 % of its share" in text
    assert "seats of clusters size^1 · spread^1 inside a scene" in text
