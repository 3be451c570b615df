"""The run folder: where stages keep their parts, how they resume, and what is remembered about them.

A stage notes its fingerprint (its settings and those of every stage before it) before it writes its first
part. So a part that lies there belongs to that fingerprint, and an interrupted stage repeats only what is missing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rsprune import config
from rsprune.config import Settings
from rsprune.errors import ConfigError

STAGES = ("scan", "score", "embed", "cluster", "select", "report")
READS_IMAGES = ("scan", "score", "embed")  # costly: never thrown away without --overwrite
FOLDERS = {"scan": "manifest", "score": "scores", "embed": "embeddings", "cluster": "assignments"}
OUTPUTS = {  # files beside the parts that a stage writes
    "scan": ("radiometry.json",),
    "embed": ("encoder.safetensors", "transform.safetensors"),
    "cluster": ("clusters.safetensors", "calibration.json"),
    "select": ("decisions.parquet", "kept.txt"),
    "report": ("report.html",),
}
SECTIONS = {"scan": ("scan",), "score": ("score",), "embed": ("embed",), "cluster": ("filter", "cluster")}
SECTIONS |= {"select": ("filter", "select"), "report": ()}  # of the settings, that a stage stands on


class Run:
    """A run folder at `path`; opening one reads its ``config.toml``, and nothing else."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """An existing run folder. Raises `ConfigError` where there is none."""
        run = cls(path)
        if not run.config_path.is_file():
            raise ConfigError(
                f"{run.path} is not a run folder: it has no config.toml (make one with 'rsprune run')"
            )
        return run

    # What was computed ------------------------------------------------------------------------------------

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @cached_property
    def settings(self) -> Settings:
        return config.load(self.config_path)

    def part(self, stage: str, k: int) -> Path:
        suffix = ".npy" if stage == "embed" else ".parquet"
        return self.path / FOLDERS[stage] / f"part-{k:05d}{suffix}"

    def parts(self, stage: str) -> list[Path]:
        return sorted((self.path / FOLDERS[stage]).glob("part-*"))

    @property
    def n_parts(self) -> int:
        return len(self.parts("scan"))

    def table(self, stage: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of a stage in id order; `stage` is scan, score, cluster or select."""
        self.require(stage)
        files = [self.path / "decisions.parquet"] if stage == "select" else self.parts(stage)
        return pa.concat_tables([pq.read_table(f, columns=columns) for f in files])

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
        return json.loads((self.path / name).read_text("utf-8"))

    def log(self) -> list[dict[str, Any]]:
        """What ran when, oldest first."""
        path = self.path / "log.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    # Stages -----------------------------------------------------------------------------------------------

    def fingerprint(self, stage: str) -> str | None:
        marker = self.path / ".stages" / f"{stage}.json"
        return json.loads(marker.read_text())["fingerprint"] if marker.exists() else None

    def complete(self, stage: str) -> bool:
        marker = self.path / ".stages" / f"{stage}.json"
        return marker.exists() and json.loads(marker.read_text())["complete"]

    def require(self, stage: str) -> None:
        if not self.complete(stage):
            raise ConfigError(f"{self.path} has no finished '{stage}' stage: run 'rsprune {stage}' first")

    @contextlib.contextmanager
    def stage(
        self, name: str, fingerprint: str, settings: Settings | None = None, *, overwrite: bool = False
    ) -> Iterator[bool]:
        """Enters a stage; yields False where it is complete already. `settings` go into ``config.toml``.

        Raises `ConfigError` where a costly stage holds results of other settings and `overwrite` is not set.
        """
        if self.fingerprint(name) != fingerprint:
            if self.fingerprint(name) and name in READS_IMAGES and not overwrite:
                raise ConfigError(
                    f"{self.path} holds results of stage '{name}' for other settings or inputs: "
                    "choose another folder with -o, or throw them away with --overwrite"
                )
            self._forget_from(name)
            self._mark(name, fingerprint, complete=False)
        if settings is not None:
            self._adopt(name, settings)
        if self.complete(name):
            yield False
            return
        started, clock = datetime.now(timezone.utc), time.perf_counter()
        if name in FOLDERS:
            (self.path / FOLDERS[name]).mkdir(exist_ok=True)
        yield True
        for abandoned in (
            *self.path.glob(".*.tmp"),
            *self.path.glob("*/.*.tmp"),
        ):  # by a process that was killed
            abandoned.unlink(missing_ok=True)
        self._mark(name, fingerprint, complete=True)
        self.note(stage=name, started=started.isoformat(), seconds=round(time.perf_counter() - clock, 3))

    def _adopt(self, stage: str, settings: Settings) -> None:
        # Only what this stage stands on: a later stage may still refuse its own part of `settings`.
        if self.config_path.exists():
            own = {section: getattr(settings, section) for section in SECTIONS[stage]}
            settings = replace(self.settings, seed=settings.seed, **own)
            if settings == self.settings:
                return
        self.save_settings(settings)

    def _mark(self, stage: str, fingerprint: str, *, complete: bool) -> None:
        (self.path / ".stages").mkdir(exist_ok=True)
        write_json(
            self.path / ".stages" / f"{stage}.json", {"fingerprint": fingerprint, "complete": complete}
        )

    def _forget_from(self, first: str) -> None:
        # Markers go last to first and before the files: a crash here leaves a stage that is simply not there.
        for stage in reversed(STAGES[STAGES.index(first) :]):
            (self.path / ".stages" / f"{stage}.json").unlink(missing_ok=True)
            for name in OUTPUTS.get(stage, ()):
                (self.path / name).unlink(missing_ok=True)
            if stage in FOLDERS:
                shutil.rmtree(self.path / FOLDERS[stage], ignore_errors=True)

    def save_settings(self, settings: Settings, **provenance: Any) -> None:
        """Writes ``config.toml`` with the versions that produced the results."""
        packages = ("rsprune", "numpy", "scikit-learn", "pyarrow", "pillow", "torch", "rasterio")
        versions = {}
        for name in packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        about = {"python": platform.python_version(), "machine": platform.machine(), **provenance}
        text = config.dumps(settings, provenance={**about, "versions": versions})
        write_atomic(self.config_path, lambda f: f.write(text.encode()))
        self.__dict__["settings"] = settings

    def note(self, **entry: Any) -> None:
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(entry) + "\n")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process. Raises `ConfigError` that names the holder."""
        import fcntl

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{self.path} is a file, not a folder: choose another one with -o") from None
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


def digest(*parts: Any) -> str:
    """A short stable hash of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file that is either complete or not there: temporary name, sync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_table(path: Path, table: pa.Table) -> None:
    write_atomic(path, lambda f: pq.write_table(table, f, compression="zstd"))


def write_array(path: Path, array: np.ndarray) -> None:
    write_atomic(path, lambda f: np.save(f, array, allow_pickle=False))


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, lambda f: f.write((json.dumps(value, indent=2) + "\n").encode()))
