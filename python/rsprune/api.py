"""The whole of ``rsprune run`` as one function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rsprune import config, engine, toml
from rsprune.errors import ConfigError
from rsprune.locations import source_values
from rsprune.run import Run
from rsprune.stages import Job, run_all

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def prune(
    data: Paths,
    out: str | os.PathLike[str],
    *,
    keep: float | None = None,
    n: int | None = None,
    reference: Paths = (),
    seed: int = 0,
    workers: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    settings: dict[str, dict[str, Any]] | None = None,
) -> Run:
    """Selects the part of an image collection that is worth training on.

    Args:
      data: Folders or scenes; a scene is cut into windows with ``settings={"scan": {"sources": [...]}}``.
      out: The run folder; an interrupted run in it is continued.
      keep: Fraction of the readable images to keep (default 0.15); excludes `n`.
      n: Number of images to keep.
      reference: Labelled reference sets: class folders, or Parquet files with `embedding` and `label`.
      seed: The same seed gives the same images.
      workers: Processes that read and embed; one per core by default. The result does not depend on it.
      device: "auto", "cpu" or "cuda[:i]".
      overwrite: Throw away results of other settings in `out`.
      settings: Further settings per stage, as in a run's ``config.toml``.

    Returns:
      The finished run: `kept_ids`, `decisions` and `report_path` say what came out.

    Raises:
      ConfigError: A setting, the data or the reference cannot be used.
      TooManyUnreadable: More images than ``scan.max_bad`` cannot be read.
      BudgetError: There are not as many images as `n`, or none is eligible.
    """
    values = toml.sections(settings or {})
    paths = _paths(data)
    if paths:
        values.setdefault("scan", {})["sources"] = [source_values(p) for p in paths]
    if keep is not None:
        values.setdefault("select", {})["keep"] = keep
    if n is not None:
        values.setdefault("select", {})["n"] = n
    if references := _paths(reference):
        values.setdefault("cluster", {})["reference"] = references
    wanted = config.settings({**values, "seed": seed})
    job = Job(
        Run(out),
        wanted,
        workers=check_workers(workers),
        device=engine.choose_device(device),
        overwrite=overwrite,
    )
    with job.run.lock():
        run_all(job)
    return job.run


def check_workers(workers: int | None) -> int:
    """The number of processes to use. Raises `ConfigError`."""
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}: give at least 1")
    return workers or engine.default_workers()


def _paths(value: Paths) -> list[str]:
    if isinstance(value, (str, os.PathLike)):
        value = [value]
    return [os.fspath(v) for v in value]
