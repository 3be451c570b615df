"""The results in words: ``results.md``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rsprune.experiment.references import KINDS
from rsprune.experiment.summary import TOLERANCE

ENOUGH_NOTE = (
    f"Smallest kept share whose loss is at most {100 * TOLERANCE:g} % above that of an arm on everything, with the "
    "same seed after the same steps; between the shares that were run, on straight lines of logarithms."
)
PAIRED_NOTE = (
    "A seed draws the held-out tiles, too, so differences are paired by seed: mean ± half of the 95 % t-interval, not "
    "corrected for their number."
)


def write(facts: dict[str, Any]) -> str:
    """Markdown with every number of the facts that a reader may want to check."""
    parts = [f"# {facts['title']}", "", *_head(facts), "", "## Arms", "", *_arms(facts)]
    for kind in KINDS:
        n = facts["n_loss"][kind]
        parts += [
            "", f"## Held-out loss, {kind} reference ({n} images)", "",
            "Mean over five times, over seeds, ± half of the 95 % t-interval. Lower is better.", "",
            *_losses(facts, kind), "", f"### Against {_first(facts)}, {facts['steps'][-1]:,} steps", "",
            *_comparisons(facts["comparisons"][kind]), "", "### Steps to the full arm's last loss", "",
            *_convergence(facts["convergence"][kind], facts["steps"][-1]), "", "### By share of noise", "",
            *_times(facts["times"][kind]),
        ]  # fmt: skip
    if any(facts["enough"].values()):
        parts += ["", "## The smallest share that is enough", "", ENOUGH_NOTE, ""]
        parts += _enough(facts["enough"], facts["seeds"])
    parts += ["", "## Every seed, last step", "", *_seeds(facts)]
    if facts["clusters"]["lines"]:
        parts += ["", "## Loss by kind of ground", "", *_clusters(facts["clusters"])]
    for group in facts["distances"]:
        title = f"## Samples against real images: {group['extractor']}, {group['reference']} reference"
        parts += ["", title, "", *_distances(group)]
    for task in facts["downstream"]:
        parts += ["", f"## Fine-tuned: {task['title']}", "", *_downstream(task, facts["seeds"])]
    return "\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def spread(mean: float | None, half: float | None, digits: int = 4) -> str:
    """A mean with its interval; nothing where there is no run yet."""
    if mean is None:
        return ""
    return (
        f"{mean:.{digits}f}" if half is None or math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"
    )


def p_value(comparison: dict[str, Any]) -> str:
    """In words: corrected, uncorrected, or not there."""
    p = comparison["p_holm"] if comparison["primary"] else comparison["p"]
    if p is None or math.isnan(p):
        return "–"
    number = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{number} (Holm)" if comparison["primary"] else number


def _head(facts: dict[str, Any]) -> list[str]:
    data, measure = facts["data"], facts["settings"]["measure"]
    tiles = ", ".join(f"{n:,} of {name}" for name, n in data["by_scene"].items())
    unfinished = "" if facts["done"] == facts["planned"] else " **The experiment is not finished.**"
    return [
        f"{facts['done']} of {facts['planned']} runs are done.{unfinished}",
        "",
        f"Pool: {data['pool']:,} tiles of {facts['settings']['data']['tile']} pixels ({tiles}). Seeds {_list(facts['seeds'])}. "
        f"Losses at shares of noise {_list(measure['times'])}, noise of seed {measure['seed']}, the same for all. "
        f"Code: {_list(facts['revisions']) or 'no run yet'}. Trained on: {_list(facts['machines']) or 'not known'}.",
    ]


def _list(values: Sequence[Any]) -> str:
    return ", ".join(str(v) for v in values)


def _first(facts: dict[str, Any]) -> str:
    return facts["settings"]["primary"][0] if facts["settings"]["primary"] else "no arm"


def _arms(facts: dict[str, Any]) -> list[str]:
    rows = []
    for arm in facts["arms"]:
        effective = f" ({arm['effective_images']:,.0f} effective)" if "effective_images" in arm else ""
        faults = ", ".join(f"{n:,} {name}" for name, n in arm.get("faults", {}).items())
        rows.append(
            [arm["label"], f"{arm.get('images', 0):,}{effective}", _list(arm["seeds"]) or "–", faults or "–"]
        )
    return table(["arm", "images", "seeds done", "faulty among them"], rows)


def _losses(facts: dict[str, Any], kind: str) -> list[str]:
    head = ["arm", *(f"{step:,} steps" for step in facts["steps"])]
    lines = facts["table"][kind]
    return table(head, [[row["arm"], *(spread(c["mean"], c["half"]) for c in row["cells"])] for row in lines])


def _comparisons(comparisons: list[dict[str, Any]]) -> list[str]:
    if not comparisons:
        return ["No pair of runs is done."]
    rows = [
        [
            f"{c['first']} − {c['second']}",
            f"{c['difference']:+.4f}",
            f"{100 * c['relative']:+.1f} %",
            "–" if math.isnan(c["low"]) else f"{c['low']:+.4f} … {c['high']:+.4f}",
            p_value(c),
            str(c["seeds"]),
        ]
        for c in comparisons
    ]
    head = ["difference", "mean", "relative", "95 % interval", "p", "seeds"]
    return [*table(head, rows), "", "Below 0 the first is better. p is of a paired t-test over seeds; where Holm is not named, it is not corrected."]  # fmt: skip


def _convergence(lines: list[dict[str, Any]], last: int) -> list[str]:
    rows = []
    for line in lines:
        steps = [f"{s:,.0f}" if s else f"more than {last:,}" for s in line["steps"].values()]
        speed = "–" if line["speed_up"] is None else f"{line['speed_up']:.2f} ×"
        rows.append([line["arm"], _list(steps) or "–", speed])
    return table(["arm", "steps, by seed", "speed-up"], rows) if rows else ["No pair of runs is done."]


def enough_share(line: dict[str, Any], seed: int) -> str:
    """A share in per cent, or on which side of those that were run it lies; nothing where the seed is not done."""
    if seed not in line["shares"]:
        return ""
    share, (smallest, *_, largest) = line["shares"][seed], line["run"][seed]
    if share is None:
        return f"more than {100 * largest:g} %"
    return f"at most {100 * smallest:g} %" if share == smallest else f"{100 * share:.2g} %"


def _enough(by_kind: dict[str, list[dict[str, Any]]], seeds: Sequence[int]) -> list[str]:
    rows = [
        [
            kind,
            f"{line['step']:,}",
            line["against"],
            line["strategy"],
            *(enough_share(line, s) for s in seeds),
        ]
        for kind, lines in by_kind.items()
        for line in sorted(lines, key=lambda line: (line["step"], line["against"]))
    ]
    return table(["reference", "steps", "as good as", "strategy", *(f"seed {s}" for s in seeds)], rows)


def _times(lines: list[dict[str, Any]]) -> list[str]:
    if not lines:
        return ["No run is done."]
    head = ["arm", *(f"{t:g}" for t in lines[0]["values"])]
    return table(head, [[line["arm"], *(f"{v:.4f}" for v in line["values"].values())] for line in lines])


def _seeds(facts: dict[str, Any]) -> list[str]:
    seeds = facts["seeds"]
    rows = []
    for i, arm in enumerate(facts["arms"]):
        cells = [facts["table"][kind][i]["cells"][-1]["values"] for kind in KINDS]
        rows.append([arm["label"], *(f"{c[s]:.4f}" if s in c else "" for c in cells for s in seeds)])
    return table(["arm", *(f"{kind}, seed {s}" for kind in KINDS for s in seeds)], rows)


def _clusters(clusters: dict[str, Any]) -> list[str]:
    head = [
        "arm",
        *(f"{name.split()[1]} ({n})" for name, n in zip(clusters["names"], clusters["sizes"], strict=True)),
    ]
    rows = [[line["arm"], *(f"{v:.3f}" for v in line["values"])] for line in clusters["lines"]]
    note = "Clusters of colour and texture among the held-out tiles, with the number of tiles; mean over seeds, last step."
    return [note, "", *table(head, rows)]


def _distances(group: dict[str, Any]) -> list[str]:
    rows = [
        [line["arm"], f"{line['images']:,}", *("" if v is None else f"{v:.4g}" for v in line["means"])]
        for line in group["lines"]
    ]
    return [distances_note(group), "", *table(["arm", "images", *group["heads"]], rows)]


def distances_note(group: dict[str, Any]) -> str:
    """What the numbers of a group of distances stand on, in words."""
    return (
        f"Samples of the last checkpoint against {group['n_real']:,} real images, mean over "
        f"seeds. Extractor {group['extractor']} at {group['resize']} pixels, weights {group['extractor_hash'][:12]}. "
        "Rows that begin with real are floors: real images in place of samples."
    )


def downstream_note(task: dict[str, Any]) -> str:
    """What the scores of a fine-tuning stand on, in words."""
    return (
        f"{task['steps']:,} steps on the same tiles for all, measured on {task['n_real']:,} held-out tiles; mean over "
        "seeds ± half of the 95 % t-interval."
    )


def _downstream(task: dict[str, Any], seeds: Sequence[int]) -> list[str]:
    rows = []
    for line in task["lines"]:
        cells = [spread(m, h, 3) for m, h in zip(line["means"], line["halves"], strict=True)]
        each = [f"{line['seeds'][s]:.3f}" if s in line["seeds"] else "" for s in seeds]
        rows.append([line["arm"], *cells, *each])
    head = ["start", *task["heads"], *(f"{task['heads'][0]}, seed {s}" for s in seeds)]
    lines = [downstream_note(task), "", *table(head, rows)]
    if task["differences"]:
        rows = [
            [f"{d['first']} − {d['second']}", *(paired_spread(value) for value in d["values"])]
            for d in task["differences"]
        ]
        lines += ["", PAIRED_NOTE, "", *table(["difference", *task["heads"]], rows)]
    return lines


def paired_spread(pair: dict[str, Any] | None) -> str:
    """A paired difference with its interval; nothing where no seed has both."""
    if pair is None:
        return ""
    half = (pair["high"] - pair["low"]) / 2
    return f"{pair['difference']:+.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")
