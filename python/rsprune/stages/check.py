"""What later stages would refuse, said before the first image is read: it must not show after hours."""

from __future__ import annotations

from rsprune.stages.embed import check_embeddings
from rsprune.stages.exclusions import check_exclusions
from rsprune.stages.job import Job
from rsprune.stages.references import check_references
from rsprune.strategies import load_strategy


def check(job: Job) -> None:
    """Raises `ConfigError` where the strategy, given embeddings, a reference or a set to exclude cannot be used."""
    load_strategy(job.settings.select.strategy)
    check_embeddings(job)
    check_references(job)
    check_exclusions(job)
