"""What the command line shows: progress, notices, the closing table, errors."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

from rsprune.filters import REASONS
from rsprune.layout import STAGES
from rsprune.run import Run

LINE_EVERY = 10.0  # seconds between progress lines where the output is not a terminal
MOST_SCENES = 12  # of the closing table, which is to be seen at once


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = _speed(task)
        return Text(f"{_rate(speed)} images/s" if speed else "")


class _Left(ProgressColumn):
    """The time that is left, and in the end the time that it took."""

    def render(self, task: Task) -> Text:
        if task.finished_time is not None:
            return Text(f"in {_time(task.finished_time)}")
        speed = _speed(task)
        return Text(f"{_time((task.total - task.completed) / speed)} left" if speed and task.total else "")


def _speed(task: Task) -> float | None:
    """Images per second: lately or, where few parts are done, since the beginning. None before the first part."""
    elapsed = task.finished_time or task.elapsed
    return task.finished_speed or task.speed or (task.completed / elapsed if elapsed else None) or None


class Terminal:
    """Progress and notices on stderr, results on stdout."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json
        # Names may hold what looks like markup or like the code of an emoji.
        self.out = Console(highlight=False, emoji=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        if not self.quiet:
            self.err.print(sentence, markup=False)

    def progress(self, done: Iterable[int], description: str, images: int) -> Iterator[int]:
        """Passes on how many images each part had, and shows the rate and the time that is left."""
        if self.quiet:
            yield from done
        elif self.err.is_terminal:
            columns = (TextColumn("{task.description:<15}"), BarColumn(None), MofNCompleteColumn(), _Rate())
            with Progress(*columns, _Left(), console=self.err, expand=True) as bar:
                task = bar.add_task(description, total=images)
                for n in done:
                    bar.advance(task, n)
                    yield n
        else:
            yield from self._lines(done, description, images)

    def _lines(self, done: Iterable[int], description: str, images: int) -> Iterator[int]:
        started = said = time.monotonic()
        so_far = 0
        for n in done:
            so_far += n
            now = time.monotonic()
            if now - said > LINE_EVERY and so_far < images:
                said, rate = now, so_far / (now - started)
                left = (images - so_far) / rate
                self.say(
                    f"{description}: {so_far:,} of {images:,}, {_rate(rate)} images/s, about {_time(left)} left"
                )
            yield n

    def summary(self, run: Run) -> None:
        """What became of the images, scenes before and after, and seconds per stage."""
        facts = summarise(run)
        if self.as_json:
            return self.result(facts, "")
        table = Table(title=f"{facts['kept']:,} of {facts['images']:,} images kept")
        table.add_column("images")
        table.add_column("count", justify="right")
        for reason, count in facts["reasons"].items():
            table.add_row(reason.replace("_", " "), f"{count:,}")
        self.out.print(table)
        scenes = Table(title="scenes")
        for name in ("scene", "before", "after"):
            scenes.add_column(name, justify="left" if name == "scene" else "right")
        for scene, before, after in _largest(facts["scenes"]):
            scenes.add_row(Text(scene), f"{before:,}", f"{after:,}")
        self.out.print(scenes)
        seconds = Table(title="time")
        seconds.add_column("stage")
        seconds.add_column("seconds", justify="right")
        for stage, spent in facts["seconds"].items():
            seconds.add_row(stage, f"{spent:.1f}")
        self.out.print(seconds)
        budget = facts["budget"]
        self.out.print(f"keep {budget['keep']:.4g}, prune {budget['prune']:.4g}, n {budget['n']}")
        if "report" in facts:
            self.out.print(f"report: {facts['report']}", markup=False)
        else:
            self.say(f"the page about this selection: rsprune report {shlex.quote(str(run.path))}")

    def comparison(self, facts: dict[str, Any]) -> None:
        """What `compare` found: a row per run, what they share, and scenes before and after."""
        if self.as_json:
            return self.result(facts, "")
        runs = facts["runs"]
        table = _table("selections", "run", "images", "kept", "clusters used", "entropy", "coverage", "95 %")
        for run in runs:
            used = sum(n > 0 for n in run["clusters"]["after"])
            e = run["entropy"]
            bits = "" if e["p50"] is None else f"{e['p50']:.1f} ({e['p5']:.1f}–{e['p95']:.1f})"
            of_clusters = f"{used:,} of {len(run['clusters']['after']):,}"
            counts = f"{run['images']:,}", f"{run['kept']:,}", of_clusters
            table.add_row(Text(run["name"]), *counts, bits, *_distances(run["coverage"]))
        baseline = facts["baseline"]
        table.add_row(baseline["name"], "", "", "", "", *_distances(baseline["coverage"]))
        self.out.print(table)
        overlap = _table("kept by both, and Jaccard index", "run", *(Text(run["name"]) for run in runs))
        for i, run in enumerate(runs):
            pairs = zip(facts["overlap"]["both"][i], facts["overlap"]["jaccard"][i], strict=True)
            overlap.add_row(
                Text(run["name"]), *(f"{n:,}" if j is None else f"{n:,} ({j:.2f})" for n, j in pairs)
            )
        self.out.print(overlap)
        scenes = _table("scenes, before and after", "scene", *(Text(run["name"]) for run in runs))
        names = sorted({s for run in runs for s in run["scenes"]}, key=lambda s: _order(runs, s))
        for scene in names:
            shares = [run["scenes"].get(scene) for run in runs]
            scenes.add_row(Text(scene), *("" if p is None else f"{p[0]:,} → {p[1]:,}" for p in shares))
        self.out.print(scenes)
        self.out.print(
            "coverage: mean distance of a dropped image to the nearest kept one, "
            f"and what 95 % stay below, judged by {facts['judge']}",
            markup=False,
        )
        for sentence in facts["notes"]:
            self.say(sentence)
        if "picture" in facts:
            self.out.print(f"picture: {facts['picture']}", markup=False)

    def finished(self, stage: str, run: Run) -> None:
        """One line about a stage that has been run alone."""
        facts = {"run": str(run.path), "stage": stage, "seconds": seconds_per_stage(run).get(stage, 0.0)}
        self.result(facts, f"{stage} is complete: {run.path}")

    def result(self, facts: dict[str, Any], text: str) -> None:
        """A result in words, or as one line of JSON."""
        self.out.print(json.dumps(facts) if self.as_json else text, markup=False)


def _largest(scenes: dict[str, list[int]]) -> list[tuple[str, int, int]]:
    """Scenes with their counts before and after; those that would not fit are summed up in the last row."""
    rows = [(scene, before, after) for scene, (before, after) in scenes.items()]
    if len(rows) <= MOST_SCENES:
        return rows
    shown, others = rows[: MOST_SCENES - 1], rows[MOST_SCENES - 1 :]
    return [*shown, (f"{len(others):,} smaller ones", sum(r[1] for r in others), sum(r[2] for r in others))]


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(title: str, first: str, *others: str | Text) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _distances(coverage: dict[str, Any] | None) -> tuple[str, str]:
    return (f"{coverage['mean']:.3f}", f"{coverage['p95']:.3f}") if coverage else ("–", "–")


def _order(runs: list[dict[str, Any]], scene: str) -> tuple[int, str]:
    return -max(run["scenes"].get(scene, (0, 0))[0] for run in runs), scene


def summarise(run: Run) -> dict[str, Any]:
    """The facts of the closing table, JSON-able."""
    decisions = run.table("select", ["reason", "kept", "scene"])
    counted = {c["values"]: c["counts"] for c in decisions["reason"].value_counts().to_pylist()}
    reasons = {r: counted[r] for r in REASONS if r in counted}
    scenes: dict[str, list[int]] = {}
    by_scene = decisions.group_by(["scene", "kept"], use_threads=False).aggregate([([], "count_all")])
    for row in by_scene.to_pylist():
        if row["scene"] is not None:
            before_after = scenes.setdefault(row["scene"], [0, 0])
            before_after[0] += row["count_all"]
            before_after[1] += row["count_all"] * row["kept"]
    images = len(decisions)
    readable = run.table("score", ["error"])["error"].null_count
    n = run.settings.select.budget(readable)
    facts: dict[str, Any] = {
        "run": str(run.path),
        "images": images,
        "kept": reasons.get("kept", 0),
        "reasons": reasons,
        "scenes": dict(sorted(scenes.items(), key=lambda s: -s[1][0])),
        "seconds": seconds_per_stage(run),
        "budget": {"keep": n / readable, "prune": 1 - n / readable, "n": n}
        if readable
        else {"keep": 0, "prune": 1, "n": 0},
    }
    if run.complete("report"):
        facts["report"] = str(run.report_path)
    return facts


def seconds_per_stage(run: Run) -> dict[str, float]:
    """Seconds of the last time each stage ran."""
    last = {entry["stage"]: entry["seconds"] for entry in run.log() if "stage" in entry}
    return {stage: last[stage] for stage in STAGES if stage in last}
