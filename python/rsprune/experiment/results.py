"""All numbers of an experiment so far, in long format, and everything that is drawn and written from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from rsprune.errors import ConfigError
from rsprune.experiment import downstream, earlier, page, pictures, text
from rsprune.experiment.config import ExperimentConfig
from rsprune.experiment.summary import Row, summarise
from rsprune.files import write_atomic, write_table

SCHEMA = pa.schema(
    {
        "experiment": pa.string(), "arm": pa.string(), "strategy": pa.string(), "keep": pa.float64(),
        "images": pa.int64(), "seed": pa.int64(), "step": pa.int64(), "images_seen": pa.int64(),
        "reference": pa.string(), "metric": pa.string(), "time": pa.float64(), "value": pa.float64(),
        "deviation": pa.float64(), "n_real": pa.int64(), "n_generated": pa.int64(), "extractor": pa.string(),
        "extractor_hash": pa.string(), "resize": pa.int64(), "revision": pa.string(), "version": pa.string(),
        "machine": pa.string(), "train_seconds": pa.float64(),
    }
)  # fmt: skip


def collect(settings: ExperimentConfig, out: Path) -> dict[str, Any]:
    """Writes ``results.parquet``, ``results.md``, the pictures and ``index.html`` from the runs that are done.

    Those include what `earlier.adopt` has brought here.

    Returns:
        The facts that they show, as `summary.summarise` gives them.

    Raises:
        ConfigError: There is no experiment.
    """
    if not (out / "data/prepared.json").is_file():
        raise ConfigError(f"{out} holds no experiment whose data is prepared: run it first")
    rows, arms = read(settings, out), _arms(settings, out)
    table = pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in rows], SCHEMA)
    write_table(out / "results.parquet", earlier.marked(table, settings, arms))
    facts = summarise(settings, rows, arms, json.loads((out / "data/prepared.json").read_text()))
    pictures.draw(facts, out)
    found = text.write(facts)
    write_atomic(out / "results.md", lambda f: f.write(found.encode()))
    page.write(facts, out)
    return facts


def read(settings: ExperimentConfig, out: Path) -> list[Row]:
    """A row per number, of the runs that are done and of the floor; what was done here goes before earlier rows."""
    rows: list[Row] = []
    for arm in settings.arms:
        for seed in settings.seeds:
            folder = out / "runs" / f"{arm.slug}-{seed}"
            if not (folder / "result.json").is_file():
                continue
            result = json.loads((folder / "result.json").read_text("utf-8"))
            chosen = json.loads((folder / "arm.json").read_text("utf-8"))
            about = {
                "experiment": settings.name, "arm": arm.label, "strategy": arm.strategy, "seed": seed,
                "keep": 1.0 if arm.strategy in ("full", "reweighted") else arm.keep,
                "images": chosen["images"],
                **{k: result["about"].get(k) for k in ("revision", "version", "machine", "train_seconds")},
            }  # fmt: skip
            per_step = result["about"]["images_seen"] // settings.steps
            rows += [{**about, **row, "images_seen": row["step"] * per_step} for row in result["rows"]]
    rows += downstream.rows(settings, out)
    if (out / "floors.json").is_file():
        floors = json.loads((out / "floors.json").read_text("utf-8"))
        rows += [{"experiment": settings.name, **row} for row in floors]
    done = {earlier.key(row) for row in rows}
    return [*(row for row in earlier.load(out).rows if earlier.key(row) not in done), *rows]


def _arms(settings: ExperimentConfig, out: Path) -> list[dict[str, Any]]:
    """What every arm was given with its first seed, and which of its seeds are done."""
    found, before = [], earlier.load(out)
    for arm in settings.arms:
        folders = {seed: out / "runs" / f"{arm.slug}-{seed}" for seed in settings.seeds}
        done = {seed: folder for seed, folder in folders.items() if (folder / "result.json").is_file()}
        about = next((f / "arm.json" for f in folders.values() if (f / "arm.json").is_file()), None)
        facts = json.loads(about.read_text("utf-8")) if about else before.arms.get(arm.label, {})
        grid = next((folder / "grid.png" for folder in done.values()), None)
        elsewhere = {seed for label, seed, task in before.done if label == arm.label and not task}
        values = {
            "label": arm.label,
            "name": arm.name,
            "strategy": arm.strategy,
            "keep": arm.keep,
            "seeds": [seed for seed in settings.seeds if seed in done or seed in elsewhere],
            "grid": str(grid.relative_to(out)) if grid else None,
        }
        found.append({**facts, **values})
    return found
