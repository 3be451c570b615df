"""The run folder: where stages keep their parts, how they resume, and what is remembered about them.

A part is named after its place and its images: ``part-000003-9f2c...`` ends in a digest of what is known of each of
them before it is opened. So a file under a wanted name belongs to just these images, whatever happened in between.
What all parts of a stage stand on, such as its settings, is noted in a marker before the first of them is written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rsprune import resume, toml
from rsprune.config import Settings
from rsprune.errors import ConfigError
from rsprune.files import make_folder, write_atomic
from rsprune.layout import FOLDERS, READS_IMAGES, SECTIONS, STAGES, Marker, damaged, digest, marker_path

_BEFORE_THE_SEED = ("scan", "score")  # stages whose results stay with another seed


class Run:
    """A run folder at `path`; opening one reads its ``config.toml``, and nothing else."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._names: list[str] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """An existing run folder. Raises `ConfigError` where there is none."""
        run = cls(path)
        if not run.config_path.is_file():
            raise ConfigError(
                f"{run.path} is not a run folder: it has no config.toml (make one with 'rsprune run')"
            )
        return run

    def check(self) -> None:
        """Raises `ConfigError` where the settings or a marker are damaged, or of another version."""
        _ = self.settings
        for stage in STAGES:
            self.marker(stage)

    # What was computed ------------------------------------------------------------------------------------

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @cached_property
    def settings(self) -> Settings:
        """What the run was asked for. Raises `ConfigError` where its ``config.toml`` cannot be read."""
        try:
            return toml.load(self.config_path)
        except ConfigError as e:
            raise ConfigError(
                f"{self.path} has settings that this version of rsprune does not understand ({e}): "
                "use the version that wrote them, or choose another folder"
            ) from None

    @property
    def names(self) -> list[str]:
        """Names of the parts in the order of their images, the same in every stage."""
        if self._names is not None:
            return self._names
        names = [f.stem for f in self.parts("scan")]
        if self.complete("scan"):
            self._names = names
        return names

    @property
    def n_parts(self) -> int:
        return len(self.names)

    def part(self, stage: str, part: int | str) -> Path:
        """File of the part with that name or number."""
        if isinstance(part, int):
            part = self.names[part] if part < self.n_parts else f"part-{part:06d}"
        return resume.part_file(self.path, stage, part)

    def parts(self, stage: str) -> list[Path]:
        """Files of the parts that are there, in the order of their images."""
        return resume.part_files(self.path, stage)

    def table(self, stage: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of a stage in id order; `stage` is scan, score, cluster or select."""
        self.require(stage)
        files = [self.path / "decisions.parquet"] if stage == "select" else self.parts(stage)
        return pa.concat_tables([_read(f, columns) for f in files])

    @property
    def decisions(self) -> pa.Table:
        """One row per image: kept or not, and why."""
        return self.table("select")

    @property
    def kept_ids(self) -> list[str]:
        """Ids of the kept images, best first."""
        self.require("select")
        return (self.path / "kept.txt").read_text("utf-8").splitlines()

    @property
    def report_path(self) -> Path:
        """The page about the run, whether or not it has been written."""
        return self.path / "report.html"

    def embeddings(self) -> np.ndarray:
        """Transformed features of all images, [N, D] float16, NaN where an image is unreadable."""
        self.require("embed")
        parts = [np.load(f, mmap_mode="r", allow_pickle=False) for f in self.parts("embed")]
        out = np.empty((sum(len(p) for p in parts), parts[0].shape[1]), np.float16)
        start = 0
        for p in parts:
            out[start : start + len(p)] = p
            start += len(p)
        return out

    def json(self, name: str) -> Any:
        """Content of a JSON file. Raises `ConfigError` where it is damaged."""
        try:
            return json.loads((self.path / name).read_text("utf-8"))
        except ValueError:
            raise damaged(self.path / name) from None

    def log(self) -> list[dict[str, Any]]:
        """What ran when, oldest first."""
        path = self.path / "log.jsonl"
        entries = []
        for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # a crash may have cut a line
                entries.append(json.loads(line))
        return entries

    # Stages -----------------------------------------------------------------------------------------------

    def marker(self, stage: str) -> Marker | None:
        """What the results of a stage stand on. Raises `ConfigError` where another version wrote them."""
        return Marker.load(self.path, stage)

    def begun(self, stage: str) -> Marker:
        """As `marker`, of a stage that has begun. Raises `ConfigError` where it has not."""
        return Marker.begun(self.path, stage)

    def fingerprint(self, stage: str) -> str | None:
        """Changes with anything that the results of a stage stand on."""
        marker = self.marker(stage)
        return digest(asdict(replace(marker, complete=True))) if marker else None

    def complete(self, stage: str) -> bool:
        """Whether all parts of a stage are there."""
        marker = self.marker(stage)
        return marker is not None and marker.complete

    def require(self, stage: str) -> None:
        """Raises `ConfigError` where the stage is not finished."""
        if not self.complete(stage):
            raise ConfigError(f"{self.path} has no finished '{stage}' stage: run 'rsprune {stage}' first")

    @contextlib.contextmanager
    def stage(
        self,
        name: str,
        fingerprint: str,
        settings: Settings | None = None,
        *,
        inputs: str = "",
        parts: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> Iterator[bool]:
        """Enters a stage; yields False where it is complete already. `settings` go into ``config.toml``.

        Args:
            name: of the stage.
            fingerprint: of its settings.
            settings: of the run.
            inputs: fingerprint of what else all parts depend on; where it has changed, all are made again.
            parts: names of the parts, if they are not those of the scan.
            overwrite: throw away results of other settings.

        Raises:
            ConfigError: a costly stage holds results of other settings and `overwrite` is not set.
        """
        self._names = None
        resume.admit(self.path, name, fingerprint, overwrite=overwrite)
        if settings is not None:
            self._adopt(name, settings, overwrite=overwrite)
        if parts is None and name in READS_IMAGES[1:]:
            parts = self.names
        if not resume.prepare(self.path, name, inputs, parts):
            yield False
            return
        started, clock = datetime.now(timezone.utc), time.perf_counter()
        if name in FOLDERS:
            (self.path / FOLDERS[name]).mkdir(exist_ok=True)
        yield True
        abandoned = *self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")  # by a process that was killed
        for file in abandoned:
            file.unlink(missing_ok=True)
        replace(Marker.begun(self.path, name), complete=True).save(self.path, name)
        self.note(stage=name, started=started.isoformat(), seconds=round(time.perf_counter() - clock, 3))

    def note_failed(self, stage: str, part: str, reason: str) -> None:
        """Remembers that a part could not be computed; to be called before its stand-in is written."""
        marker = Marker.begun(self.path, stage)
        replace(marker, failed={**marker.failed, part: reason}).save(self.path, stage)

    def _adopt(self, stage: str, settings: Settings, *, overwrite: bool) -> None:
        # Only what this stage stands on: a later stage may still refuse its own part of `settings`.
        if self.config_path.exists():
            own = {section: getattr(settings, section) for section in SECTIONS[stage]}
            try:
                # Another seed is for the embeddings to accept or to refuse, where there are some.
                if stage in _BEFORE_THE_SEED and marker_path(self.path, "embed").exists():
                    settings = replace(settings, seed=self.settings.seed)
                settings = replace(self.settings, seed=settings.seed, **own)
            except ConfigError:
                if not overwrite:
                    raise
            else:
                if settings == self.settings:
                    return
        self.save_settings(settings)

    def save_settings(self, settings: Settings, **provenance: Any) -> None:
        """Writes ``config.toml`` with the versions that produced the results."""
        packages = ("rsprune", "numpy", "scikit-learn", "pyarrow", "pillow", "torch", "rasterio")
        versions = {}
        for name in packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        about = {"python": platform.python_version(), "machine": platform.machine(), **provenance}
        text = toml.dumps(settings, provenance={**about, "versions": versions})
        write_atomic(self.config_path, lambda f: f.write(text.encode()))
        self.__dict__["settings"] = settings

    def note(self, **entry: Any) -> None:
        """Adds a line to the log."""
        with (self.path / "log.jsonl").open("a+b") as f:
            if f.tell() and (f.seek(-1, os.SEEK_END), f.read(1))[1] != b"\n":  # a crash has cut the last line
                f.write(b"\n")
            f.write((json.dumps(entry) + "\n").encode())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder, made if it is not there, for this process. Raises `ConfigError` that names the holder."""
        import fcntl

        make_folder(self.path)
        with (self.path / ".lock").open("a+", encoding="utf-8") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                if e.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                f.seek(0)
                holder = f.read().strip() or "another process"
                raise ConfigError(
                    f"{self.path} is in use by {holder}: wait for it or choose another folder"
                ) from None
            f.truncate(0)
            f.write(f"process {os.getpid()} on {socket.gethostname()}")
            f.flush()
            yield


def _read(file: Path, columns: list[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(file) as opened:  # a fifth of what `read_table` takes for a part
            return opened.read(columns)
    except (pa.ArrowException, OSError) as e:
        if isinstance(e, FileNotFoundError):
            raise
        raise damaged(file) from None
