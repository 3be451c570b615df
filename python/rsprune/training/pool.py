"""All training images in memory: one size, 8 or 16 bits, in the order of their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.layout import digest
from rsprune.locations import absolute
from rsprune.radiometry import Radiometry, estimate
from rsprune.reading import COLUMNS, Reader, rows
from rsprune.run import Run
from rsprune.sources import open_source
from rsprune.sources.base import Item
from rsprune.training import groups
from rsprune.training.config import TrainConfig

SCALE_SAMPLE = 256  # images that the range of values of a folder of 16-bit images is estimated on


@dataclass(frozen=True)
class Pool:
    """Images `pixels` [N, H, W, C] with their `ids`, sorted; labels index `names`, -1 where unknown.

    Pixels are uint8 or uint16 of the whole range; a training on latents has float32 in their place.
    """

    ids: list[str]
    pixels: np.ndarray
    labels: np.ndarray | None  # [N] int64
    names: tuple[str, ...]  # of the condition's values
    weights: np.ndarray | None  # [N] float64
    facts: dict[str, Any]  # for the model card

    @property
    def digest(self) -> str:
        """Hash of what the images are and what is drawn with which weight."""
        extra = [a for a in (self.labels, self.weights) if a is not None]
        content = [xxhash.xxh3_128_hexdigest(np.ascontiguousarray(a).data) for a in (self.pixels, *extra)]
        return digest(self.ids, self.pixels.shape, content, self.names)


@dataclass(frozen=True)
class _Listed:
    """Images that can be read: ids in order, and how to read number i as [H, W, C] uint8 or uint16."""

    ids: list[str]
    read: Callable[[int], np.ndarray]
    scales: list[dict[str, Any]]  # LO, HI of the sources, for the model card


def load(
    settings: TrainConfig,
    *,
    radiometry: Radiometry | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Pool:
    """The images that `settings` ask for, from a run folder or from an image collection.

    Args:
        settings: Of the training.
        radiometry: Of a collection whose images are not 8-bit; estimated where not given. A run has its own.
        say: Takes notices.

    Raises:
        ConfigError: Nothing is there, ids are missing, sizes or band counts differ, or memory is too small.
    """
    path = Path(settings.data)
    run = Run.open(path) if (path / "manifest").is_dir() else None
    wanted = _wanted(settings, run)
    listed = _of_run(run, wanted, settings) if run else _of_collection(wanted, settings, radiometry, say)
    ids, pixels = _read(listed, settings, say)
    found = {name: groups.groups(name, ids, run) for name in groups.needed(settings)}
    names: tuple[str, ...] = ()
    labels = None
    if settings.condition != "none":
        names, labels = groups.numbered(found[settings.condition])
        if not names:
            raise ConfigError(f"no image has a {settings.condition}: train with --condition none")
    facts = {
        "data": path.name,
        "images": len(ids),
        "selected": "kept ids of a run" if run and settings.kept is None else settings.kept or "all images",
        "ids_hash": digest(ids),
        "scales": listed.scales,
    }
    return Pool(ids, pixels, labels, names, groups.weights(settings.sample_weights, ids, found), facts)


# Which images ---------------------------------------------------------------------------------------------


def _wanted(settings: TrainConfig, run: Run | None) -> list[str] | None:
    """Ids to train on; None is all."""
    if settings.kept == "all":
        return None
    if settings.kept is None:
        return None if run is None else run.kept_ids
    path = Path(settings.kept)
    if path.is_dir():
        return Run.open(path).kept_ids
    try:
        ids = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "is not a text of ids"
        raise ConfigError(
            f"cannot read --kept {settings.kept}: {why}; give a list of ids, a run folder, or all"
        ) from None
    return [line for line in ids if line]


def _check_all_there(wanted: Sequence[str], there: Iterable[str], data: str | Path) -> None:
    if not wanted:
        raise ConfigError("the list of kept ids is empty: nothing to train on")
    known = set(there)
    missing = [id for id in wanted if id not in known]
    if missing:
        raise ConfigError(
            f"{len(missing):,} of {len(wanted):,} kept ids are not in {data}, such as {missing[0]!r}: "
            "give the data that the list was made from"
        )


def _of_run(run: Run, wanted: list[str] | None, settings: TrainConfig) -> _Listed:
    table = run.table("scan", COLUMNS)
    if wanted is not None:
        _check_all_there(wanted, table["id"].to_pylist(), run.path)
    if wanted is None:
        table = table.filter(pc.equal(table["status"], "ok"))
    else:
        table = table.filter(pc.is_in(table["id"], pa.array(wanted, pa.string())))
    reader = Reader(run)
    found = sorted(rows(table), key=lambda row: row["id"])
    sources = sorted({row["source"] for row in found})
    bits = settings.bits or _bits(reader.declared[s]["dtype"] for s in sources)

    def read(i: int) -> np.ndarray:
        row = found[i]
        return reader.radiometry[row["source"]].bins(reader.image(row).pixels, bits=bits)

    named = run.settings.scan.sources
    scales = [{"name": named[s].name, **reader.radiometry[s].to_json()} for s in sources]
    return _Listed([row["id"] for row in found], read, scales)


def _of_collection(
    wanted: list[str] | None,
    settings: TrainConfig,
    given: Radiometry | None,
    say: Callable[[str], None],
) -> _Listed:
    source = open_source(SourceConfig(path=absolute(settings.data)))
    everything = items = list(source.items())
    if wanted is not None:
        _check_all_there(wanted, (item.id for item in items), settings.data)
        chosen = set(wanted)
        items = [item for item in items if item.id in chosen]
    dtype = _dtype(items, source)
    bits = settings.bits or _bits([dtype])
    radiometry = Radiometry.declare(dtype) or given
    if radiometry is None:
        # On all that is there, whatever is kept of it: the same image has the same pixels in every selection.
        step = max(1, len(everything) // SCALE_SAMPLE)
        radiometry = estimate(image for item in everything[::step] if (image := _readable(source, item)))
        say("values are not 8-bit: their range is estimated; declare one with 'rsprune run --scale'")

    def read(i: int) -> np.ndarray:
        pixels = source.read(items[i]).pixels
        if pixels.dtype != dtype:
            raise ConfigError(
                f"image {items[i].id!r} is {pixels.dtype.name} where others are {dtype}: "
                "make a run with a source for each of the two"
            )
        return radiometry.bins(pixels, bits=bits)

    return _Listed([item.id for item in items], read, [{"name": "", **radiometry.to_json()}])


def _bits(dtypes: Iterable[str]) -> int:
    return 8 if "uint8" in set(dtypes) else 16


def _dtype(items: Sequence[Item], source: Any) -> str:
    """That of the first readable image."""
    return next((image.pixels.dtype.name for item in items if (image := _readable(source, item))), "uint8")


def _readable(source: Any, item: Item) -> Any:
    try:
        return source.read(item)
    except UnreadableImage:
        return None


# Pixels ---------------------------------------------------------------------------------------------------


def _read(listed: _Listed, settings: TrainConfig, say: Callable[[str], None]) -> tuple[list[str], np.ndarray]:
    ids: list[str] = []
    stack: np.ndarray | None = None
    unreadable: list[str] = []
    for i, id in enumerate(listed.ids):
        try:
            pixels = listed.read(i)
        except UnreadableImage as error:
            if settings.kept != "all" and settings.kept is not None:
                raise ConfigError(f"kept image {id!r} {error}: take it off the list") from None
            unreadable.append(id)
            continue
        if settings.fit == "resize" and settings.resolution:
            pixels = resized(pixels, settings.resolution)
        if stack is None:
            _check_size(id, pixels, settings)
            _check_memory(len(listed.ids), pixels)
            stack = np.empty((len(listed.ids), *pixels.shape), pixels.dtype)
        _check_like(stack.shape[1:], ids, id, pixels)
        stack[len(ids)] = pixels
        ids.append(id)
    if unreadable:
        say(f"{len(unreadable):,} images cannot be read and are left out, such as {unreadable[0]!r}")
    if stack is None:
        raise ConfigError(f"no image of {settings.data} can be read: nothing to train on")
    return ids, stack[: len(ids)]


def _check_memory(count: int, pixels: np.ndarray) -> None:
    need, free = count * pixels.nbytes, psutil.virtual_memory().available
    if need > free:
        raise ConfigError(
            f"{count:,} images of {pixels.shape[1]} x {pixels.shape[0]} pixels need {need / 2**30:,.1f} GiB of "
            f"memory, of which {free / 2**30:,.1f} are free: give --fit resize with a lower --resolution, "
            "--bits 8, or keep fewer"
        )


def _check_like(shape: tuple[int, ...], ids: Sequence[str], id: str, pixels: np.ndarray) -> None:
    h, w, bands = pixels.shape
    if shape[2] != bands:
        raise ConfigError(
            f"image {id!r} has {bands} bands where {ids[0]!r} has {shape[2]}: "
            "choose the same bands of all with 'rsprune run --bands'"
        )
    if shape != pixels.shape:
        raise ConfigError(
            f"image {id!r} has {w} x {h} pixels where {ids[0]!r} has {shape[1]} x {shape[0]}: "
            "bring all to one size with --fit resize --resolution PIXELS"
        )


def _check_size(id: str, pixels: np.ndarray, settings: TrainConfig) -> None:
    h, w, _ = pixels.shape
    side = settings.resolution or w
    if h < side or w < side or (settings.resolution is None and h != w):
        wish = f"--resolution {min(h, w)}" if h != w or h < side else "--fit resize"
        raise ConfigError(f"image {id!r} has {w} x {h} pixels, too few for {side} x {side}: give {wish}")
    if side % settings.pixel_unshuffle:
        raise ConfigError(
            f"images of {side} pixels do not divide by --pixel-unshuffle {settings.pixel_unshuffle}: "
            "give a --resolution that does"
        )


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """The largest square in the middle of `pixels` [H, W, C], scaled to `side` with antialiasing."""
    import torch
    from torch.nn.functional import interpolate

    h, w, _ = pixels.shape
    short = min(h, w)
    y, x = (h - short) // 2, (w - short) // 2
    square = np.ascontiguousarray(pixels[y : y + short, x : x + short].transpose(2, 0, 1), np.float32)
    out = interpolate(
        torch.from_numpy(square)[None], (side, side), mode="bicubic", antialias=True, align_corners=False
    )
    values = out[0].round().clamp(0, np.iinfo(pixels.dtype).max).permute(1, 2, 0).numpy()
    return values.astype(pixels.dtype)
