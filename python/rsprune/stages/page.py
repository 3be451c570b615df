"""Report: one self-contained page about the run."""

from __future__ import annotations

from rsprune import __version__
from rsprune.report import write_report
from rsprune.report.maps import has_umap
from rsprune.stages.job import Job


def write_page(job: Job) -> None:
    """Writes ``report.html``; again where another version wrote it, or UMAP was installed meanwhile."""
    job.run.require("select")
    with job.stage("report", job.run.fingerprint("select"), __version__, has_umap()) as todo:
        if todo:
            write_report(job.run, progress=job.progress)
