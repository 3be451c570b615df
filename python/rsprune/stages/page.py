"""Report: one self-contained page about the run."""

from __future__ import annotations

from rsprune.report import write_report
from rsprune.stages.job import Job


def write_page(job: Job) -> None:
    """Writes ``report.html``."""
    job.run.require("select")
    with job.stage("report", job.run.fingerprint("select")) as todo:
        if todo:
            write_report(job.run)
