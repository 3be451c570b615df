"""The page about a run: one HTML file that needs no network and no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rsprune.explain import DECIDED_BY_ENTROPY
from rsprune.filters import REASONS
from rsprune.report_calibration import calibration_section
from rsprune.run import STAGES, Run, write_atomic
from rsprune.sheets import Thumbnails, contact_sheet

MEANING = {
    "kept": "chosen for training",
    "unreadable": "could not be read",
    "nodata": "too much of the image holds no data",
    "saturated": "too much of the image lies at the ends of the scale",
    "noise": "neighbouring pixels are hardly correlated",
    "blurred": "less fine detail than the threshold",
    "low_entropy": "less information than the threshold",
    "exact_duplicate": "the same pixels as another image",
    "near_duplicate": "almost the same content as another image",
    "spatial_duplicate": "covers mostly the same ground as another image",
    "reference_leak": "also in a set that was to be excluded",
    "over_budget": "good enough, but its cluster had no seat left",
}

# How much is shown. Together at most some 500 thumbnails, whatever the size of the run.
KEPT_SHOWN, DROPPED_SHOWN, COLUMNS = 70, 20, 10
CLUSTERS_SHOWN, PER_CLUSTER = 40, 5
GROUPS_SHOWN, PER_GROUP = 6, 5
SOURCES_SHOWN, SCENES_SHOWN, SCENES_IN_CHART, ERRORS_SHOWN = 12, 100, 24, 50


def write_report(run: Run) -> Path:
    """Writes ``report.html`` into the run folder; the same folder gives the same bytes.

    Raises:
        ConfigError: nothing was selected yet.
    """
    page = _environment().get_template("report.html.j2").render(_facts(run))
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
    environment.filters["words"] = lambda code: str(code).replace("_", " ")
    return environment


def _facts(run: Run) -> dict[str, Any]:
    """Everything the template shows."""
    columns = _columns(run)
    reasons = Counter(columns["reason"])
    total = len(columns["id"])
    readable = int(columns["readable"].sum())
    scenes = _scenes(columns)
    samples = _samples(columns, run.settings.seed)
    groups = _duplicate_groups(run, columns)
    largest = [(len(rows), [first, *rows[: PER_GROUP - 1]]) for first, rows in groups[:GROUPS_SHOWN]]
    clusters = _clusters(columns, run.settings.seed)
    shown = chain(
        *(rows for _, rows in samples), *(rows for _, rows in largest), *(c["rows"] for c in clusters)
    )
    thumbnails = Thumbnails(run, (columns["id"][i] for i in dict.fromkeys(shown)))

    def sheet(rows: Sequence[int], per_row: int, *, outline: bool = True) -> dict[str, Any]:
        names = [(columns["id"][i], bool(columns["kept"][i])) for i in rows]
        cells = [(thumbnails[name], kept and outline) for name, kept in names]
        return {"names": names, **contact_sheet(cells, columns=min(per_row, len(cells)))}

    return {
        "name": run.path.resolve().name,
        "total": total,
        "readable": readable,
        "kept": reasons["kept"],
        "n_scenes": (len(scenes), sum(after > 0 for _, _, after in scenes)),
        "n_clusters": len(np.unique(columns["cluster"][columns["cluster"] >= 0])),
        "notes": _notes(run, columns, reasons, thumbnails.n_missing),
        "reasons": [(r, reasons[r], reasons[r] / max(total, 1), MEANING[r]) for r in REASONS if reasons[r]],
        "entropy": _entropy(run, columns),
        "scenes": _scene_section(scenes),
        "sheets": [
            (reason, reasons[reason], sheet(rows, COLUMNS, outline=False)) for reason, rows in samples if rows
        ],
        "errors": _errors(run, columns),
        "groups": [(columns["id"][rows[0]], n, sheet(rows, PER_GROUP)) for n, rows in largest],
        "n_groups": len(groups),
        "clusters": [{**c, "sheet": sheet(c["rows"], PER_CLUSTER)} for c in clusters],
        "benchmark": calibration_section(run),
        "settings": _settings(run, columns),
        "sources": _sources(run),
        "seconds": _seconds(run),
    }


def _columns(run: Run) -> dict[str, np.ndarray]:
    """Decisions, and the scores and sources that belong to them, by column name."""
    names = [
        "id", "kept", "reason", "rank", "threshold", "cluster", "scene", "nearest_kept",
        "nearest_kept_similarity",
    ]  # fmt: skip
    table = run.table("select", names)
    columns = {n: table[n].to_numpy(zero_copy_only=False) for n in names if n not in ("cluster", "rank")}
    for name in ("cluster", "rank"):
        columns[name] = pc.fill_null(table[name], -1).to_numpy(zero_copy_only=False)
    scores = run.table("score", ["entropy", "error"])
    columns["entropy"] = scores["entropy"].to_numpy(zero_copy_only=False)
    columns["readable"] = pc.is_null(scores["error"]).to_numpy(zero_copy_only=False)
    columns["source"] = run.table("scan", ["source"])["source"].to_numpy(zero_copy_only=False)
    return columns


# Numbers --------------------------------------------------------------------------------------------------


def _threshold(run: Run, columns: Mapping[str, np.ndarray]) -> float | None:
    """Entropy threshold in bits, as the decisions hold it."""
    used = columns["threshold"][np.isin(columns["reason"].astype(str), DECIDED_BY_ENTROPY)]
    used = used[np.isfinite(used)]
    return float(used[0]) if len(used) else run.settings.filter.entropy_min


def _entropy(run: Run, columns: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    from rsprune import charts  # brings matplotlib, which no other stage should wait for

    readable = np.isfinite(columns["entropy"])
    if not readable.any():
        return None
    threshold = _threshold(run, columns)
    line = "no threshold" if threshold is None else f"threshold at {threshold:.2f} bits"
    panels = {}
    sources = run.settings.scan.sources
    sizes = Counter(columns["source"][readable].tolist())
    for source, _ in sorted(sizes.most_common(SOURCES_SHOWN)):
        mine = readable & (columns["source"] == source)
        name = (
            sources[source].name or f"source {source + 1}"
            if source < len(sources)
            else f"source {source + 1}"
        )
        panels[name] = columns["entropy"][mine], columns["entropy"][mine & columns["kept"].astype(bool)]
    of = f" of each of {len(panels)} sources" if len(panels) > 1 else ""
    alt = f"Histogram of patch entropy{of}: all readable images and the kept ones, {line}."
    return {
        "chart": Markup(charts.entropy_histogram(panels, threshold, alt=alt)),
        "threshold": threshold,
        "below": int((columns["reason"] == "low_entropy").sum()),
        "hidden": len(sizes) - len(panels),
    }


def _scenes(columns: Mapping[str, np.ndarray]) -> list[tuple[str, int, int]]:
    """Name, images before, images after; most frequent first."""
    has = np.array([s is not None for s in columns["scene"]], bool)
    before = Counter(columns["scene"][has].tolist())
    after = Counter(columns["scene"][has & columns["kept"].astype(bool)].tolist())
    return [(s, n, after[s]) for s, n in sorted(before.items(), key=lambda item: (-item[1], item[0]))]


def _scene_section(scenes: Sequence[tuple[str, int, int]]) -> dict[str, Any] | None:
    from rsprune import charts

    if not scenes:
        return None
    n_before, n_after = (max(1, sum(s[i] for s in scenes)) for i in (1, 2))
    table = [(name, b, b / n_before, a, a / n_after) for name, b, a in scenes]
    largest = max(max(row[2], row[4]) for row in table)
    shares = [(name, before, after) for name, _, before, _, after in table[:SCENES_IN_CHART]]
    rest = table[SCENES_SHOWN:]
    alt = f"Share of the {len(shares)} most frequent scenes among all images and among the kept ones."
    return {
        "chart": Markup(charts.scene_shares(shares, alt=alt)),
        "in_chart": len(shares),
        "table": table[:SCENES_SHOWN],
        "rest": (len(rest), *(sum(row[i] for row in rest) for i in (1, 2, 3, 4))) if rest else None,
        "largest": largest,
    }


def _seconds(run: Run) -> list[tuple[str, float, float]]:
    """Stage, seconds of the last time it ran, and their share; the report's own time is not known yet."""
    last = {e["stage"]: float(e["seconds"]) for e in run.log() if "stage" in e and "seconds" in e}
    stages = [(s, last[s]) for s in STAGES if s in last and s != "report"]
    total = sum(seconds for _, seconds in stages) or 1.0
    return [(s, seconds, seconds / total) for s, seconds in stages]


def _errors(run: Run, columns: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """Id and reason of unreadable images, the first ones."""
    at = np.flatnonzero(columns["reason"] == "unreadable")[:ERRORS_SHOWN]
    scan, score = (run.table(stage, ["error"])["error"] for stage in ("scan", "score"))
    return [(columns["id"][i], scan[int(i)].as_py() or score[int(i)].as_py() or "cannot be read") for i in at]


# Words ----------------------------------------------------------------------------------------------------


def _notes(run: Run, columns: Mapping[str, np.ndarray], reasons: Counter[str], n_missing: int) -> list[str]:
    """What a reader should know before believing the numbers, a sentence each."""
    notes = []
    budget = run.settings.select.budget(int(columns["readable"].sum()))
    if reasons["kept"] < budget:
        notes.append(
            f"Fewer images are left than were asked for: {reasons['kept']:,} instead of {budget:,}. "
            "All images that passed the filters and are no duplicates were kept."
        )
    if not run.settings.cluster.reference:
        notes.append(
            "No labelled reference was given, so the scenes are pseudo-scenes: groups found in the images "
            "themselves, whose numbers carry no meaning."
        )
    for config, declared in zip(run.settings.scan.sources, run.json("radiometry.json"), strict=False):
        if declared.get("estimated"):
            name = config.name or Path(config.path).name
            notes.append(f"The value range of {name} was estimated on a sample, as none was declared for it.")
    if reasons["unreadable"]:
        n = reasons["unreadable"]
        notes.append(
            f"{n:,} {'image' if n == 1 else 'images'} could not be read; shares to keep refer to the others."
        )
    if n_missing:
        notes.append(
            f"{n_missing:,} of the images shown below could not be read when this page was made; a grey cell "
            "stands for each."
        )
    return notes


def _settings(run: Run, columns: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    s = run.settings
    readable = int(columns["readable"].sum())
    asked = "" if s.select.keep is None else f"{s.select.keep:g} of the readable, "
    threshold = _threshold(run, columns)
    if s.filter.entropy_min is not None:
        rule = "threshold given"
    elif s.filter.entropy_otsu:
        rule = "Otsu's threshold"
    else:
        rule = f"lowest {100 * s.filter.entropy_drop:.3g} % dropped"
    automatic = s.cluster.n_clusters is None
    uniform = s.select.alpha == s.select.beta == 0
    excluded = [Path(e).name for e in s.select.exclude_from] + ["the reference"] * s.select.exclude_reference
    close = s.select.near_duplicate
    ground = f"more than {100 * s.select.spatial_overlap:g} % of the ground, within {s.select.duplicate_days:g} days"
    return [
        ("seed", str(s.seed)),
        ("budget", f"{asked}{s.select.budget(readable):,} images; {int(columns['kept'].sum()):,} kept"),
        ("entropy", rule if threshold is None else f"{rule}: below {threshold:.3f} bits"),
        ("patch", f"{s.score.patch} px"),
        ("nodata", f"at most {100 * s.filter.nodata_max:g} % of the pixels"),
        ("saturated", f"at most {100 * s.filter.saturated_max:g} % of the pixels"),
        ("autocorrelation", f"at least {s.filter.autocorrelation_min:g}"),
        ("sharpness", f"at least {s.filter.sharpness_min:g}" if s.filter.sharpness_min else "not looked at"),
        ("encoder", "given embeddings" if s.embed.embeddings else s.embed.encoder),
        ("reference", ", ".join(Path(r).name for r in s.cluster.reference) or "none"),
        ("clusters", "number chosen automatically" if automatic else f"{s.cluster.n_clusters:,} asked for"),
        ("near duplicate", f"cosine of {close:g} or more" if close <= 1 else "not looked for"),
        ("spatial duplicate", ground if s.select.spatial_overlap < 1 else "not looked for"),
        (
            "seats",
            "uniform over clusters" if uniform else f"size^{s.select.alpha:g} · spread^{s.select.beta:g}",
        ),
        ("ranking", s.select.rank),
        ("strata", ", ".join(s.select.stratify) or "none"),
        ("excluded", ", ".join(excluded) or "no set"),
    ]


def _sources(run: Run) -> list[dict[str, str]]:
    sources = []
    for config, declared in zip(run.settings.scan.sources, run.json("radiometry.json"), strict=False):
        pairs = [f"{lo:g} to {hi:g}" for lo, hi in declared["scale"]]
        origin = "declared" if config.scale else "by data type"
        windows = f"{config.tile} px, every {config.stride or config.tile} px"
        sources.append({
            "name": config.name or Path(config.path).name,
            "windows": windows if config.tile else "whole files",
            "bands": ", ".join(map(str, config.bands or ())) or f"all {declared['bands']}",
            "dtype": declared["dtype"],
            "scale": pairs[0] if len(set(pairs)) == 1 else "; ".join(pairs),
            "origin": "estimated" if declared["estimated"] else origin,
            "nodata": "none" if declared["nodata"] is None else f"{declared['nodata']:g}",
        })  # fmt: skip
    return sources


# Pictures -------------------------------------------------------------------------------------------------


def _draw(rows: np.ndarray, n: int, *seed: int) -> np.ndarray:
    """At most `n` of `rows`, in their order."""
    if len(rows) <= n:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), n, replace=False))]


def _samples(columns: Mapping[str, np.ndarray], seed: int) -> list[tuple[str, list[int]]]:
    """Rows to show per reason; kept and ranked ones best first, then by entropy."""
    samples = []
    for code, reason in enumerate(REASONS):
        if reason == "unreadable":
            continue
        rows = np.flatnonzero(columns["reason"] == reason)
        rows = rows[np.lexsort((columns["entropy"][rows], columns["rank"][rows]))]
        samples.append(
            (reason, _draw(rows, KEPT_SHOWN if reason == "kept" else DROPPED_SHOWN, seed, code).tolist())
        )
    return samples


def _duplicate_groups(run: Run, columns: Mapping[str, np.ndarray]) -> list[tuple[int, list[int]]]:
    """Rows of images that stay, with the rows of their duplicates; most duplicates first."""
    stays = run.decisions["duplicate_of"].to_numpy(zero_copy_only=False)
    copies = np.flatnonzero([name is not None for name in stays])
    named = set(stays[copies])
    row_of = {name: i for i, name in enumerate(columns["id"]) if name in named}
    leader = {i: row_of[stays[i]] for i in copies if stays[i] in row_of}
    groups: dict[int, list[int]] = {}
    for i, first in sorted(leader.items()):
        groups.setdefault(first, []).append(i)
    return sorted(groups.items(), key=lambda g: (-len(g[1]), g[0]))


def _clusters(columns: Mapping[str, np.ndarray], seed: int) -> list[dict[str, Any]]:
    """The largest clusters: up to two kept images, then others drawn from the rest."""
    cluster, kept = columns["cluster"], columns["kept"].astype(bool)
    sizes = np.bincount(cluster[cluster >= 0]) if (cluster >= 0).any() else np.zeros(0, int)
    largest = sorted(np.flatnonzero(sizes).tolist(), key=lambda k: (-sizes[k], k))[:CLUSTERS_SHOWN]
    found = []
    for k in largest:
        rows = np.flatnonzero(cluster == k)
        best = rows[kept[rows]][np.argsort(columns["rank"][rows[kept[rows]]], kind="stable")]
        others = _draw(rows[~kept[rows]], PER_CLUSTER - min(2, len(best)), seed, len(REASONS) + k)
        first = best[: PER_CLUSTER - len(others)]
        scenes = Counter(s for s in columns["scene"][rows] if s is not None).most_common(1)
        found.append({
            "cluster": k, "size": len(rows), "kept": len(best), "rows": [*first.tolist(), *others.tolist()],
            "scene": scenes[0][0] if scenes else None,
        })  # fmt: skip
    return found
