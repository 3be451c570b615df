"""Everything that all runs of an experiment share, written once: pool, references, features of the pool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rsprune import config as run_config
from rsprune.config import EmbedConfig
from rsprune.encoders import LearntEncoder, load_encoder
from rsprune.experiment import faults, references
from rsprune.experiment.config import DataConfig, ExperimentConfig
from rsprune.experiment.imagery import Picture, open_picture, tile_scenes
from rsprune.experiment.references import References
from rsprune.experiment.regions import Tiles, split
from rsprune.files import write_array, write_atomic, write_json, write_table
from rsprune.layout import digest
from rsprune.run import Run
from rsprune.stages import Job, scan_images, score_images
from rsprune.stages.features import features_alone
from rsprune.stages.references import write_reference

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The folder ``data`` of an experiment."""

    path: Path

    @property
    def pool(self) -> Path:
        """Folder of the pool's images."""
        return self.path / "pool"

    @property
    def features(self) -> Path | None:
        """Raw features of the pool that selection uses, in the order of ids.

        None where the encoder learns from the pool: then each selection encodes anew, with its own seed.
        """
        path = self.path / "features.npy"
        return path if path.is_file() else None

    def labelled(self, *, encoded: bool) -> Path | None:
        """The labelled scenes that guide selection, as `features` or as images; None where nobody knows scenes."""
        path = self.path / ("labelled.parquet" if encoded else "labelled")
        return path if path.exists() else None

    @property
    def table(self) -> pa.Table:
        """Id, scene, fault and origin of each image of the pool."""
        return pq.read_table(self.path / "pool.parquet")

    def references(self) -> References:
        """The held-out sets."""
        with np.load(self.path / "references.npz", allow_pickle=False) as found:
            sets = {name[4:]: found[name] for name in found.files if name.startswith("set:")}
            return References(found["pixels"], found["cluster"], sets)

    def facts(self) -> dict[str, Any]:
        """Numbers of tiles, for the report."""
        return json.loads((self.path / "prepared.json").read_text("utf-8"))


def prepare(settings: ExperimentConfig, out: Path, *, say: Say) -> Prepared:
    """Writes what is not there yet below ``out/data``. Raises `ConfigError` where the imagery cannot be used."""
    path = out / "data"
    stamp = digest(asdict(settings.data), asdict(settings.reference), settings.selection.get("embed", {}))
    found = Prepared(path)
    if (path / "prepared.json").is_file() and found.facts()["stamp"] == stamp:
        return found
    say("cutting tiles")
    facts = _write_tiles(settings, path)
    say(f"features of {facts['pool']:,} pool tiles, for selection")
    _write_features(settings, path)
    write_json(path / "prepared.json", {"stamp": stamp, **facts})
    return found


def _write_tiles(settings: ExperimentConfig, path: Path) -> dict[str, Any]:
    data = settings.data
    for name in ("pool", "labelled"):
        shutil.rmtree(path / name, ignore_errors=True)
    pool: list[pa.Table] = []
    held_out, labelled = [], 0
    for scene in data.scenes:
        picture = open_picture(scene.path)
        regions = split(picture.pixels.shape[:2], scene, data)
        pool.append(_write_pool(picture, regions["pool"], scene.name, data, path / "pool"))
        held_out.append(regions[settings.reference.region].cut(picture.pixels, data.tile))
        # No network for metrics is trained, so the ground kept for one gives the labelled scenes.
        labelled += _write_labelled(picture, regions["metric"], scene.name, data.tile, path / "labelled")
    write_table(path / "pool.parquet", pa.concat_tables(pool).sort_by("id"))
    found = references.build(np.concatenate(held_out), settings.reference)
    arrays: dict[str, Any] = {"pixels": found.pixels, "cluster": found.cluster}
    arrays |= {f"set:{name}": rows for name, rows in found.sets.items()}
    write_atomic(path / "references.npz", lambda f: np.savez(f, **arrays))
    return {
        "pool": sum(map(len, pool)),
        "held_out": len(found.pixels),
        "labelled": labelled,
        "by_scene": {scene.name: len(part) for scene, part in zip(data.scenes, pool, strict=True)},
        "sets": {name: len(rows) for name, rows in found.sets.items()},
    }


def _write_pool(picture: Picture, at: Tiles, name: str, data: DataConfig, folder: Path) -> pa.Table:
    """Writes the pool's tiles of a picture, and returns a row for each."""
    tiles, scenes = at.cut(picture.pixels, data.tile), tile_scenes(picture, at.ys, at.xs, data.tile)
    tiles, fault, origin = faults.plant(tiles, scenes, data.faults, seed=data.seed)
    places = [f"{name}/y{y:04d}_x{x:04d}.png" for y, x in zip(at.ys, at.xs, strict=True)]
    # The name of a copy must not give it away.
    ids = [f"{name}/{i:06d}.png" for i in range(len(tiles))] if data.faults.any else places
    (folder / name).mkdir(parents=True, exist_ok=True)
    for id, tile in zip(ids, tiles, strict=True):
        Image.fromarray(tile).save(folder / id)
    known = pa.nulls(len(ids), pa.string()) if scenes is None else pa.array(scenes[origin], pa.string())
    where = [places[row] for row in origin]
    return pa.table({"id": ids, "scene": known, "fault": fault.tolist(), "origin": where})


def _write_labelled(picture: Picture, at: Tiles, name: str, side: int, folder: Path) -> int:
    """Writes tiles into class folders where their scenes are known; returns their number."""
    scenes = tile_scenes(picture, at.ys, at.xs, side)
    if scenes is None:
        return 0
    for tile, scene, y, x in zip(at.cut(picture.pixels, side), scenes, at.ys, at.xs, strict=True):
        (folder / scene).mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(folder / scene / f"{name}_y{y:04d}_x{x:04d}.png")
    return len(scenes)


def _write_features(settings: ExperimentConfig, path: Path) -> None:
    """Once for all seeds of the selection, which then are given them as a file."""
    for name in ("features.npy", "labelled.parquet"):
        (path / name).unlink(missing_ok=True)
    embed = EmbedConfig(**settings.selection.get("embed", {}))
    if isinstance(load_encoder(embed.encoder, settings.device), LearntEncoder):
        return

    def job(images: Path) -> Job:
        sources = [{"path": str(images.absolute()), "name": ""}]
        wanted = run_config.settings({"scan": {"sources": sources}, "embed": asdict(embed)})
        run = Run(path / "encode")
        run.path.mkdir(parents=True, exist_ok=True)
        return Job(run, wanted, workers=settings.workers, device=settings.device, overwrite=True)

    images = job(path / "pool")
    scan_images(images)
    score_images(images)
    write_array(path / "features.npy", features_alone(images).load())
    shutil.rmtree(images.run.path)
    if (path / "labelled").is_dir():
        encoded = path / "encoded.parquet"
        write_reference(job(path / "labelled"), encoded)
        # Runs that are given features know no encoder, so theirs must not be named here.
        write_table(path / "labelled.parquet", pq.read_table(encoded).replace_schema_metadata(None))
        encoded.unlink()
