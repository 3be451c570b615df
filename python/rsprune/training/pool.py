"""All training images in memory: 8 bits, one size, in the order of their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.config import SourceConfig, absolute
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.radiometry import Radiometry, estimate
from rsprune.reading import COLUMNS, Reader, rows
from rsprune.run import Run, digest
from rsprune.training.config import TrainConfig

Image = tuple[str, Callable[[], np.ndarray]]  # id, and how to read [H, W, C] uint8
SCALE_SAMPLE = 256  # images that the range of values of a folder of 16-bit images is estimated on


@dataclass(frozen=True)
class Pool:
    """Images `pixels` [N, H, W, C] uint8 with their `ids`, sorted; labels index `names`, -1 where unknown."""

    ids: list[str]
    pixels: np.ndarray
    labels: np.ndarray | None  # [N] int64
    names: tuple[str, ...]  # of the condition's values
    weights: np.ndarray | None  # [N] float64
    facts: dict[str, Any]  # for the model card

    @property
    def digest(self) -> str:
        """Hash of what the images are and what is drawn with which weight."""
        import xxhash

        extra = [a for a in (self.labels, self.weights) if a is not None]
        content = [xxhash.xxh3_128_hexdigest(np.ascontiguousarray(a)) for a in (self.pixels, *extra)]
        return digest(self.ids, self.pixels.shape, content, self.names)


def load(settings: TrainConfig, *, say: Callable[[str], None] = lambda _: None) -> Pool:
    """The images that `settings` ask for, from a run folder or from an image collection.

    Raises:
        ConfigError: Nothing is there, ids are missing, or sizes or band counts differ.
    """
    path = Path(settings.data)
    run = Run.open(path) if (path / "manifest").is_dir() else None
    wanted = _wanted(settings, run)
    images = _of_run(run, wanted) if run else _of_folder(path, wanted, say)
    ids, pixels = _read(images, settings, say)
    groups = {name: _groups(name, ids, run) for name in _needed(settings)}
    names, labels = (), None
    if settings.condition != "none":
        group = groups[settings.condition]
        names = tuple(sorted(set(group) - {""}, key=lambda g: (len(g), g) if g.isdigit() else (0, g)))
        number = {name: i for i, name in enumerate(names)}
        labels = np.array([number.get(g, -1) for g in group], dtype=np.int64)
        if not names:
            raise ConfigError(f"no image has a {settings.condition}: train with --condition none")
    facts = {
        "data": path.name,
        "images": len(ids),
        "selected": "kept ids of a run" if run and settings.kept is None else settings.kept or "all images",
        "ids_hash": digest(ids),
    }
    return Pool(ids, pixels, labels, names, _weights(settings.sample_weights, ids, groups), facts)


# Which images ---------------------------------------------------------------------------------------------


def _wanted(settings: TrainConfig, run: Run | None) -> list[str] | None:
    """Ids to train on; None is all."""
    if settings.kept == "all" or (settings.kept is None and run is None):
        return None
    if settings.kept is None:
        return run.kept_ids
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


def _check_all_there(wanted: Sequence[str] | None, there: Iterable[str], data: Path) -> None:
    if wanted is None:
        return
    if not wanted:
        raise ConfigError("the list of kept ids is empty: nothing to train on")
    known = set(there)
    missing = [id for id in wanted if id not in known]
    if missing:
        raise ConfigError(
            f"{len(missing):,} of {len(wanted):,} kept ids are not in {data}, such as {missing[0]!r}: "
            "give the data that the list was made from"
        )


def _of_run(run: Run, wanted: list[str] | None) -> Iterator[Image]:
    table = run.table("scan", COLUMNS)
    _check_all_there(wanted, table["id"].to_pylist(), run.path)
    chosen, reader = None if wanted is None else set(wanted), Reader(run)
    for row in rows(table):
        if row["id"] in chosen if chosen is not None else row["status"] == "ok":
            yield row["id"], lambda row=row: reader.uint8(row)


def _of_folder(path: Path, wanted: list[str] | None, say: Callable[[str], None]) -> Iterator[Image]:
    from rsprune.sources import open_source

    source = open_source(SourceConfig(path=absolute(str(path))))
    items = list(source.items())
    _check_all_there(wanted, (item.id for item in items), path)
    if wanted is not None:
        chosen = set(wanted)
        items = [item for item in items if item.id in chosen]
    scale: list[Radiometry] = []

    def read(item: Any) -> np.ndarray:
        image = source.read(item)
        if image.pixels.dtype == np.uint8:
            return image.pixels
        if not scale:
            step = max(1, len(items) // SCALE_SAMPLE)
            scale.append(estimate(source.read(i) for i in items[::step]))
            say("values are not 8-bit: their range is estimated; declare one with 'rsprune run --scale'")
        return scale[0].to_uint8(image)

    for item in items:
        yield item.id, lambda item=item: read(item)


# Pixels ---------------------------------------------------------------------------------------------------


def _read(
    images: Iterator[Image], settings: TrainConfig, say: Callable[[str], None]
) -> tuple[list[str], np.ndarray]:
    ids: list[str] = []
    stack: list[np.ndarray] = []
    unreadable: list[str] = []
    for id, read in images:
        try:
            pixels = read()
        except UnreadableImage as error:
            if settings.kept != "all" and settings.kept is not None:
                raise ConfigError(f"kept image {id!r} {error}: take it off the list") from None
            unreadable.append(id)
            continue
        if settings.fit == "resize" and settings.resolution:
            pixels = resized(pixels, settings.resolution)
        _check_like(stack, ids, id, pixels, settings)
        ids.append(id)
        stack.append(pixels)
    if unreadable:
        say(f"{len(unreadable):,} images cannot be read and are left out, such as {unreadable[0]!r}")
    if not ids:
        raise ConfigError(f"no image of {settings.data} can be read: nothing to train on")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return [ids[i] for i in order], np.stack([stack[i] for i in order])


def _check_like(
    stack: list[np.ndarray], ids: list[str], id: str, pixels: np.ndarray, settings: TrainConfig
) -> None:
    h, w, bands = pixels.shape
    if stack and stack[0].shape[2] != bands:
        raise ConfigError(
            f"image {id!r} has {bands} bands where {ids[0]!r} has {stack[0].shape[2]}: "
            "choose the same bands of all with 'rsprune run --bands'"
        )
    if stack and stack[0].shape != pixels.shape:
        first = stack[0].shape
        raise ConfigError(
            f"image {id!r} has {w} x {h} pixels where {ids[0]!r} has {first[1]} x {first[0]}: "
            "bring all to one size with --fit resize --resolution PIXELS"
        )
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
    """The largest square in the middle of `pixels` [H, W, C] uint8, scaled to `side` with antialiasing."""
    import torch
    from torch.nn.functional import interpolate

    h, w, _ = pixels.shape
    short = min(h, w)
    y, x = (h - short) // 2, (w - short) // 2
    square = np.ascontiguousarray(pixels[y : y + short, x : x + short].transpose(2, 0, 1))
    out = interpolate(
        torch.from_numpy(square).float()[None],
        (side, side),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    return out[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


# Scenes, clusters, weights --------------------------------------------------------------------------------


def _needed(settings: TrainConfig) -> set[str]:
    return {settings.condition, settings.sample_weights} & {"scene", "cluster"}


def _groups(name: str, ids: list[str], run: Run | None) -> list[str]:
    """Scene or cluster of each image, "" where it has none; the scene of a plain folder is its folder."""
    if run is None:
        if name == "cluster":
            raise ConfigError("a plain image folder has no clusters: give a run folder, or use scene")
        return [id.split("/")[0] if "/" in id else "" for id in ids]
    table = run.table("cluster", ["id", name])
    of = dict(zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True))
    values = (of.get(id) for id in ids)
    return ["" if v is None or v == -1 else str(v) for v in values]


def _weights(wish: str | None, ids: list[str], groups: dict[str, list[str]]) -> np.ndarray | None:
    """Weights [N] with which images are drawn, of sum 1; None where all are drawn alike."""
    if wish is None:
        return None
    if wish in ("scene", "cluster"):
        # Images that belong nowhere are a group of their own.
        _, index, counts = np.unique(groups[wish], return_inverse=True, return_counts=True)
        weights = 1.0 / counts[index]
        return weights / weights.sum()
    of = _weight_file(wish)
    missing = [id for id in ids if id not in of]
    if missing:
        raise ConfigError(
            f"{wish} has no weight for {len(missing):,} images, such as {missing[0]!r}: add them"
        )
    weights = np.array([of[id] for id in ids], dtype=np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError(f"weights in {wish} must be finite, not below 0 and not all 0")
    return weights / weights.sum()


def _weight_file(path: str) -> dict[str, float]:
    try:
        if path.endswith(".parquet"):
            import pyarrow.parquet as pq

            table = pq.read_table(path, columns=["id", "weight"]).to_pydict()
            return dict(zip(table["id"], table["weight"], strict=True))
        lines = [line.rsplit("\t", 1) for line in Path(path).read_text("utf-8").splitlines() if line]
        return {id: float(weight) for id, weight in lines}
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or "needs columns id and weight"
        raise ConfigError(
            f"cannot read --sample-weights {path}: {why}; give scene, cluster, .parquet, or lines 'id TAB weight'"
        ) from None
