"""What of a stage's results can stay when it is entered again, and what has to go.

Every step leaves a folder that the same command can continue from: nothing is called complete before all of it is,
and what becomes void is unmarked before it is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rsprune.errors import ConfigError
from rsprune.files import is_whole
from rsprune.layout import FOLDERS, OUTPUTS, READS_IMAGES, STAGES, Marker, digest, marker_path


def admit(folder: Path, stage: str, fingerprint: str, *, overwrite: bool = False) -> None:
    """Makes sure that the folder holds nothing of this stage or later ones for other settings.

    Raises:
        ConfigError: a costly stage does, and `overwrite` is not set.
    """
    try:
        marker = Marker.load(folder, stage)
    except ConfigError:
        if not overwrite:
            raise
        marker = None
    if marker and marker.fingerprint == fingerprint:
        return
    if not overwrite and not marker_path(folder, stage).parent.exists():
        ours = [*FOLDERS.values(), *(name for names in OUTPUTS.values() for name in names)]
        if there := [name for name in ours if os.path.lexists(folder / name)]:
            raise ConfigError(
                f"{folder} holds {there[0]} and was not made by rsprune, or lacks its .stages: choose another folder "
                "with -o, or throw that away with --overwrite"
            )
    # A command that failed before its first part, as by a mistyped path, has left nothing to protect.
    if marker and stage in READS_IMAGES and part_files(folder, stage) and not overwrite:
        raise ConfigError(
            f"{folder} holds results of stage '{stage}' for other settings: "
            "choose another folder with -o, or throw them away with --overwrite"
        )
    _forget_from(folder, stage)
    Marker(fingerprint).save(folder, stage)


def discard(folder: Path, stage: str) -> None:
    """Lets go of all that a stage has computed; its settings stay."""
    unfinish_after(folder, stage)
    replace(Marker.begun(folder, stage), complete=False, inputs="").save(folder, stage)
    _empty(folder, stage)


def prepare(folder: Path, stage: str, inputs: str, names: Sequence[str] | None) -> bool:
    """Whether there is anything to do in a stage; what cannot stay is removed.

    Parts that are not wanted any more go, as do files that are not whole and parts that failed the last time.
    All others keep their files, also where their place among the parts has changed.

    Args:
        folder: the run's.
        stage: the one that is entered.
        inputs: fingerprint of what all parts depend on besides the settings.
        names: wanted parts of a stage that reads images; None to take those that are there.
    """
    marker = Marker.begun(folder, stage)
    outputs = [folder / name for name in OUTPUTS.get(stage, ())]
    files = part_files(folder, stage)
    if stage not in READS_IMAGES:
        # A part for each of the manifest, where the stage has parts.
        wanted = [file.stem for file in part_files(folder, "scan")] if stage in FOLDERS else []
        all_there = [file.stem for file in files] == wanted
        if marker.complete and all_there and all(map(is_whole, [*outputs, *files])):
            return False
        unfinish_after(folder, stage)
        replace(marker, complete=False).save(folder, stage)
        return True

    broken = [file for file in outputs if file.exists() and not is_whole(file)]
    # An embedding space that is estimated anew is another one; the radiometry comes out as it was.
    void = marker.inputs != inputs or (broken and stage == "embed")
    redo = [f for f in files if f.stem in marker.failed or not is_whole(f)]
    in_place = names is None or [f.stem for f in files] == list(names)
    done = Marker(marker.fingerprint, inputs, digest(names), complete=True)
    if marker == done and in_place and not (void or redo or broken):
        return False

    unfinish_after(folder, stage)
    replace(marker, complete=False, inputs="" if void else inputs).save(folder, stage)
    if void:
        _empty(folder, stage)
    for file in [*redo, *broken]:
        file.unlink(missing_ok=True)
    for name in marker.failed:  # what later stages made of a failed part is void as well
        for later in READS_IMAGES[READS_IMAGES.index(stage) + 1 :]:
            part_file(folder, later, name).unlink(missing_ok=True)
    if names is not None:
        _arrange(folder, stage, names)
    replace(done, complete=False).save(folder, stage)
    return True


def part_file(folder: Path, stage: str, name: str) -> Path:
    """File of a stage's part."""
    return folder / FOLDERS[stage] / f"{name}{'.npy' if stage == 'embed' else '.parquet'}"


def part_files(folder: Path, stage: str) -> list[Path]:
    """Files of a stage's parts that are there, in the order of their images."""
    return sorted((folder / FOLDERS[stage]).glob("part-*")) if stage in FOLDERS else []


def images_of(name: str) -> str:
    """The half of a part's name that says which images it has; the other says where it stands among the parts."""
    return name.rpartition("-")[2]


def _arrange(folder: Path, stage: str, names: Sequence[str]) -> None:
    wanted = {images_of(name): name for name in names}
    files = part_files(folder, stage)
    for file in files:
        if images_of(file.stem) not in wanted:
            file.unlink()
    for file in files:
        name = wanted.get(images_of(file.stem), file.stem)
        if name != file.stem:
            file.rename(part_file(folder, stage, name))


def unfinish_after(folder: Path, stage: str) -> None:
    """Lets later stages begin again; of those that read images all parts stay that can."""
    for later in reversed(STAGES[STAGES.index(stage) + 1 :]):
        if later not in READS_IMAGES:
            _forget(folder, later)
            continue
        with contextlib.suppress(
            ConfigError
        ):  # which is for its own stage to say; until then it is not complete
            marker = Marker.load(folder, later)
            if marker and marker.complete:
                replace(marker, complete=False).save(folder, later)


def _forget_from(folder: Path, first: str) -> None:
    for stage in reversed(STAGES[STAGES.index(first) :]):
        _forget(folder, stage)


def _forget(folder: Path, stage: str) -> None:
    # The marker goes before the files: a crash here leaves a stage that is simply not there.
    marker_path(folder, stage).unlink(missing_ok=True)
    _empty(folder, stage)


def _empty(folder: Path, stage: str) -> None:
    for name in OUTPUTS.get(stage, ()):
        (folder / name).unlink(missing_ok=True)
    if stage in FOLDERS:
        _remove(folder / FOLDERS[stage])


def _remove(path: Path) -> None:
    """A folder with what is in it; where it is a link to one on another disk, that one is emptied. Raises `OSError`."""
    if not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
        return
    for entry in path.iterdir() if path.is_dir() else ():
        _remove(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
