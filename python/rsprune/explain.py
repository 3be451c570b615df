"""Why one image was kept or dropped, from what the run wrote down."""

from __future__ import annotations

import difflib
import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rsprune.columns import Columns
from rsprune.config import SelectConfig
from rsprune.errors import ConfigError
from rsprune.rows import unit_rows
from rsprune.run import Run

SCORES = (
    "entropy", "entropy_p10", "flat_fraction", "nodata_fraction", "saturated_fraction", "autocorrelation",
    "sharpness",
)  # fmt: skip
_DECIDED = (
    "id", "uri", "kept", "reason", "rank", "cluster", "scene", "distance", "duplicate_of", "nearest_kept",
    "nearest_kept_similarity",
)  # fmt: skip
_COMPETE = "It would compete for a seat"
_SUGGESTIONS = 3
_COMPARED = 20_000  # ids that are compared letter by letter when one is unknown


def explain(run: Run, id: str) -> dict[str, Any]:
    """Everything that is known about one image and its decision, JSON-able.

    Raises:
        ConfigError: the run has no such image; names the most similar ids.
    """
    run.require("select")
    columns = Columns(run)
    row = columns.rows_of([id]).get(id)
    if row is None:
        raise ConfigError(f"{run.path} has no image {id!r}{_similar(run.table('select', ['id'])['id'], id)}")

    def of_image(stage: str, names: tuple[str, ...]) -> dict[str, Any]:
        return columns.pick(stage, names, [row]).to_pylist()[0]

    decision, scores = of_image("select", _DECIDED), of_image("score", (*SCORES, "error"))
    manifest, assigned = (
        of_image("scan", ("error",)),
        of_image("cluster", ("scene_similarity", "scene_margin")),
    )
    settings = run.settings
    reason, cluster, rank = decision["reason"], decision["cluster"], decision["rank"]
    facts: dict[str, Any] = {
        "id": id,
        "uri": decision["uri"],
        "kept": decision["kept"],
        "reason": reason,
        "error": manifest["error"] or scores["error"],
        "scores": {name: _finite(scores[name]) for name in SCORES},
        "thresholds": {
            "entropy": columns.entropy_threshold,
            "nodata_fraction": settings.filter.nodata_max,
            "saturated_fraction": settings.filter.saturated_max,
            "autocorrelation": settings.filter.autocorrelation_min,
            "sharpness": settings.filter.sharpness_min,
            "near_duplicate": settings.select.near_duplicate,
            "spatial_overlap": settings.select.spatial_overlap,
        },
        "scene": decision["scene"],
        "scene_similarity": _finite(assigned["scene_similarity"]),
        "scene_margin": _finite(assigned["scene_margin"]),
        "cluster": None,
        "distance": _finite(decision["distance"]),
        "position": None,
        "ranked": int((columns.rank >= 0).sum()),
        "readable": int(columns.readable.sum()),
        "kept_in_run": int(columns.kept.sum()),
        "duplicate_of": None,
        "duplicate_similarity": None,
        "nearest_kept": decision["nearest_kept"],
        "nearest_kept_similarity": _finite(decision["nearest_kept_similarity"]),
        "change": None,
    }
    if cluster is not None and cluster >= 0:
        facts["cluster"] = _cluster(columns, cluster, rank)
    if (stays := decision["duplicate_of"]) is not None:
        facts["duplicate_of"] = stays
        facts["duplicate_similarity"] = _cosine(columns, row, columns.rows_of([stays])[stays])
    if rank is not None:
        facts["position"] = rank + 1
    facts["change"] = _change(facts, settings.select)
    return facts


def format_explanation(facts: dict[str, Any]) -> str:
    """The facts from `explain` in plain sentences, one a line."""
    verdict = "kept" if facts["kept"] else f"dropped: {facts['reason'].replace('_', ' ')}"
    lines = [f"{facts['id']} was {verdict}."]
    if facts["reason"] == "unreadable":
        lines.append(f"It could not be used: it {facts['error'] or 'has no embedding'}.")
    else:
        lines += _score_lines(facts)
    if facts["scene"] is not None and facts["reason"] != "unreadable":
        how = "" if facts["scene_similarity"] is None else f" (similarity {facts['scene_similarity']:.3f})"
        lines.append(f"Its scene is {facts['scene']}{how}.")
    if cluster := facts["cluster"]:
        at, ranked = cluster["position"], cluster["ranked"]
        place = f", where it ranks {at:,} of {ranked:,}" if at else ""
        lines.append(
            f"It is in cluster {cluster['id']} of {_images(cluster['size'])}, {cluster['kept']:,} of which "
            f"{'was' if cluster['kept'] == 1 else 'were'} kept{place}."
        )
    if facts["position"]:
        lines.append(
            f"In the whole ranking it is {facts['position']:,} of {facts['ranked']:,}; "
            f"the first {facts['kept_in_run']:,} were kept."
        )
    if facts["duplicate_of"]:
        cosine = facts["duplicate_similarity"]
        lines.append(f"It is a duplicate of {facts['duplicate_of']} (cosine {cosine:.4f}).")
    if facts["nearest_kept"] and facts["nearest_kept"] != facts["duplicate_of"]:
        cosine = _number(facts["nearest_kept_similarity"])
        lines.append(f"The nearest kept image is {facts['nearest_kept']} (cosine {cosine}).")
    if facts["change"]:
        lines.append(facts["change"])
    return "\n".join(lines)


def _score_lines(facts: dict[str, Any]) -> list[str]:
    score, threshold = facts["scores"], facts["thresholds"]
    entropy = "Its entropy is unknown: no part of it holds data"
    if score["entropy"] is not None:
        entropy = f"Its entropy is {score['entropy']:.2f} bits"
        if threshold["entropy"] is not None:
            side = "below" if score["entropy"] < threshold["entropy"] else "not below"
            entropy += f", {side} the threshold of {threshold['entropy']:.2f}"
    lines = [entropy + "."]
    guards = []
    if (share := score["nodata_fraction"]) is not None:
        guards.append(f"{100 * share:.1f} % nodata (at most {100 * threshold['nodata_fraction']:g} %)")
    if share := score["saturated_fraction"]:
        guards.append(
            f"{100 * share:.1f} % at the ends of the scale (at most {100 * threshold['saturated_fraction']:g} %)"
        )
    if (correlation := score["autocorrelation"]) is not None:
        guards.append(f"autocorrelation {correlation:.2f} (at least {threshold['autocorrelation']:g})")
    if threshold["sharpness"] and (sharpness := score["sharpness"]) is not None:
        guards.append(f"sharpness {sharpness:.2f} (at least {threshold['sharpness']:g})")
    if guards:
        *first, last = guards
        listed = f"{', '.join(first)} and {last}" if first else last
        lines.append(f"It has {listed}.")
    return lines


def _change(facts: dict[str, Any], select: SelectConfig) -> str | None:
    """What would have turned the decision."""
    score, reason, similarity = facts["scores"], facts["reason"], facts["duplicate_similarity"]
    if reason in ("kept", "over_budget"):
        position, readable = facts["position"], facts["readable"]
        if position is None:
            return (
                "The strategy ranks only what it keeps: select with a larger --keep to see if that keeps it."
            )
        keep = smallest_keep(position, readable)
        from_on = f"from --keep {keep:g} on" if keep is not None else "only with --n"
        return f"It {'stays' if reason == 'kept' else 'would be'} kept {from_on} (--n {position} or more)."
    if reason == "low_entropy":
        below = math.floor(score["entropy"] * 100) / 100
        return f"{_COMPETE} with --entropy-min {below:g} or less."
    if reason == "nodata":
        if score["entropy"] is None:
            return "No setting keeps it, as it has no valid patch."
        return f"{_COMPETE} with --nodata-max {_up(score['nodata_fraction'])} or more."
    if reason == "noise":
        return f"{_COMPETE} with --autocorrelation-min {_down(score['autocorrelation'])} or less."
    if reason == "saturated":
        return f"{_COMPETE} with --saturated-max {_up(score['saturated_fraction'])} or more, or with a wider --scale."
    if reason == "blurred":
        return f"{_COMPETE} with --sharpness-min {_down(score['sharpness'])} or less."
    if reason == "spatial_duplicate":
        return f"{_COMPETE} with a larger --spatial-overlap (1 is never) or, if the dates differ, less --duplicate-days."
    if reason == "reference_leak":
        return (
            "It would compete for a seat without --exclude-from or --exclude-reference for the set it is in."
        )
    if reason == "near_duplicate" and similarity is not None:
        return f"{_COMPETE} with --near-duplicate {_up(similarity + 1e-5)} or more."
    if reason == "exact_duplicate":
        return "No setting keeps both, as they have the same pixels."
    if reason == "unreadable":
        return "Mend or replace the file and give the same 'rsprune run' again."
    return None


def smallest_keep(position: int, readable: int) -> float | None:
    """Smallest --keep, to a readable number of digits, whose budget reaches `position` (1 is best)."""
    digits = max(2, math.ceil(math.log10(max(readable, 1))) + 1)
    step = 10**digits
    first = max(1, math.floor((position - 1) / max(readable, 1) * step) - 1)
    for i in range(first, step + 1):
        if SelectConfig(keep=i / step).budget(readable) >= position:
            return i / step
    return None


def _cluster(columns: Columns, cluster: int, rank: int | None) -> dict[str, Any]:
    inside = columns.cluster == cluster
    ranks = columns.rank[inside & (columns.rank >= 0)]
    return {
        "id": cluster,
        "size": int(inside.sum()),
        "ranked": len(ranks),
        "kept": int((inside & columns.kept).sum()),
        "position": None if rank is None else int((ranks <= rank).sum()),
    }


def _cosine(columns: Columns, row: int, other: int) -> float:
    x = unit_rows(columns.embeddings([row, other]))
    return float(x[0] @ x[1])


def _similar(ids: pa.ChunkedArray, id: str) -> str:
    """The ids that may have been meant: those that hold its last part, else those spelt alike."""
    name = id.rstrip("/").rpartition("/")[2]
    found = []
    if name:
        holding = ids.filter(pc.match_substring(ids, name, ignore_case=True))
        found = holding.slice(0, _SUGGESTIONS).to_pylist()
    if not found:
        every = max(1, len(ids) // _COMPARED)
        found = difflib.get_close_matches(id, ids.to_pylist()[::every], n=_SUGGESTIONS)
    return f"; did you mean {' or '.join(found)}?" if found else ": its ids are in decisions.parquet"


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _up(value: float) -> str:
    return f"{math.ceil(value * 10_000) / 10_000:g}"


def _down(value: float) -> str:
    return f"{math.floor(value * 10_000) / 10_000:g}"
