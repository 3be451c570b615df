"""Benchmark results as JSON without what names a machine, and as a page.

    python benchmarks/render.py build/bench.json

writes `benchmarks/results/<cpu family>-<cores>-cores.json` and, from it, `docs/benchmarks.md`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
LIMITS = ("copy", "sgemm", "decode only")  # what no implementation can beat, or not without leaving float32
BUSY = 0.3  # of its cores, from which on a machine is too busy to be measured
KNOWN = ("isa", "unit", "rounds")


def condensed(report: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a pytest-benchmark report: the machine, and one record per benchmark."""
    records = []
    for each in report["benchmarks"]:
        file, _, test = each["fullname"].partition("::")
        records.append(
            {
                "file": Path(file).stem,
                "test": test,
                "group": each["group"],
                "params": each["params"] or {},
                **each["extra_info"],
            }
        )
    return {"machine": report["machine_info"], "benchmarks": records}


def name_of(machine: dict[str, Any]) -> str:
    """Name of the machine's file, from the family of its processor and its number of cores."""
    words = re.sub(r"[^a-z0-9]+", "-", machine["family"].lower()).strip("-")
    return f"{words or machine['machine']}-{machine['cores']}-cores"


def page(results: dict[str, Any]) -> str:
    """The whole page in Markdown."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    sections = defaultdict(list)
    for record in results["benchmarks"]:
        sections[record["file"]].append(record)
    parts = [
        "# Benchmarks",
        "Written by `make bench`; do not edit. Every rate is the median over rounds in which each contestant is "
        "called once, in one process on one machine, so that all meet the same conditions. *Limit* is what the "
        "machine gives to a plain copy, to a matrix product (sgemm), or to decoding alone; *times* is our rate "
        "over theirs.",
        f"**Machine**: {machine['cpu']} ({machine['family']}), {machine['cores']} cores, {machine['system']} "
        f"{machine['machine']}; {' '.join(machine['features'])}.",
        f"**Versions**: Python {machine['python']}, {versions}.",
    ]
    if machine["load"] > BUSY * machine["cores"]:
        parts.append(
            f"**Not a quiet machine**: its load was {machine['load']} on {machine['cores']} cores when this began. Rates "
            "are too low, those on several threads most of all; only the ratios within a row mean something. "
            "Run `make bench` on an idle machine."
        )
    for file, records in sections.items():
        parts.append(f"## {_title(file)}")
        parts.append("\n".join(_table(records)))
    return "\n\n".join(parts) + "\n"


def _title(file: str) -> str:
    source = HERE / f"{file}.py"
    text = ast.get_docstring(ast.parse(source.read_text())) if source.exists() else None
    return (text or file).splitlines()[0].rstrip(".")


def _table(records: list[dict[str, Any]]) -> list[str]:
    lines = ["| what | unit | rsprune | limit | rivals | rounds | also |", "|---|---|---|---|---|---|---|"]
    for record in records:
        rates = [key.removeprefix("times ") for key in record if key.startswith("times ")]
        limits = [
            f"{name} {_number(record[name])} ({record['rsprune'] / record[name]:.0%})"
            for name in rates
            if name in LIMITS
        ]
        rivals = [
            f"{name} {_number(record[name])} (**{_number(record[f'times {name}'])} times**)"
            for name in rates
            if name not in LIMITS
        ]
        shown = {*KNOWN, *rates, *(f"times {name}" for name in rates)}
        shown |= {"file", "test", "group", "params", "rsprune"}
        also = [f"{key} {_number(value)}" for key, value in record.items() if key not in shown]
        cells = (
            _what(record), record.get("unit", ""), _number(record["rsprune"]), "; ".join(limits),
            "; ".join(rivals), str(record.get("rounds", "")), "; ".join(also),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _what(record: dict[str, Any]) -> str:
    text = re.sub(r", [\w-]+/s$", "", record["group"] or record["test"])
    params = record["params"]
    if "threads" in params:
        text += f", {params['threads']} thread{'s' * (params['threads'] > 1)}"
    if "isa" in params:
        text += f": {params['isa']}"
    return text


def _number(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main(path: str) -> None:
    results = condensed(json.loads(Path(path).read_text()))
    target = HERE / "results" / f"{name_of(results['machine'])}.json"
    target.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))
    print(f"wrote {target} and {PAGE}")


if __name__ == "__main__":
    main(*sys.argv[1:])
