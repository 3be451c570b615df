"""From the rows that `selection.py` measured to docs/choices.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.config import EmbedConfig, FilterConfig, ScoreConfig, SelectConfig

MEASURES = (  # name in the rows, heading, smaller is better (None: neither)
    ("coverage (AlexNet)", "coverage, AlexNet", True),
    ("coverage 95 % (AlexNet)", "95 %", True),
    ("coverage (statistics)", "coverage, statistics", True),
    ("coverage 95 % (statistics)", "95 %", True),
    ("scene balance", "scene balance", False),
    ("rarest scene", "rarest scene", False),
    ("duplicates", "duplicates", True),
    ("bad", "planted bad", True),
    ("empty", "empty", True),
)
SHORT = ("coverage (AlexNet)", "rarest scene", "bad")
TARGET = (*SHORT[:1], "coverage (statistics)", *SHORT[1:])
ELSEWHERE = (("natural", 0.05), ("natural", 0.3), ("long-tailed", 0.15))
SELECT, FILTER = SelectConfig(), FilterConfig()
DEFAULTS = {
    "strategy": SELECT.strategy,
    "strategy behind the filters": SELECT.strategy,
    "reference": "given",
    "encoder": EmbedConfig().encoder,
    "patch": str(ScoreConfig().patch),
    "entropy_drop": f"{FILTER.entropy_drop:g}",
    "n_clusters": "auto",
    "scene_alpha": f"{SELECT.scene_alpha:g}",
    "unknown": f"{SELECT.unknown:g}",
    "unknown, half of the scenes in the reference": f"{SELECT.unknown:g}",
    "alpha": f"{SELECT.alpha:g}",
    "beta": f"{SELECT.beta:g}",
    "alpha and beta": f"{SELECT.alpha:g}, {SELECT.beta:g}",
    "rank": SELECT.rank,
    "near_duplicate": f"{SELECT.near_duplicate:g}",
}
TEXT = Path(__file__).with_name("selection_text.md")


def write(result: dict[str, Any], path: Path) -> None:
    """Fills the tables into the text of `selection_text.md`."""
    rows = [dict(zip(result["columns"], row, strict=True)) for row in result["rows"]]
    values = _collected(rows)
    text = TEXT.read_text("utf-8")
    for group in dict.fromkeys(row["group"] for row in rows):
        text = text.replace(f"<!-- table: {group} -->", _tables(group, values))
    text = text.replace("<!-- target -->", _target(values))
    text = text.replace("<!-- seeds -->", ", ".join(map(str, result["seeds"])))
    if "<!-- " in text:
        raise SystemExit("a table is missing: " + text.split("<!-- ")[1].split(" -->")[0])
    path.write_text(text, "utf-8")


Values = dict[tuple[str, str, str, float], dict[str, np.ndarray]]


def _collected(rows: list[dict[str, Any]]) -> Values:
    """Values over seeds by group, case, pool and share kept."""
    found: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in row.items():
            if isinstance(value, (int, float)):
                found[row["group"], row["case"], row["pool"], row["keep"]][name].append(value)
    return {key: {name: np.array(v) for name, v in columns.items()} for key, columns in found.items()}


def _cases(group: str, values: Values) -> list[str]:
    return list(dict.fromkeys(case for g, case, _, _ in values if g == group))


def _cell(v: np.ndarray, digits: int = 3) -> str:
    return f"{v.mean():.{digits}f} ± {v.std(ddof=1):.{digits}f}"


def _tables(group: str, values: Values) -> str:
    cases = _cases(group, values)
    names = [f"**{case}**" if case == DEFAULTS[group] else case for case in cases]
    lines = ["Natural pool, 15 % kept:", ""]
    heads = ["", *(head for _, head, _ in MEASURES), "seconds"]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case, name in zip(cases, names, strict=True):
        columns = values[group, case, "natural", 0.15]
        cells = [_cell(columns[m]) for m, _, _ in MEASURES] + [f"{columns['seconds'].mean():.2f}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += ["", "Coverage by AlexNet, rarest scene and planted bad elsewhere:", ""]
    heads = [""]
    for pool, keep in ELSEWHERE:
        heads += [f"{pool} {keep:.0%}: coverage", "rarest", "bad"]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case, name in zip(cases, names, strict=True):
        cells = [_cell(values[group, case, p, k][m]) for p, k in ELSEWHERE for m in SHORT]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _target(values: Values) -> str:
    """Whether `rsprune` is first or tied among all strategies at 15 %, measure by measure."""
    smaller = {name: small for name, _, small in MEASURES}
    lines = ["| pool | measure | rsprune | best other | verdict |", "|---|---|---|---|---|"]
    for case in ("rsprune", "rsprune, no reference"):
        for pool in ("natural", "long-tailed"):
            for measure in TARGET:
                mine = values["strategy", case, pool, 0.15][measure]
                sign = 1 if smaller[measure] else -1
                others = {
                    name: values["strategy", name, pool, 0.15][measure]
                    for name in _cases("strategy", values)
                    if not name.startswith("rsprune")
                }
                best = min(others, key=lambda name: sign * others[name].mean())
                behind = sign * (mine.mean() - others[best].mean())
                spread = max(mine.std(ddof=1), others[best].std(ddof=1))
                verdict = "first" if behind <= 0 else "tied" if behind <= spread else "behind"
                title = f"{pool}{case.removeprefix('rsprune')}"
                lines.append(
                    f"| {title} | {measure} | {_cell(mine)} | {best} {_cell(others[best])} | {verdict} |"
                )
    return "\n".join(lines)
