"""A run folder, the settings wanted for it, and how to execute its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import pyarrow.parquet as pq

from rsprune import engine, resume
from rsprune.config import Settings
from rsprune.engine_ray import Ray
from rsprune.errors import PartFailed, TooManyUnreadable
from rsprune.layout import digest
from rsprune.progress import Progress, silent
from rsprune.run import Run


class Part(Protocol):
    """A task that computes the part of that name; it must be possible to pickle."""

    @property
    def name(self) -> str:
        """Of the part, in every stage."""
        ...


P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class Job:
    """What every stage is given; `progress` follows the images done, `say` takes notices.

    Parts are computed by `workers` processes of this machine, or by `cluster`.
    """

    run: Run
    settings: Settings
    workers: int = field(default_factory=engine.default_workers)
    device: str = "cpu"
    cluster: Ray | None = None
    overwrite: bool = False
    progress: Progress = silent
    say: Callable[[str], None] = lambda sentence: None

    @property
    def worker_device(self) -> str:
        """The device that parts are computed on."""
        return self.cluster.device if self.cluster else self.device

    def admit(self, name: str, *settings: Any) -> None:
        """Raises `ConfigError` where stage `name` holds results of other `settings` that may not be thrown away."""
        resume.admit(self.run.path, name, digest(name, *settings), overwrite=self.overwrite)

    def stage(
        self, name: str, *settings: Any, inputs: str = "", parts: Sequence[str] | None = None
    ) -> AbstractContextManager[bool]:
        """Enters stage `name` with its `settings`, as `Run.stage`; False where all is there already."""
        return self.run.stage(
            name, digest(name, *settings), self.settings, inputs=inputs, parts=parts, overwrite=self.overwrite
        )

    def missing(self, name: str) -> list[str]:
        """Names of the parts that stage `name` has not written yet."""
        there = {file.stem for file in self.run.parts(name)}
        return [part for part in self.run.names if part not in there]

    def images_in(self, parts: Iterable[str]) -> int:
        """Images in parts of that name."""
        return sum(pq.read_metadata(self.run.part("scan", part)).num_rows for part in parts)

    def map(
        self,
        function: Callable[[Any], int],
        tasks: Sequence[Any],
        description: str,
        images: int,
        *,
        on_device: bool = False,
    ) -> None:
        """Runs `function`, which returns how many images it has done, over `tasks` on this job's workers.

        Those of a cluster are given GPUs where the work is `on_device`.

        Raises:
            PartFailed: one of them failed several times.
        """
        for _ in self.progress(self._done(function, tasks, description, on_device), description, images):
            pass

    def map_parts(
        self,
        stage: str,
        function: Callable[[P], int],
        unread: Callable[[P, str], int],
        tasks: Sequence[P],
        images: int,
        *,
        on_device: bool = False,
    ) -> None:
        """As `map` for the parts of a stage, but one that fails several times is given up.

        Args:
            stage: whose parts they are.
            function: writes a part and returns how many images it has.
            unread: writes a part whose images are all unreadable for the given reason, and returns how many were not
                before.
            tasks: the parts to make.
            images: in all of them.
            on_device: whether workers of a cluster are given GPUs.

        Raises:
            TooManyUnreadable: as many images were given up as the settings do not allow.
        """
        lost, allowed = 0, None

        def done() -> Iterable[int]:
            nonlocal lost, allowed
            for result in self._computed(function, tasks, on_device):
                if not isinstance(result, engine.Failed):
                    yield result
                    continue
                # Noted first: otherwise a crash would leave a part that looks as if its images had been tried.
                part = result.task.name
                self.run.note_failed(stage, part, result.reason)
                self.run.note(failed=part, reason=result.reason, trace=result.trace)
                n = unread(result.task, result.reason)
                self.say(f"{stage}: {part} was given up after {engine.ATTEMPTS} attempts: {result.reason}")
                lost += n
                allowed = self._allowed(images) if allowed is None else allowed
                if lost > allowed:
                    raise TooManyUnreadable(
                        f"{lost:,} images were given up in stage '{stage}', more than --max-bad "
                        f"{self.settings.scan.max_bad:g} allows (the last: {result.reason}); "
                        "run the same command again to try them again"
                    )
                yield n

        for _ in self.progress(done(), stage, images):
            pass

    def _computed(
        self, function: Callable[[P], int], tasks: Sequence[P], on_device: bool
    ) -> Iterator[int | engine.Failed[P]]:
        if self.cluster:
            return self.cluster.map_parts(function, tasks, on_device=on_device)
        return engine.map_parts(function, tasks, self.workers)

    def _allowed(self, images: int) -> float:
        """Images of the run that may be unreadable; `images` are those still to do."""
        if self.settings.scan.on_error == "stop":
            return 0
        return self.settings.scan.max_bad * max(
            images, self.images_in(f.stem for f in self.run.parts("scan"))
        )

    def _done(
        self, function: Callable[[Any], int], tasks: Sequence[Any], description: str, on_device: bool
    ) -> Iterable[int]:
        for result in self._computed(function, tasks, on_device):
            if isinstance(result, engine.Failed):
                self.run.note(failed=description, reason=result.reason, trace=result.trace)
                raise PartFailed(
                    f"'{description}' failed {engine.ATTEMPTS} times ({result.reason}); "
                    "run the same command again to continue"
                )
            yield result
