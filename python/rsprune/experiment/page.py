"""The page about an experiment."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from rsprune.experiment import text
from rsprune.experiment.references import KINDS
from rsprune.files import write_atomic

PICTURES = ("curves.png", "last.png", "keep.png")


def write(facts: dict[str, Any], out: Path) -> None:
    """Writes ``index.html``: one file, pictures included."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "p": text.p_value,
        "note": text.distances_note,
        "tuning_note": text.downstream_note,
    }
    environment.globals |= {
        "spread": text.spread,
        "isnan": lambda v: v != v,
        "kinds": KINDS,
        "share": text.enough_share,
        "paired_spread": text.paired_spread,
        "paired_note": text.PAIRED_NOTE,
        "enough_note": text.ENOUGH_NOTE,
    }
    pictures = {name: _inline(out / name) for name in PICTURES if (out / name).is_file()}
    grids = {arm["label"]: _inline(out / arm["grid"]) for arm in facts["arms"] if arm["grid"]}
    html = environment.get_template("page.html.j2").render(facts=facts, pictures=pictures, grids=grids)
    write_atomic(out / "index.html", lambda f: f.write(html.encode()))


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
