"""Calibrate: the run's references as benchmark of its embedding space and of others that it could have had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rsprune.calibration import GRANULARITIES, benchmark, calibrate, spaces
from rsprune.scenes import Reference
from rsprune.stages.features import RawFeatures, features_by
from rsprune.stages.job import Job
from rsprune.stages.references import PreparedReference

OF_THE_RUN = "run"  # name of the run's own transform: standardised by a sample of its pool


def encode_candidates(job: Job, prepared: Sequence[PreparedReference]) -> dict[str, list[RawFeatures]]:
    """Features of the references by the encoders that are to be compared with the run's."""
    found: dict[str, list[RawFeatures]] = {}
    for encoder in job.settings.cluster.calibrate if prepared else ():
        if encoder in (*found, job.settings.embed.encoder):
            continue
        if fixed := [r.name for r in prepared if r.folder is None]:
            job.say(f"reference {fixed[0]} holds no images, so {encoder} cannot be tried on it")
            continue
        # Each reference is a run folder of its own, whose settings say how its images are read.
        jobs = [replace(job, run=r.folder, settings=r.folder.settings) for r in prepared if r.folder]
        found[encoder] = [features_by(job, mine, encoder) for mine in jobs]
    return found


def calibrate_references(
    job: Job,
    prepared: Sequence[PreparedReference],
    loaded: Sequence[Reference],
    others: Mapping[str, Sequence[RawFeatures]],
) -> dict[str, Any]:
    """What goes into ``calibration.json``: the benchmark of every candidate, and of the run's in detail.

    Args:
        job: the run.
        prepared: its references.
        loaded: the same in the space of the run.
        others: what `encode_candidates` gave.
    """
    seed = job.settings.seed
    joint = calibrate(loaded, seed=seed)
    each = {r.name: calibrate(r, seed=seed) for r in loaded} if len(loaded) > 1 else {loaded[0].name: joint}
    encoder = prepared[0].transform.encoder
    candidates = {(encoder, OF_THE_RUN): [r.embeddings for r in loaded]}
    raw = {encoder: [r.features for r in prepared]}
    raw |= {name: [f.load() for f in features] for name, features in others.items()}
    for name, features in raw.items():
        candidates |= {(name, transform): x for transform, x in spaces(features).items()}
    table = benchmark(loaded, candidates, granularities=(*GRANULARITIES, joint["granularity"]), seed=seed)
    decides = encoder, OF_THE_RUN, joint["granularity"]
    for row in table:
        row["used"] = job.settings.cluster.n_clusters is None and decides == (
            row["encoder"], row["transform"], row["granularity"],
        )  # fmt: skip
    return {
        "encoder": encoder,
        "references": {r.name: {**r.about, **each[r.name]} for r in prepared},
        "joint": joint,
        "granularity": joint["granularity"],
        "candidates": table,
    }
