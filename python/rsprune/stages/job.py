"""A run folder, the settings wanted for it, and how to execute its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from rsprune import engine
from rsprune.config import Settings
from rsprune.run import Run, digest

Progress = Callable[[Iterable[int], str, int], Iterable[int]]


def _silent(done: Iterable[int], description: str, images: int) -> Iterable[int]:
    return done


@dataclass(frozen=True)
class Job:
    """What every stage is given; `progress` follows the images done, `say` takes notices."""

    run: Run
    settings: Settings
    workers: int = field(default_factory=engine.default_workers)
    device: str = "cpu"
    overwrite: bool = False
    progress: Progress = _silent
    say: Callable[[str], None] = lambda sentence: None

    def stage(self, name: str, *inputs: Any) -> AbstractContextManager[bool]:
        """Enters stage `name`, whose results depend on `inputs`; False where they are there already."""
        return self.run.stage(name, digest(name, *inputs), self.settings, overwrite=self.overwrite)

    def missing(self, name: str) -> list[int]:
        """Numbers of the parts that stage `name` has not written yet."""
        return [k for k in range(self.run.n_parts) if not self.run.part(name, k).exists()]

    def map(
        self, function: Callable[[Any], int], tasks: Sequence[Any], description: str, images: int
    ) -> None:
        """Runs `function`, which returns how many images it has done, over `tasks` on this job's workers."""
        for _ in self.progress(engine.map_parts(function, tasks, self.workers), description, images):
            pass

    def missing_images(self, name: str) -> int:
        """Images in the parts that stage `name` has not written yet."""
        return sum(pq.read_metadata(self.run.part("scan", k)).num_rows for k in self.missing(name))
