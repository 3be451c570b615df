"""Where things lie in a run folder, and the markers that say what the results of a stage stand on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsprune.errors import ConfigError
from rsprune.files import write_json

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
FORMAT = 2  # of the folder; it changes with the columns of the parts, and another one is refused


@dataclass(frozen=True)
class Marker:
    """What the results of a stage stand on, as it is kept in ``.stages/NAME.json``.

    `fingerprint` is of the settings, `inputs` of what else all parts depend on, `parts` of the names of the parts.
    `failed` has the parts that could not be computed, with the reason; their images count as unreadable.
    """

    fingerprint: str
    inputs: str = ""
    parts: str = ""
    complete: bool = False
    failed: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def load(cls, folder: Path, stage: str) -> Marker | None:
        """The marker of a stage, None where it has not begun.

        Raises:
            ConfigError: it is damaged, or another version wrote it.
        """
        path = marker_path(folder, stage)
        try:
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise damaged(path) from None
        if not isinstance(values, dict) or "fingerprint" not in values:
            raise damaged(path)
        if values.get("format") == FORMAT:
            with contextlib.suppress(TypeError):
                return cls(**values)
        raise ConfigError(
            f"{folder} was written by another version of rsprune: use that version, choose another folder "
            "with -o, or throw its results away with --overwrite"
        )

    @classmethod
    def begun(cls, folder: Path, stage: str) -> Marker:
        """The marker of a stage that has begun. Raises `ConfigError` as `load` does, and where it has not."""
        marker = cls.load(folder, stage)
        if marker is None:
            raise ConfigError(f"{folder} has no stage '{stage}' yet: run 'rsprune {stage}' first")
        return marker

    def save(self, folder: Path, stage: str) -> None:
        """Puts the marker in the place of the last one."""
        path = marker_path(folder, stage)
        path.parent.mkdir(exist_ok=True)
        write_json(path, asdict(self))


def marker_path(folder: Path, stage: str) -> Path:
    """Where the marker of a stage lies."""
    return folder / ".stages" / f"{stage}.json"


def damaged(path: Path) -> ConfigError:
    """The error about a file that nobody but a failing disk or an editor can have left like that."""
    return ConfigError(
        f"{path} is damaged: run again into another folder with -o, or make its results anew with --overwrite"
    )


def digest(*parts: Any) -> str:
    """A short stable hash of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
