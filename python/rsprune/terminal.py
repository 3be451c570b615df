"""What the command line shows: progress, notices, the closing table, errors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rsprune.filters import REASONS
from rsprune.run import STAGES, Run

LINE_EVERY = 10.0  # seconds between progress lines where the output is not a terminal


class Terminal:
    """Progress and notices on stderr, results on stdout."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        if not self.quiet:
            self.err.print(sentence, markup=False)

    def progress(self, results: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        """Passes `results` on and shows how far they have come; a result stands for one part."""
        if self.quiet:
            yield from results
        elif self.err.is_terminal:
            columns = (
                TextColumn("{task.description:<15}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("parts"),
            )
            with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.err) as bar:
                yield from bar.track(results, total=total, description=description)
        else:
            yield from self._lines(results, description, total)

    def _lines(self, results: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        started = said = time.monotonic()
        for done, result in enumerate(results, 1):
            now = time.monotonic()
            if now - said > LINE_EVERY and done < total:
                said, rate = now, done / (now - started)
                self.say(f"{description}: {done} of {total} parts, about {(total - done) / rate:.0f} s left")
            yield result

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
        for scene, (before, after) in facts["scenes"].items():
            scenes.add_row(scene, f"{before:,}", f"{after:,}")
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

    def finished(self, stage: str, run: Run) -> None:
        """One line about a stage that has been run alone."""
        facts = {"run": str(run.path), "stage": stage, "seconds": seconds_per_stage(run).get(stage, 0.0)}
        self.result(facts, f"{stage} is complete: {run.path}")

    def result(self, facts: dict[str, Any], text: str) -> None:
        """A result in words, or as one line of JSON."""
        self.out.print(json.dumps(facts) if self.as_json else text, markup=False)


def summarise(run: Run) -> dict[str, Any]:
    """The facts of the closing table, JSON-able."""
    decisions = run.decisions.select(["reason", "kept", "scene"]).to_pydict()
    reasons = {r: n for r in REASONS if (n := decisions["reason"].count(r))}
    scenes: dict[str, list[int]] = {}
    for scene, kept in zip(decisions["scene"], decisions["kept"], strict=True):
        if scene is not None:
            row = scenes.setdefault(scene, [0, 0])
            row[0] += 1
            row[1] += kept
    images = len(decisions["kept"])
    readable = images - reasons.get("unreadable", 0)
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
