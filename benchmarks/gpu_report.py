"""Brings together what `gpu.sh` has left: one JSON file, and a short table on standard output.

python benchmarks/gpu_report.py PARTS OUTPUT
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break  # cut off by a time limit
    return records


def summary(path: Path) -> dict[str, Any]:
    """Counts of a JUnit file, and its failures by name."""
    try:
        suites = ElementTree.parse(path).getroot().iter("testsuite")
    except ElementTree.ParseError:
        return {"error": "cut off"}
    total: dict[str, Any] = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0, "failed": []}
    for suite in suites:
        for key in ("tests", "failures", "errors", "skipped"):
            total[key] += int(suite.get(key, 0))
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                total["failed"].append(f"{case.get('classname')}::{case.get('name')}")
    return total


def collect(parts: Path) -> dict[str, Any]:
    states = {p.stem: read_json(p) for p in sorted(parts.glob("*.json"))}
    machine = states.pop("machine", None)
    return {
        "machine": machine,
        "parts": states,
        "tests": {p.stem: summary(p) for p in sorted(parts.glob("*.xml"))},
        "measurements": {p.stem: read_lines(p) for p in sorted(parts.glob("*.data"))},
    }


def table(result: dict[str, Any]) -> list[str]:
    lines = []
    bad = [
        f"{name} ({state and state['code']})"
        for name, state in result["parts"].items()
        if not state or state["code"]
    ]
    lines.append("parts that failed (exit code; 124: time limit): " + (", ".join(bad) or "none"))
    for name, counts in result["tests"].items():
        lines.append(f"{name}: {json.dumps(counts)[:400]}")
    for records in result["measurements"].values():
        ceiling = {r["name"]: r["rate"] for r in records if r["group"] == "limits" and "rate" in r}
        group = None
        for r in records:
            if r["group"] != group:
                group = r["group"]
                lines.append(group)
            if "error" in r:
                lines.append(f"  {r['name']:24} {r['error'][:90]}")
                continue
            limit = ceiling.get("bf16 product" if r["unit"] == "TFLOP/s" else "copy")
            share = f"{100 * r['rate'] / limit:4.0f} %" if limit and group != "limits" else "      "
            more = "".join(f"  {k} {r[k]:.4g}" for k in ("wrong of 4096", "rechecked") if k in r)
            lines.append(
                f"  {r['name']:24} {r['median']:10.3f} ms {r['rate']:9.2f} {r['unit']:8}{share}{more}"
            )
    return lines


if __name__ == "__main__":
    found = collect(Path(sys.argv[1]))
    with tempfile.NamedTemporaryFile("w", dir=sys.argv[1], suffix=".tmp", delete=False) as file:
        json.dump(found, file, indent=1)
    shutil.move(file.name, sys.argv[2])  # parts that run side by side renew it
    print("\n".join(table(found)))
