"""The stages of a run, in the order in which data flows through them."""

from __future__ import annotations

from rsprune.stages.check import check
from rsprune.stages.cluster import cluster_images
from rsprune.stages.embed import check_encoder, embed_images, embedding_size
from rsprune.stages.job import Job
from rsprune.stages.page import write_page
from rsprune.stages.scan import scan_images
from rsprune.stages.score import score_images
from rsprune.stages.select import select_images

__all__ = [
    "Job",
    "cluster_images",
    "embed_images",
    "run_all",
    "scan_images",
    "score_images",
    "select_images",
    "write_page",
]


def run_all(job: Job) -> None:
    """Every stage up to the report; stages that are complete are not repeated."""
    check(job)
    scan_images(job, features=lambda: embedding_size(job))
    if job.overwrite or not job.run.complete("embed"):
        check_encoder(job)
    score_images(job)
    embed_images(job)
    cluster_images(job)
    select_images(job)
    write_page(job)
