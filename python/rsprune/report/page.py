"""The page about a run: one HTML file that needs no network, and no script for its tables and pictures."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rsprune.columns import Columns
from rsprune.files import write_atomic
from rsprune.filters import REASONS
from rsprune.report import examples, words
from rsprune.report.budget import what_if
from rsprune.report.calibration import calibration_section
from rsprune.report.maps import density, land, projection
from rsprune.report.scores import score_sections
from rsprune.report.search import SEARCHED, facts, packed, packed_text
from rsprune.report.sheets import KEPT, STAYS, Thumbnails, atlas, contact_sheet
from rsprune.run import Run

COLUMNS_OF_SHEET = 10
SCENES_SHOWN, SCENES_IN_CHART, SCENES_IN_WHAT_IF, ERRORS_SHOWN = 100, 24, 16, 50
AREAS_DRAWN = 3  # without the script
SCRIPTS = ("page", "charts", "what_if", "maps", "clusters", "search")  # in this order
PLOTLY = "plotly-cartesian.min.js"

Progress = Callable[[Iterable[int], str, int], Iterable[int]]


def write_report(run: Run, *, progress: Progress = lambda done, *_: done) -> Path:
    """Writes ``report.html`` into the run folder; the same folder gives the same bytes.

    Args:
        run: a run with a finished selection.
        progress: follows the images that are read for their thumbnails.

    Raises:
        ConfigError: nothing was selected yet.
    """
    page = _environment().get_template("report.html.j2").render(_facts(run, progress))
    # A name that is no valid Unicode must not stop the page; it becomes a character reference.
    write_atomic(run.report_path, lambda f: f.write(page.encode("utf-8", "xmlcharrefreplace")))
    return run.report_path


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rsprune"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["count"] = lambda n: f"{n:,}"
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    environment.filters["breakable"] = _breakable
    environment.filters["words"] = lambda code: str(code).replace("_", " ")
    return environment


def _breakable(name: str) -> Markup:
    """A name that is broken between its parts, where it is too long for a line."""
    return Markup("<wbr>").join(re.split(r"(?<=[/#,_])", name))


def _facts(run: Run, progress: Progress) -> dict[str, Any]:
    """Everything the template shows."""
    columns, seed = Columns(run), run.settings.seed
    codes = np.bincount(columns.reason, minlength=len(REASONS))
    reasons = Counter(dict(zip(REASONS, codes.tolist(), strict=True)))
    total, readable = len(columns), int(columns.readable.sum())
    scenes = _scenes(columns)
    scores = score_sections(columns)
    samples = examples.samples(columns, seed)
    n_groups, groups = examples.duplicate_groups(columns)
    clusters = examples.clusters(columns, seed)
    projected = projection(columns, seed)
    points = projected["rows"].tolist() if projected else []
    shown = dict.fromkeys(chain(
        *samples.values(), *(rows for _, _, rows in groups), *(c["rows"] for c in clusters),
        (row for s in scores for _, _, row in s["examples"]),
    ))  # fmt: skip
    thumbnails = Thumbnails(columns, {*shown, *points}, progress)
    names = dict(zip(thumbnails, columns.ids(list(thumbnails)), strict=True))

    def sheet(
        rows: Sequence[int], per_row: int, *, outline: bool = True, stays: int | None = None
    ) -> dict[str, Any]:
        colours = [KEPT if columns.kept[i] and outline else STAYS if i == stays else None for i in rows]
        cells = [(thumbnails[i], colour) for i, colour in zip(rows, colours, strict=True)]
        listed = [(names[i], bool(columns.kept[i])) for i in rows]
        return {"names": listed, **contact_sheet(cells, columns=min(per_row, len(cells)))}

    budgets = what_if(columns, seed)
    geography, seconds = density(columns), words.seconds(run)
    tiles = atlas([thumbnails[i] for i in points])
    data = {
        "budgets": budgets and {**budgets, "shown": SCENES_IN_WHAT_IF},
        "points": projected and _points(columns, projected, names, tiles),
        "geography": geography and _geography(geography),
    }
    return {
        "name": run.path.resolve().name,
        "total": total,
        "readable": readable,
        "kept": reasons["kept"],
        "n_scenes": (len(scenes), sum(after > 0 for _, _, after in scenes)),
        "n_embedded": int((columns.cluster >= 0).sum()),
        "n_clusters": int((columns.clusters[0] > 0).sum()),
        "notes": words.notes(columns, reasons, thumbnails.n_missing),
        "reasons": [
            (r, reasons[r], reasons[r] / max(total, 1), words.MEANING[r]) for r in REASONS if reasons[r]
        ],
        "scores": [
            {**s, "sheet": sheet([row for _, _, row in s["examples"]], 5) if s["examples"] else None}
            for s in scores
        ],
        "scenes": _scene_section(scenes),
        "budgets": budgets,
        "sheets": [
            (reason, reasons[reason], sheet(rows, COLUMNS_OF_SHEET, outline=False))
            for reason, rows in samples.items()
        ],
        "errors": examples.unreadable(columns, ERRORS_SHOWN),
        "groups": [
            (names[first], n, REASONS[columns.reason[first]], sheet(rows, examples.PER_GROUP, stays=first))
            for first, n, rows in groups
        ],
        "n_groups": n_groups,
        "clusters": [{**c, "sheet": sheet(c["rows"], examples.PER_CLUSTER)} for c in clusters],
        "orders": examples.ORDERS,
        "projection": projected and _projection_chart(columns, projected),
        "tiles": tiles,
        "geography": geography and _geography_section(geography),
        "benchmark": calibration_section(run),
        "settings": words.settings(columns, columns.entropy_threshold),
        "sources": words.sources(run),
        "seconds": seconds,
        "duration": words.duration(sum(spent for _, spent, _ in seconds)),
        "searched": min(total, SEARCHED),
        "data": data,
        "search": packed(facts(columns, [*shown, *points])),
        **_scripts(plotly=any(data.values())),
    }


@cache
def _scripts(*, plotly: bool) -> dict[str, Any]:
    """The page's own script, the plotting library where it is needed, and their hashes for the policy."""
    folder = files("rsprune").joinpath("templates")
    own = "\n".join(folder.joinpath(f"js/{name}.js").read_text("utf-8") for name in SCRIPTS)
    texts = [f'(() => {{\n"use strict";\n{own}}})();']
    if plotly:
        texts.append(folder.joinpath(PLOTLY).read_text("utf-8"))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return {
        "script": Markup(texts[0]),
        "plotly": packed_text(texts[1]) if plotly else "",
        "script_hashes": " ".join(f"'sha256-{digest}'" for digest in hashes),
        "style": Markup(folder.joinpath("report.css").read_text("utf-8")),
    }


# Scenes ---------------------------------------------------------------------------------------------------


def _scenes(columns: Columns) -> list[tuple[str, int, int]]:
    """Name, images before, images after; most frequent first."""
    codes, names = columns.scenes
    before, after = (
        np.bincount(codes[(codes >= 0) & chosen], minlength=len(names)).tolist()
        for chosen in (np.True_, columns.kept)
    )
    return sorted(zip(names, before, after, strict=True), key=lambda scene: (-scene[1], scene[0]))


def _scene_section(scenes: Sequence[tuple[str, int, int]]) -> dict[str, Any] | None:
    from rsprune.report import charts  # brings matplotlib, which no other stage should wait for

    if not scenes:
        return None
    n_before, n_after = max(1, sum(s[1] for s in scenes)), max(1, sum(s[2] for s in scenes))
    table = [(name, b, b / n_before, a, a / n_after) for name, b, a in scenes]
    largest = max(max(row[2], row[4]) for row in table)
    shares = [(name, before, after) for name, _, before, _, after in table[:SCENES_IN_CHART]]
    rest = table[SCENES_SHOWN:]
    alt = f"Share of the {len(shares)} most frequent scenes among all images and among the kept ones."
    return {
        "chart": Markup(charts.scene_shares(shares, alt=alt)),
        "in_chart": len(shares),
        "table": table[:SCENES_SHOWN],
        "rest": (len(rest), *(sum(part) for part in zip(*(row[1:] for row in rest), strict=True)))
        if rest
        else None,
        "largest": largest,
    }


# Maps -----------------------------------------------------------------------------------------------------


def _points(
    columns: Columns, projected: dict[str, Any], names: dict[int, str], tiles: dict[str, Any]
) -> dict[str, Any]:
    """What the script needs of the map of the embeddings."""
    rows = projected["rows"]
    scene, scenes = columns.scenes
    return {
        "methods": {
            method: np.round(xy / max(np.abs(xy).max(), 1e-9), 4).T.tolist()
            for method, xy in projected["methods"].items()
        },
        "id": [names[i] for i in rows.tolist()],
        "scene": scene[rows].tolist(),
        "scenes": scenes,
        "cluster": columns.cluster[rows].tolist(),
        "reason": columns.reason[rows].tolist(),
        "reasons": REASONS,
        "columns": tiles["columns"],
        "side": tiles["side"],
    }


def _projection_chart(columns: Columns, projected: dict[str, Any]) -> dict[str, Any]:
    from rsprune.report import charts

    method, xy = next(iter(projected["methods"].items()))
    alt = f"The embeddings of {len(xy):,} images in two dimensions by {method}; kept ones in colour."
    return {
        "chart": Markup(charts.scatter(xy, columns.kept[projected["rows"]], alt=alt)),
        "methods": list(projected["methods"]),
        "images": len(xy),
        "explained": projected["explained"],
    }


def _geography(found: dict[str, Any]) -> dict[str, Any]:
    """What the script needs of the map of the earth."""
    outline = [[None, None] if p is None else p for ring in land() for p in [*ring.tolist(), None]]
    areas = [
        {
            **{name: np.round((a[name][1:] + a[name][:-1]) / 2, 5).tolist() for name in ("lat", "lon")},
            "images": a["images"].tolist(),
            "kept": a["kept"].tolist(),
            "aspect": a["aspect"],
            "centre": [(a["bounds"][0] + a["bounds"][1]) / 2, (a["bounds"][2] + a["bounds"][3]) / 2],
        }
        for a in found["areas"]
    ]
    return {"areas": areas, "land": list(zip(*outline, strict=True))}


def _geography_section(found: dict[str, Any]) -> dict[str, Any]:
    from rsprune.report import charts

    areas = [(_where(*a["bounds"]), int(a["images"].sum()), int(a["kept"].sum())) for a in found["areas"]]
    alt = f"A map of the earth with {len(areas)} areas that have images."
    maps = [
        Markup(charts.density(a, land(), alt=f"Images and kept images per cell, {where}."))
        for a, (where, _, _) in zip(found["areas"][:AREAS_DRAWN], areas, strict=False)
    ]
    overview = charts.overview(
        [(a["bounds"], n) for a, (_, n, _) in zip(found["areas"], areas, strict=True)], land(), alt=alt
    )
    most = [int(a["images"].max()) for a in found["areas"]]
    return {**found, "overview": Markup(overview), "maps": maps, "areas": areas, "most": most}


def _where(south: float, north: float, west: float, east: float) -> str:
    """A box of degrees in words, such as 30.7 to 31.2° N, 87.5 to 86.9° W."""

    def span(low: float, high: float, letters: str) -> str:
        if low < 0 < high:
            return f"{-low:.1f}° {letters[0]} to {high:.1f}° {letters[1]}"
        near, far = (f"{v:.1f}" for v in sorted((abs(low), abs(high))))
        return f"{near if near == far else f'{near} to {far}'}° {letters[low >= 0]}"

    return f"{span(south, north, 'SN')}, {span(west, east, 'WE')}"
