"""Which code computed a number."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import rsprune


def code() -> dict[str, str | None]:
    """Version, and the git revision where the package is imported from a checkout of its own repository.

    A revision with "+" at its end has changes that are not committed.
    """
    here = Path(rsprune.__file__)
    revision = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        # An environment may lie inside the repository of another project, whose revision would say nothing.
        _git(here, "ls-files", "--error-unmatch", here.name)
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", ".")
        revision = _git(here, "rev-parse", "HEAD") + ("+" if changed else "")
    return {"version": rsprune.__version__, "revision": revision}


def _git(here: Path, *arguments: str) -> str:
    command = ["git", "-C", str(here.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
