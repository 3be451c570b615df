"""Embeddings that somebody else computed: a NumPy matrix in id order, or Parquet with ids."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from rsprune.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Ids: TypeAlias = Sequence[str] | pa.ChunkedArray

ROWS = 65536  # per piece, so that a file larger than memory can be checked


def load_embeddings(
    path: str | os.PathLike[str], ids: Ids, *, needed: np.ndarray | None = None
) -> np.ndarray:
    """Embeddings [n, D] of the images with these n ids, in their order.

    Args:
        path: `.npy` with one row [D] per id in the order of `ids` (returned as a read-only memory map, in its
            own float type), or `.parquet` with the columns `id` and `embedding` (a list of D numbers) in any
            order and with any further ids (returned as float32).
        ids: The images, each id once; a list or an Arrow column.
        needed: bool [n], the images that must have an embedding (all, if None); the others may be missing or
            NaN in the file, and are then NaN.

    Raises:
        ConfigError: If the file cannot be read as that, lacks images, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: give --embeddings a .npy or .parquet file")
    if path.suffix not in (".npy", ".parquet"):
        raise ConfigError(f"{path} is neither .npy nor .parquet: give --embeddings one of the two")
    needed = np.ones(len(ids), bool) if needed is None else np.asarray(needed, bool)
    x = _from_npy(path, len(ids)) if path.suffix == ".npy" else _from_parquet(path, ids, needed)
    for start in range(0, len(x), ROWS):
        part = slice(start, start + ROWS)
        bad = start + np.flatnonzero(needed[part] & ~np.isfinite(x[part]).all(axis=1))
        if len(bad):
            raise ConfigError(
                f"{path} has NaN or infinity in the embedding of {str(ids[bad[0]])!r}: compute it again"
            )
    return x


def _from_npy(path: Path, n: int) -> np.ndarray:
    try:
        x = np.lib.format.open_memmap(path, mode="r")  # never a pickle, never an archive
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{path} is not a plain NumPy array ({error}): save it with numpy.save") from None
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind != "f":
        raise ConfigError(f"{path} must be a float array [N, D], it is {x.dtype} {list(x.shape)}: convert it")
    if len(x) != n:
        raise ConfigError(
            f"{path} has {len(x):,} rows but the run has {n:,} images: give one row per image "
            "in the order of their ids, or a .parquet file with the columns id and embedding"
        )
    return x


def _from_parquet(path: Path, ids: Ids, needed: np.ndarray) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(ids, pa.ChunkedArray):
        wanted = ids.cast(pa.large_string()).combine_chunks()
    else:
        wanted = pa.array(ids, pa.large_string())
    with _open(path) as file:
        # All ids at once: finding those of each piece anew would look through all ids for each piece.
        keys = file.read(["id"])["id"].cast(pa.large_string())
        rows = pc.fill_null(pc.index_in(keys, value_set=wanted), -1).to_numpy()
        count = np.bincount(rows[rows >= 0], minlength=len(ids))
        if (count > 1).any():
            raise ConfigError(
                f"{path} has more than one row for the id {str(ids[int(count.argmax())])!r}: keep one"
            )
        missing = np.flatnonzero(needed & (count == 0))
        if len(missing):
            raise ConfigError(
                f"{path} lacks {len(missing):,} of {needed.sum():,} images, for example {str(ids[missing[0]])!r}: "
                "its column id must hold the ids of the manifest"
            )
        out, start = None, 0
        for x in _pieces(path, file):
            if out is None:
                out = np.full((len(ids), x.shape[1]), np.nan, np.float32)
            elif x.shape[1] != out.shape[1]:
                raise ConfigError(
                    f"{path} has embeddings of {out.shape[1]} and of {x.shape[1]} numbers: they must agree"
                )
            to = rows[start : start + len(x)]
            out[to[to >= 0]] = x[to >= 0]
            start += len(x)
    if out is None:
        raise ConfigError(f"{path} has no rows: give one per image")
    return out


def _open(path: Path) -> pq.ParquetFile:
    """The file, which has ids and embeddings. Raises `ConfigError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is not a Parquet file ({error}): write it again") from None
    schema = file.schema_arrow
    if not {"id", "embedding"} <= set(schema.names):
        raise ConfigError(
            f"{path} needs the columns id and embedding, it has {', '.join(schema.names)}: rename them"
        )
    kind = schema.field("embedding").type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise ConfigError(
            f"{path}: the column embedding must hold lists of floats, it holds {kind}: convert it"
        )
    return file


def _pieces(path: Path, file: pq.ParquetFile) -> Iterator[np.ndarray]:
    """Embeddings [n, D], piece by piece. Raises `ConfigError`."""
    for batch in file.iter_batches(ROWS, columns=["embedding"]):
        lists = batch.column("embedding")
        dim = _common_length(path, lists)
        values = lists.flatten().to_numpy(zero_copy_only=False)
        if len(values) != len(lists) * dim or lists.null_count or dim == 0:
            raise ConfigError(f"{path} has rows without an embedding: leave them out")
        yield values.reshape(-1, dim)


def _common_length(path: Path, lists: pa.Array) -> int:
    import pyarrow.compute as pc

    lengths = pc.min_max(pc.list_value_length(lists)).as_py()
    if lengths["min"] != lengths["max"]:
        raise ConfigError(
            f"{path} has embeddings of {lengths['min']} and of {lengths['max']} numbers: they must agree"
        )
    return lengths["max"] or 0
