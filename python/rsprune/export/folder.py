"""The folder of an export: it only ever holds that export, and every file in it is complete."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from rsprune.errors import ConfigError
from rsprune.files import make_folder, write_json

MARKER = ".rsprune-export.json"


class Folder:
    """A folder that only ever holds one export; a marker in it lists the files."""

    def __init__(self, path: Path):
        self.path = path
        self._noted: set[str] = set()
        make_folder(path)
        marker = path / MARKER
        if marker.is_file() and not marker.is_symlink():
            try:
                self._noted = {str(name) for name in json.loads(marker.read_text("utf-8"))["files"]}
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{marker} is damaged: choose another folder with -o, or delete this one"
                ) from None
        elif any(path.iterdir()):
            raise ConfigError(
                f"{path} holds files that no export wrote: choose an empty or a new folder with -o"
            )

    def begin(self, names: Iterable[str]) -> None:
        """Notes what may be written, so that an export that is interrupted can be repeated."""
        self._note({*self._noted, *names})

    def finish(self, names: Iterable[str]) -> None:
        """Removes files of an earlier export that are not among `names`."""
        names = set(names)
        for name in sorted(self._noted - names):
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or not parts:
                continue
            if all(not p.is_symlink() and p.is_dir() for p in self._parents(name)):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    (self.path / name).unlink()
                with contextlib.suppress(OSError):  # not empty
                    for parent in reversed(self._parents(name)):
                        parent.rmdir()
        self._note(names)

    def place(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file that is either complete or not there; an earlier file or link is replaced."""
        folder = self.path
        for folder in self._parents(name):
            if folder.is_symlink():
                raise ConfigError(f"{folder} is a link, and exports do not follow links: delete it")
            folder.mkdir(exist_ok=True)
        # Short: the name itself may be as long as names can be.
        temporary = folder / f".rsprune-{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            write(temporary)
            temporary.replace(self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _parents(self, name: str) -> list[Path]:
        """Folders between the export's own and the file, outermost first."""
        return [self.path / parent for parent in reversed(PurePosixPath(name).parents)][1:]

    def _note(self, names: set[str]) -> None:
        self._noted = names
        write_json(self.path / MARKER, {"written_by": "rsprune export", "files": sorted(names)})


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Says where, when the file system refuses something. Raises `ConfigError`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror or error}") from error
