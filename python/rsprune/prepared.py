"""Labelled features in a Parquet file, and what is known of where a reference comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune.errors import ConfigError
from rsprune.files import write_table

NOT_STATED = "not stated"
_KEY = b"rsprune.reference"
_LICENCE_FILES = ("license", "licence", "copying")
_DESCRIPTION = "reference.toml"


@dataclass(frozen=True)
class LabelledFeatures:
    """Raw features float32 [M, D] and a class name, or None, for each; `encoder` is None where not recorded."""

    features: np.ndarray
    labels: list[str | None]
    encoder: str | None
    weight_hash: str


def describe_folder(folder: Path) -> dict[str, str]:
    """Name, licence and address of a reference, as its ``reference.toml`` or a licence file states them.

    Nothing is guessed: without either, the licence is "not stated"; of a licence file the first line is quoted.

    Raises:
        ConfigError: ``reference.toml`` cannot be used.
    """
    about = {"licence": NOT_STATED}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.lower().partition(".")[0] in _LICENCE_FILES:
            lines = (line.strip(" #*\t") for line in file.read_text("utf-8", "replace").splitlines())
            about = {"licence": next(filter(None, lines), NOT_STATED)[:120], "licence_file": file.name}
            break
    return {**about, **_stated(folder / _DESCRIPTION)}


def _stated(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not valid TOML: {e}") from None
    if "license" in values:
        values.setdefault("licence", values.pop("license"))
    unusable = [k for k, v in values.items() if k not in ("name", "licence", "url") or not isinstance(v, str)]
    if unusable:
        raise ConfigError(
            f"{path} may hold the texts name, licence and url, not {unusable[0]} = {values[unusable[0]]!r}"
        )
    return values


def write_prepared(
    path: Path, ids: Sequence[str], features: np.ndarray, labels: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Writes ids, raw features [M, D] and class names; `about` holds encoder, weight_hash and provenance."""
    x = np.ascontiguousarray(features, np.float32)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    table = pa.table({"id": pa.array(ids), "embedding": embedding, "label": pa.array(labels)})
    write_table(path, table.replace_schema_metadata({_KEY: json.dumps(about, sort_keys=True).encode()}))


def describe_file(path: Path) -> dict[str, Any]:
    """What `write_prepared` was told; of a file of other origin, its licence if the metadata states one.

    Raises:
        ConfigError: The file is not Parquet.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        if _KEY in metadata:
            return {"licence": NOT_STATED, **json.loads(metadata[_KEY])}
    except (pa.ArrowException, OSError, ValueError) as e:
        raise ConfigError(f"reference {path} is not a Parquet file: {str(e).splitlines()[0]}") from None
    stated = metadata.get(b"licence") or metadata.get(b"license")
    return {"licence": stated.decode("utf-8", "replace") if stated else NOT_STATED}


def read_labelled(path: Path) -> tuple[np.ndarray, list[str | None]]:
    """Features float64 [M, D] and class names of the columns `embedding` and `label`.

    Raises:
        ConfigError: The columns are missing, or the embeddings are of several lengths.
    """
    try:
        table = pq.read_table(path, columns=["embedding", "label"])
        lists, labels = table["embedding"].combine_chunks(), table["label"]
        lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
        values = pc.list_flatten(lists).cast(pa.float64())
        names = labels.cast(pa.string()).to_pylist()
    except (pa.ArrowException, OSError) as e:
        raise ConfigError(
            f"reference {path} needs the columns embedding and label: {str(e).splitlines()[0]}"
        ) from None
    if len(lengths) != 1 or not lengths[0]:
        raise ConfigError(f"reference {path} needs embeddings of one length, not of {lengths}")
    return values.to_numpy(zero_copy_only=False).reshape(-1, lengths[0]), names
