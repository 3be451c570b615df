"""The report in a real browser: every control does what it says, with scripts and without, on a desktop and a phone."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rsprune.explain import explain, format_explanation
from rsprune.report import maps, write_report
from run_folder import HOSTILE, SCENES, make_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")

CHROMIUM = os.environ.get("RSPRUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = Path(__file__).parent.parent / "build" / "screenshots"
DESKTOP, PHONE = {"width": 1100, "height": 900}, {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("RSPRUNE_REQUIRE_BROWSER"), reason="there is no chromium here"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("browser"))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "RSPRUNE_REQUIRE_BROWSER is set, but there is no chromium"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(run, browser):
    """Opens the report; at the end of the test nothing may have gone wrong in it, and nothing been requested."""
    opened, wrong = [], []

    def open_it(viewport=DESKTOP, *, scheme="light", scripts=True):
        phone = viewport is PHONE
        context = browser.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=scripts,
                                      is_mobile=phone, has_touch=phone, reduced_motion="reduce")  # fmt: skip
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on(
            "console", lambda m: wrong.append(m.text) if m.type in ("error", "warning", "trace") else None
        )
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("dialog", lambda d: (wrong.append(d.message), d.dismiss()))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
        page.goto(run.report_path.as_uri())
        opened.append(context)
        return page

    yield open_it
    for context in opened:
        context.close()
    assert wrong == []


@pytest.fixture
def page(open_page):
    return open_page()


def draw(page, *names: str) -> None:
    """Scrolls to charts until they are drawn."""
    for name in names:
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{name}[data-drawn=yes]")


def traces(page, name: str) -> list[dict]:
    found = page.evaluate("name => JSON.stringify(document.getElementById(name).data)", name)
    return json.loads(found)


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible_and_fits(open_page, viewport, scheme):
    page = open_page(viewport, scheme=scheme)
    draw(page, "keep-chart", "map-chart", "earth-chart")
    page.fill("#query", "sea/00.png")
    page.click("#map-next")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    short = page.locator(".scenes tbody th").filter(has_text=re.compile("^(woods|crops|sea)$"))
    assert short.count() == 3
    lines = short.evaluate_all(
        "found => found.map(e => { const r = new Range(); r.selectNodeContents(e); return r.getClientRects().length; })"
    )
    assert lines == [1, 1, 1]  # no word is broken
    page.evaluate("scrollTo(0, 0)")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = f"{'phone' if viewport is PHONE else 'desktop'}-{scheme}.png"
    page.screenshot(path=SCREENSHOTS / name, full_page=True)
    if (viewport is PHONE) != (scheme == "dark"):
        return  # both sizes and both schemes are looked at, but not each with each
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
    found = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})")
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found["violations"]] == []


def test_tables_and_pictures_stay_without_scripts(open_page):
    page = open_page(PHONE, scripts=False)
    assert page.locator("figure.static:visible").count() == 2
    assert page.locator("table:visible").count() >= 8
    assert page.locator("img.sheet:visible").count() >= 10
    assert page.locator(".interactive:visible").count() == 0
    assert page.locator("#cluster-list > div:visible").count() == 4


def test_slider_shows_another_budget(run, page):
    draw(page, "keep-chart")
    slider, said = page.locator("#keep"), page.locator("#keep-result")
    assert slider.input_value() == "20"
    assert said.inner_text().startswith(
        "10 images (as many as now), 0.0 % of them duplicates; 3 of 4 scenes."
    )
    before = traces(page, "keep-chart")
    assert len(before[0]["y"]) == len(SCENES)
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator("#keep-value").inner_text() == "25 %"
    assert said.inner_text().startswith("13 images (3 more than now)")
    after = traces(page, "keep-chart")
    assert after[0]["x"] == before[0]["x"]
    rank, scene = (run.decisions[c].to_pylist() for c in ("rank", "scene"))
    kept = [s for r, s in zip(rank, scene, strict=True) if r is not None and r < 13]
    assert [d[1] for d in after[1]["customdata"]] == [str(kept.count(name)) for name in frequent(run)]
    page.keyboard.press("End")
    assert "every image that may be chosen" not in said.inner_text()


def frequent(run) -> list[str]:
    """Scenes, most frequent first."""
    scenes = [s for s in run.decisions["scene"].to_pylist() if s is not None]
    return sorted(set(scenes), key=lambda s: (-scenes.count(s), s))


def test_search_says_what_explain_says(run, page):
    ids = run.decisions["id"].to_pylist()
    said = page.evaluate("""async ids => {
        const [query, panel, said] = [document.getElementById("query"), document.getElementById("explanation"), []];
        for (const id of ids) {
            query.value = id;
            query.dispatchEvent(new Event("input"));
            while (!panel.firstChild?.textContent.startsWith(id)) await new Promise(r => setTimeout(r));
            said.push([...panel.children].map(p => p.textContent).join("\\n"));
        }
        return said;
    }""", ids)  # fmt: skip
    assert said == [format_explanation(explain(run, id)) for id in ids]


def test_search_offers_what_is_meant(page):
    page.fill("#query", "SEA/0")
    page.wait_for_selector("#explanation button")
    offered = page.locator("#explanation button").all_text_contents()
    assert offered == [f"sea/{i:02d}.png" for i in range(10)]
    page.locator("#explanation button").nth(3).press("Enter")
    page.wait_for_selector("#explanation p")
    assert page.locator("#explanation").inner_text().startswith("sea/03.png was dropped: low entropy.")
    page.fill("#query", "no such image")
    page.wait_for_function("document.getElementById('explanation').textContent === 'No image is called so.'")
    page.fill("#query", "")
    page.wait_for_function("document.getElementById('explanation').textContent === ''")


def test_hostile_names_are_text_everywhere(run, page):
    hostile = [id for id in run.decisions["id"].to_pylist() if "onerror" in id or "quotes" in id]
    assert len(hostile) == 2
    for id in hostile:
        page.fill("#query", id)
        page.wait_for_function(
            "id => document.querySelector('#explanation p')?.textContent.startsWith(id)", arg=id
        )
    draw(page, "keep-chart", "map-chart")
    page.select_option("#map-colour", "scene")
    seen = page.evaluate("""[...Array(51)].map(() => {
        document.getElementById("map-next").click();
        return document.getElementById("map-name").textContent.split(": ")[0];
    })""")  # fmt: skip
    assert set(hostile) <= set(seen)
    assert SCENES[1] in page.locator("#map-legend").inner_text()
    assert SCENES[1] in page.locator("#map-only").inner_text()
    assert any("<b>town</b>" in t for t in page.locator("#keep-chart text").all_text_contents())
    assert page.evaluate("document.querySelectorAll('img[src=\"x\"], b').length") == 0
    assert len(HOSTILE) == 6


def test_clusters_are_sorted(page):
    numbers = "[...document.querySelectorAll('#cluster-list > div')].map(d => Number(d.dataset.%s))"
    for value in page.evaluate("[...document.getElementById('cluster-order').options].map(o => o.value)"):
        page.select_option("#cluster-order", value)
        by = value.split()[0]
        found = page.evaluate(numbers % by)
        assert found == sorted(found, reverse="up" not in value), value
        assert len(found) == 4


def last_dot(page) -> tuple[float, float]:
    """Where the uppermost dot of the map of the embeddings lies in the window, pixels."""
    return page.evaluate("""() => {
        const chart = document.getElementById("map-chart");
        chart.scrollIntoView({ block: "center" });
        const box = chart.getBoundingClientRect(), { xaxis, yaxis } = chart._fullLayout, { x, y } = chart.data[0];
        return [box.x + xaxis._offset + xaxis.l2p(x.at(-1)), box.y + yaxis._offset + yaxis.l2p(y.at(-1))];
    }""")


def test_map_shows_the_tile_that_a_finger_taps(run, open_page):
    page = open_page(PHONE)
    draw(page, "map-chart")
    page.touchscreen.tap(*last_dot(page))
    page.wait_for_function("document.getElementById('map-tile').style.backgroundImage.startsWith('url')")
    assert page.locator("#map-name").inner_text().split(": ")[0] in run.kept_ids


def test_map_shows_the_tile_and_its_colours(run, page):
    draw(page, "map-chart")
    dots = traces(page, "map-chart")[0]
    assert sorted(dots["customdata"]) == list(range(51))
    colours = {}
    for kind, n in (("kept", 2), ("scene", 4), ("cluster", 4)):
        page.select_option("#map-colour", kind)
        colours[kind] = set(traces(page, "map-chart")[0]["marker"]["color"])
        assert len(colours[kind]) == n
        assert page.locator("#map-legend .entry").count() == n
    page.select_option("#map-colour", "kept")
    axes = "(({ xaxis, yaxis }) => [...xaxis.range, ...yaxis.range, xaxis._length, yaxis._length])"
    frame = f"{axes}(document.getElementById('map-chart')._fullLayout)"
    everything = page.evaluate(frame)
    page.select_option("#map-only", label="kept")
    assert page.evaluate(frame) == everything  # a part is shown in its place
    left, right, low, high, width, height = everything
    assert (right - left) / width == pytest.approx((high - low) / height, rel=1e-3)
    assert len(traces(page, "map-chart")[0]["customdata"]) == len(run.kept_ids)
    for _ in range(3):  # goes through the images that are shown
        page.click("#map-next")
        assert page.locator("#map-name").inner_text().split(": ")[0] in run.kept_ids
    page.select_option("#map-only", "")
    x, y = last_dot(page)
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.wait_for_function("document.getElementById('map-tile').style.backgroundImage.startsWith('url')")
    name = page.locator("#map-name").inner_text()
    assert name.split(": ")[0] in run.kept_ids
    assert "kept" in name
    pixels = page.locator("#map-tile").screenshot()
    assert len(pixels) > 2000  # not one colour
    page.click("#map-previous")
    assert page.locator("#map-name").inner_text() != name
    page.click("#map-reset")


def test_umap_is_a_second_map_where_it_is_installed(tmp_path, browser, monkeypatch):
    class UMAP:
        def __init__(self, **settings):
            assert settings["random_state"] == 3  # of the run, so that the page stays the same

        def fit_transform(self, x):
            return np.column_stack([np.arange(len(x)), np.zeros(len(x))]).astype(np.float32) + 100

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    monkeypatch.setattr(maps, "has_umap", lambda: True)
    path = write_report(make_run(tmp_path))
    with browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        draw(page, "map-chart")
        assert page.locator("#map-method option").all_text_contents() == ["PCA", "UMAP"]
        assert len(set(traces(page, "map-chart")[0]["y"])) > 10
        page.select_option("#map-method", "UMAP")
        dots = traces(page, "map-chart")[0]
        assert len(set(dots["y"])) == 1
        left, right = page.evaluate("document.getElementById('map-chart')._fullLayout.xaxis.range")
        assert left < min(dots["x"]) < max(dots["x"]) < right
        page.click("#map-next")
        assert "cluster" in page.locator("#map-name").inner_text()


def test_map_of_the_earth(run, page):
    draw(page, "earth-chart")
    kept = run.decisions["kept"].to_numpy(zero_copy_only=False)
    latitude = run.table("scan", ["centre_lat"])["centre_lat"].to_numpy()
    options = page.locator("#earth-area option").all_text_contents()
    assert len(options) == 3
    for value, name in enumerate(options[:2]):
        mine = (latitude > 60) if float(name.split()[0]) > 60 else (latitude < 60)
        page.select_option("#earth-area", str(value))
        for show, number in (
            ("images", mine.sum()),
            ("kept", (mine & kept).sum()),
            ("dropped", (mine & ~kept).sum()),
        ):
            page.select_option("#earth-show", show)
            cells = np.array(traces(page, "earth-chart")[1]["z"], float)
            assert np.nansum(cells) == number
            assert traces(page, "earth-chart")[1]["zmax"] == max(np.nanmax(cells), 1)
    page.select_option("#earth-area", "")
    shown = traces(page, "earth-chart")[1]
    assert len(shown["x"]) == 2
    assert (shown["marker"]["cmin"], shown["marker"]["cmax"]) == (0, max(shown["marker"]["color"]))
    south, north = page.evaluate("document.getElementById('earth-chart')._fullLayout.yaxis.range")
    assert -90 <= south < 40 < north <= 90
    page.click("#earth-reset")
    assert page.evaluate("document.getElementById('earth-chart').data.length") == 2


def test_labels_of_the_map_of_the_earth_do_not_touch_on_a_phone(open_page):
    page = open_page(PHONE)
    draw(page, "earth-chart")
    # West of Greenwich, and of the size of a scene, where the labels are longest.
    page.evaluate(
        "Plotly.relayout('earth-chart', { 'xaxis.range': [-75.74, -75.5], 'yaxis.range': [37.58, 37.77] })"
    )
    boxes = page.evaluate("""[...document.querySelectorAll("#earth-chart .xtick text")].map(t => {
        const box = t.getBoundingClientRect();
        return [box.left, box.right, box.height];
    })""")
    assert len(boxes) >= 2
    assert all(height < 25 for _, _, height in boxes)  # nor do they lie aslant
    assert all(right + 4 < left for (_, right, _), (left, _, _) in itertools.pairwise(sorted(boxes)))


def test_everything_is_reached_by_keyboard(page):
    wanted = set(page.evaluate(
        "[...document.querySelectorAll('.interactive:not([hidden]) :is(input, select, button)')]"
        ".filter(e => e.checkVisibility()).map(e => e.id)"
    ))  # fmt: skip
    assert {"keep", "query", "cluster-order", "map-colour", "map-next", "earth-area"} <= wanted
    page.evaluate("""window.reached = {}; document.addEventListener("focusin", (e) => {
        window.reached[e.target.id] = getComputedStyle(e.target).outlineStyle;
    })""")  # fmt: skip
    for _ in range(80):
        page.keyboard.press("Tab")
    reached = page.evaluate("window.reached")
    assert wanted <= set(reached)
    assert "none" not in reached.values()


def test_colours_follow_the_system(open_page):
    page = open_page(scheme="light")
    draw(page, "keep-chart")
    light = traces(page, "keep-chart")[1]["marker"]["color"]
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "old => document.getElementById('keep-chart').data[1].marker.color !== old", arg=light
    )
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background))) < 60
