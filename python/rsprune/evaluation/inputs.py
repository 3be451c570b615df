"""What is measured: folders of images through an extractor, or features that somebody else computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rsprune.config import ScanConfig, SourceConfig
from rsprune.encoders import Encoder, check_bands
from rsprune.errors import ConfigError, TooManyUnreadable, UnreadableImage
from rsprune.evaluation.features import as_features
from rsprune.progress import Progress
from rsprune.radiometry import Radiometry
from rsprune.sources import open_source
from rsprune.sources.base import Item

MATRICES = (".npy", ".parquet")
BATCH = 64  # images given to the extractor at once


@dataclass(frozen=True)
class Measured:
    """Features `x` [N, D] of what lies at `path`; images that could not be read are left out."""

    x: np.ndarray
    path: str
    unreadable: int = 0

    def facts(self) -> dict[str, object]:
        """What a result says of it, JSON-able; the hash is of the features."""
        found = hashlib.sha256(np.ascontiguousarray(self.x, "<f4").data).hexdigest()
        return {"path": self.path, "n": len(self.x), "unreadable": self.unreadable, "features_sha256": found}


def is_matrix(path: str | Path) -> bool:
    """Whether `path` names a feature matrix, by its extension."""
    return Path(path).suffix in MATRICES


def read_matrix(path: str | Path) -> Measured:
    """Features of a .npy file [N, D], or of the column `embedding` of a .parquet file.

    Raises:
        ConfigError: It cannot be read as that, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"there is no file {path}: give features as .npy or .parquet, or a folder of images"
        )
    try:
        x = _from_npy(path) if path.suffix == ".npy" else _from_parquet(path)
        return Measured(as_features(str(path), x, least=1), str(path))
    except ValueError as error:
        raise ConfigError(f"{error}: give a matrix of features, a row per image") from None


def _from_npy(path: Path) -> np.ndarray:
    try:
        return np.array(np.lib.format.open_memmap(path, mode="r"))  # never a pickle, never an archive
    except (ValueError, EOFError, OSError) as error:
        raise ConfigError(f"{path} is not a plain NumPy array ({error}): save it with numpy.save") from None


def _from_parquet(path: Path) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        lists = pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
        lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
        values = pc.list_flatten(lists).cast(pa.float32())
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} needs a column embedding of lists of floats ({reason}): write it"
        ) from None
    if len(lengths) != 1 or not lengths[0]:
        raise ConfigError(f"{path} needs embeddings of one length, not of {lengths}: write it again")
    return values.to_numpy(zero_copy_only=False).reshape(-1, lengths[0])


def image_features(config: SourceConfig, extractor: Encoder, *, progress: Progress, title: str) -> Measured:
    """Features of all readable images of a source.

    Raises:
        ConfigError: There is no image, or pixels are not 8-bit and no range is declared.
        TooManyUnreadable: More than 5 % of the images cannot be read.
    """
    failures: list[str] = []
    items, images = _readable(config, failures, lambda image: check_bands(extractor, {config.path: image}))
    found: list[np.ndarray] = []

    def batches() -> Iterator[int]:
        batch, n = [], 0
        for image in images:
            n += 1
            batch += [] if image is None else [image]
            if n == BATCH:
                found.append(extractor(batch))
                yield n
                batch, n = [], 0
        found.append(extractor(batch))
        yield n

    for _ in progress(batches(), title, len(items)):
        pass
    _check_readable(config, failures, len(items))
    return Measured(np.concatenate(found), config.path, len(failures))


@dataclass(frozen=True)
class Images:
    """Pixels uint8 [N, H, W, C] of what lies at `path`, and the folder that each image lies in, "" for none."""

    pixels: np.ndarray
    folders: np.ndarray
    path: str
    unreadable: int = 0

    def facts(self) -> dict[str, object]:
        """What a result says of it, JSON-able; the hash is of the pixels."""
        found = hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()
        return {
            "path": self.path,
            "n": len(self.pixels),
            "unreadable": self.unreadable,
            "pixels_sha256": found,
        }


def read_images(config: SourceConfig) -> Images:
    """All readable images of a source, which must be of one size.

    Raises:
        ConfigError: They differ in size or bands, there is none, or no range is declared.
        TooManyUnreadable: More than 5 % of the images cannot be read.
    """
    failures: list[str] = []
    items, images = _readable(config, failures, lambda bands: None)
    found = [
        (image, item.id.rpartition("/")[0])
        for item, image in zip(items, images, strict=True)
        if image is not None
    ]
    _check_readable(config, failures, len(items))
    sizes = {image.shape for image, _ in found}
    if len(sizes) != 1:
        different = " and ".join(" x ".join(map(str, size)) for size in sorted(sizes)[:2])
        raise ConfigError(f"{config.path} has images of {different}: give images of one size, or --tile")
    pixels, folders = zip(*found, strict=True)
    return Images(np.stack(pixels), np.array(folders), config.path, len(failures))


def _readable(
    config: SourceConfig, failures: list[str], check: Callable[[int], None]
) -> tuple[list[Item], Iterator[np.ndarray | None]]:
    """Items of a source, and their 8-bit pixels, None where unreadable; `check` takes numbers of bands."""
    source = open_source(config)
    items = list(source.items())

    def images() -> Iterator[np.ndarray | None]:
        checked: set[int] = set()
        for item in items:
            try:
                image = source.read(item).pixels
            except UnreadableImage as error:
                failures.append(f"{item.id} {error}")
                yield None
                continue
            if image.shape[2] not in checked:
                check(image.shape[2])
                checked.add(image.shape[2])
            yield _eight_bit(image, config, item)

    return items, images()


def _check_readable(config: SourceConfig, failures: list[str], images: int) -> None:
    if len(failures) > ScanConfig().max_bad * images:
        raise TooManyUnreadable(
            f"{len(failures)} of {images} images of {config.path} are unreadable (first: {failures[0]}): "
            "mend or remove them, because a score without them is of another set"
        )


def _eight_bit(pixels: np.ndarray, config: SourceConfig, item: Item) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if not config.scale:
        # Percentiles of each set would hide that one of them is darker.
        raise ConfigError(
            f"{item.id} in {config.path} has {pixels.dtype.name} pixels: give --scale LO,HI, "
            "which is used for all images that are not 8-bit"
        )
    return Radiometry(config.scale).bins(pixels)


def measure(
    paths: dict[str, str], like: SourceConfig, extractor: Encoder | None, *, progress: Progress
) -> dict[str, Measured]:
    """Features of each of `paths`, which are matrices if there is no extractor; `like` says how images are read."""
    if extractor is None:
        return {name: read_matrix(path) for name, path in paths.items()}
    sources = {name: replace(like, path=path) for name, path in paths.items()}
    return {
        name: image_features(source, extractor, progress=progress, title=name)
        for name, source in sources.items()
    }
