"""What the report says in words: notes for the reader, settings, sources, time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rsprune.columns import Columns
from rsprune.errors import RspruneError
from rsprune.layout import STAGES
from rsprune.report.budget import ranks_all
from rsprune.run import Run
from rsprune.strategies import load_strategy

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
    "over_budget": "good enough, but no seat was left for it",
}
POOLS = {
    "readable": "all readable images",
    "eligible": "images that pass the filters",
    "distinct": "images that pass the filters and are no duplicates",
}


def notes(columns: Columns, reasons: Mapping[str, int], n_missing: int) -> list[str]:
    """What a reader should know before believing the numbers, a sentence each."""
    run = columns.run
    said = []
    budget = run.settings.select.budget(int(columns.readable.sum()))
    if reasons["kept"] < budget:
        said.append(
            f"Fewer images are left than were asked for: {reasons['kept']:,} instead of {budget:,}. "
            "All images that passed the filters and are no duplicates were kept."
        )
    if not run.settings.cluster.reference:
        said.append(
            "No labelled reference was given, so the scenes are pseudo-scenes: groups found in the images "
            "themselves, whose numbers carry no meaning."
        )
    for config, declared in zip(run.settings.scan.sources, run.json("radiometry.json"), strict=False):
        if declared.get("estimated"):
            name = config.name or Path(config.path).name
            said.append(f"The value range of {name} was estimated on a sample, as none was declared for it.")
    if reasons["unreadable"]:
        n = reasons["unreadable"]
        said.append(
            f"{n:,} {'image' if n == 1 else 'images'} could not be read; shares to keep refer to the others."
        )
    if n_missing:
        said.append(
            f"{n_missing:,} of the images shown below could not be read when this page was made; a grey cell "
            "stands for each."
        )
    return said


def chosen_from(run: Run) -> str | None:
    """The pool that the strategy chose from; None where the strategy is no longer installed."""
    select = run.settings.select
    if select.pool != "auto":
        return select.pool
    try:
        return load_strategy(select.strategy).pool
    except RspruneError:
        return None


def settings(columns: Columns, threshold: float | None) -> list[tuple[str, str]]:
    """Name and value of every setting that decided something."""
    s = columns.run.settings
    readable = int(columns.readable.sum())
    asked = "" if s.select.keep is None else f"{s.select.keep:g} of the readable, "
    pool = chosen_from(columns.run)
    filtered = pool != "readable"
    if s.filter.entropy_min is not None:
        rule = "threshold given"
    elif s.filter.entropy_otsu:
        rule = "Otsu's threshold"
    else:
        rule = f"lowest {100 * s.filter.entropy_drop:.3g} % dropped"
    excluded = [Path(e).name for e in s.select.exclude_from] + ["the reference"] * s.select.exclude_reference
    guards = [
        ("entropy", rule if threshold is None else f"{rule}: below {threshold:.3f} bits"),
        ("nodata", f"at most {100 * s.filter.nodata_max:g} % of the pixels"),
        ("saturated", f"at most {100 * s.filter.saturated_max:g} % of the pixels"),
        ("autocorrelation", f"at least {s.filter.autocorrelation_min:g}"),
        ("sharpness", f"at least {s.filter.sharpness_min:g}" if s.filter.sharpness_min else "not looked at"),
    ]
    return [
        ("seed", str(s.seed)),
        ("budget", f"{asked}{s.select.budget(readable):,} images; {int(columns.kept.sum()):,} kept"),
        ("strategy", s.select.strategy + ("" if ranks_all(columns) else " (ranks only what it keeps)")),
        ("pool", f"{pool}: {POOLS[pool]}" if pool else "that of the strategy"),
        *_seats(columns.run),
        ("patch", f"{s.score.patch} px"),
        *(guards if filtered else [("filters", "not used by this strategy")]),
        *(_duplicates(columns.run) if pool == "distinct" else [("duplicates", "stay in the pool")]),
        ("encoder", "given embeddings" if s.embed.embeddings else s.embed.encoder),
        ("reference", ", ".join(Path(r).name for r in s.cluster.reference) or "none"),
        (
            "clusters",
            "number chosen automatically"
            if s.cluster.n_clusters is None
            else f"{s.cluster.n_clusters:,} asked for",
        ),
        ("strata", ", ".join(s.select.stratify) or "none"),
        ("excluded", ", ".join(excluded) or "no set"),
    ]


def _seats(run: Run) -> list[tuple[str, str]]:
    """How the strategy `rsprune` divides its seats; others do not read these settings."""
    select = run.settings.select
    if select.strategy != "rsprune":
        return []
    by_scene = "scene" in select.stratify and bool(run.settings.cluster.reference)
    scenes = f"size^{select.scene_alpha:g}; no known scene at most {100 * select.unknown:g} % of its share"
    uniform = select.alpha == select.beta == 0
    clusters = "uniform" if uniform else f"size^{select.alpha:g} · spread^{select.beta:g}"
    ranking = f"mmr, lambda {select.mmr_lambda:g}" if select.rank == "mmr" else select.rank
    return [
        ("seats of scenes", scenes if by_scene else "not divided by scene"),
        ("seats of clusters", clusters + (" inside a scene" if by_scene else "")),
        ("ranking", ranking),
    ]


def _duplicates(run: Run) -> list[tuple[str, str]]:
    select = run.settings.select
    close, ground = select.near_duplicate, 100 * select.spatial_overlap
    same = f"more than {ground:g} % of the ground, within {select.duplicate_days:g} days"
    return [
        ("near duplicate", f"cosine of {close:g} or more" if close <= 1 else "not looked for"),
        ("spatial duplicate", same if select.spatial_overlap < 1 else "not looked for"),
    ]


def sources(run: Run) -> list[dict[str, str]]:
    """What was declared or found about each source."""
    found = []
    for config, declared in zip(run.settings.scan.sources, run.json("radiometry.json"), strict=False):
        pairs = [f"{lo:g} to {hi:g}" for lo, hi in declared["scale"]]
        origin = "declared" if config.scale else "by data type"
        windows = f"{config.tile} px, every {config.stride or config.tile} px"
        found.append({
            "name": config.name or Path(config.path).name,
            "windows": windows if config.tile else "whole files",
            "bands": ", ".join(map(str, config.bands or ())) or f"all {declared['bands']}",
            "dtype": declared["dtype"],
            "scale": pairs[0] if len(set(pairs)) == 1 else "; ".join(pairs),
            "origin": "estimated" if declared["estimated"] else origin,
            "nodata": "none" if declared["nodata"] is None else f"{declared['nodata']:g}",
        })  # fmt: skip
    return found


def seconds(run: Run) -> list[tuple[str, float, float]]:
    """Stage, seconds of the last time it ran, and their share; the report's own time is not known yet."""
    last = {e["stage"]: float(e["seconds"]) for e in run.log() if "stage" in e and "seconds" in e}
    stages = [(s, last[s]) for s in STAGES if s in last and s != "report"]
    total = sum(spent for _, spent in stages) or 1.0
    return [(s, spent, spent / total) for s, spent in stages]


def duration(seconds: float) -> str:
    """A time in the two largest of its units, such as 44 s, 3 min 5 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"
