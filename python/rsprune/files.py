"""Files of a run folder: written whole or not at all, and looked at before they are trusted again."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rsprune.errors import ConfigError

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems that cannot sync a folder


def make_folder(path: Path) -> None:
    """Makes a folder that a command was told to write to. Raises `ConfigError` where there can be none."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path} is a file, not a folder: choose another one with -o") from None
    except OSError as e:
        raise ConfigError(
            f"cannot make the folder {path} ({e.strerror}): choose another one with -o"
        ) from None


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file that is either complete or not there: temporary name, sync, rename, sync of the folder."""
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
    sync(path.parent)


class staged(contextlib.AbstractContextManager[Path, None]):
    """A temporary folder that becomes `target` when all in it is written, and vanishes otherwise."""

    def __init__(self, target: Path):
        self.target = target
        self.folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self.folder

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            for path in self.folder.rglob("*"):
                sync(path)
            # The old one is out of the way for an instant only, and under a name that is cleaned up.
            old = self.target.with_name(f".{self.target.name}.{os.getpid()}.old.tmp")
            if self.target.exists():
                self.target.rename(old)
            self.folder.rename(self.target)
            sync(self.target.parent)
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, last: after a power cut a renamed file could have its old name again."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_table(path: Path, table: pa.Table) -> None:
    write_atomic(path, lambda f: pq.write_table(table, f, compression="zstd"))


def write_array(path: Path, array: np.ndarray) -> None:
    write_atomic(path, lambda f: np.save(f, array, allow_pickle=False))


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, lambda f: f.write((json.dumps(value, indent=2) + "\n").encode()))


def is_whole(path: Path) -> bool:
    """Whether a file that was written whole still is: its header, footer and size fit; no data are read."""
    try:
        if path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".npy":
            np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".safetensors":
            return _is_whole_safetensors(path)
        else:
            return path.is_file()
    except (OSError, ValueError, EOFError, pa.ArrowException):
        return False
    return True


def _is_whole_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except SafetensorError:
        return False
