"""What the arms' models are worth as a start: each is fine-tuned alike, on the same tiles, beside fresh weights.

Tiles to train on are those of the ground kept for metrics, which no arm has seen; tiles to measure on are the
reference's. Layouts are those of Blue Marble: sea, land by height, ice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from rsprune.errors import ConfigError
from rsprune.experiment import earlier
from rsprune.experiment.config import WITH_LAYOUT, DownstreamConfig, ExperimentConfig
from rsprune.experiment.imagery import open_picture
from rsprune.experiment.regions import Tiles, split
from rsprune.files import staged, write_json
from rsprune.finetuning.config import SemanticConfig, SuperResolutionConfig

SCRATCH = "from scratch"
TRAIN = "metric"  # the region


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning of the model in the folder `foundation`, in a folder of its own."""

    task: DownstreamConfig
    arm: str
    seed: int
    folder: Path
    foundation: Path

    module: ClassVar[str] = "rsprune.experiment.tune"

    @property
    def label(self) -> str:
        return f"{self.task.label} of {self.arm}"

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()


def check_weights(settings: ExperimentConfig) -> None:
    """Raises `ConfigError` where weights are not there that fine-tunings will be measured with hours later."""
    from rsprune.evaluation.extractors import load_extractor
    from rsprune.evaluation.lpips import Lpips

    archive = Path(settings.measure.weights) if settings.measure.weights else None
    for task in settings.downstream:
        measured = task.checked()
        if isinstance(measured, SuperResolutionConfig) and measured.lpips:
            Lpips(weights=archive, device="cpu")
        if isinstance(measured, SemanticConfig) and measured.kd:
            load_extractor("alexnet", weights=archive, device="cpu")


def planned(settings: ExperimentConfig, out: Path) -> list[Tuning]:
    """All fine-tunings of an experiment, seed by seed."""
    found = []
    for seed in settings.seeds:
        for task in settings.downstream:
            arms = [arm for arm in settings.arms if not task.arms or arm.label in task.arms]
            starts = [(arm.label, arm.slug, arm) for arm in arms]
            if task.from_scratch:  # with the network of whatever arm comes first
                starts.append((SCRATCH, "from-scratch", arms[0]))
            for label, slug, arm in starts:
                folder = out / "downstream" / f"{task.slug}-{slug}-{seed}"
                found.append(Tuning(task, label, seed, folder, out / "runs" / f"{arm.slug}-{seed}"))
    return found


def ready(
    settings: ExperimentConfig,
    out: Path,
    labels: Sequence[str],
    seeds: Sequence[int],
    *,
    say: Callable[[str], None],
) -> list[Tuning]:
    """Those whose foundation is trained, with their data and requests written.

    Args:
        settings: Of the experiment.
        out: Its folder.
        labels: Arms to fine-tune; all if not given.
        seeds: Of them; all if not given.
        say: Takes notices.

    Raises:
        ConfigError: One that is done had other settings, or the model of another selection.
    """
    elsewhere = earlier.load(out).done
    wanted = [
        tuning
        for tuning in planned(settings, out)
        if (not labels or tuning.arm in (*labels, SCRATCH))
        and (not seeds or tuning.seed in seeds)
        and (tuning.arm, tuning.seed, tuning.task.label) not in elsewhere
    ]
    found = [tuning for tuning in wanted if (tuning.foundation / "result.json").is_file()]
    if far := [
        tuning for tuning in wanted if tuning not in found and (tuning.arm, tuning.seed, "") in elsewhere
    ]:
        say(
            f"{len(far)} fine-tunings are left out: their models are where the runs were done ({far[0].label}, ...)"
        )
    if found:
        _write_data(settings, out / "data/downstream", {tuning.task.task for tuning in found}, say)
    for tuning in found:
        request, path = _request(settings, out, tuning), tuning.folder / "request.json"
        if tuning.done and _without_places(json.loads(path.read_text("utf-8"))) != _without_places(request):
            raise ConfigError(
                f"{tuning.folder} was fine-tuned with other settings or from another model: restore them, or "
                "remove that folder"
            )
        tuning.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, request)
    return found


def _request(settings: ExperimentConfig, out: Path, tuning: Tuning) -> dict[str, Any]:
    data, task = (out / "data/downstream").absolute(), tuning.task
    part = WITH_LAYOUT if task.task == "semantic" else ""
    more = {"masks": str(data / "masks")} if task.task == "semantic" else {}
    chosen = json.loads((tuning.foundation / "arm.json").read_text("utf-8"))["ids_hash"]
    if settings.measure.weights:
        more["weights"] = str(Path(settings.measure.weights).absolute())
    return {
        "task": task.task,
        "foundation_ids": None if tuning.arm == SCRATCH else chosen,
        "settings": {
            "foundation": str((tuning.foundation / "model").absolute()),
            "from_scratch": tuning.arm == SCRATCH,
            "validation_data": str(data / "held_out" / part),
            **more,
            **task.settings,
        },
        "training": {
            "data": str(data / "train" / part),
            "kept": None,
            "sample_weights": None,
            "seed": tuning.seed,
            "validation_images": 0,
            **task.training,
        },
        "device": settings.device,
    }


def _without_places(request: dict[str, Any]) -> dict[str, Any]:
    """A request that is the same wherever the experiment's folder lies; the images are known by their hash."""
    places = ("foundation", "validation_data", "masks", "weights", "data")
    parts = ("settings", "training")
    moved = {part: {k: v for k, v in request[part].items() if k not in places} for part in parts}
    return {**request, **moved}


def _write_data(
    settings: ExperimentConfig, folder: Path, tasks: set[str], say: Callable[[str], None]
) -> None:
    """Tiles and, for layouts, masks, each whole or not there."""
    wanted = ["train", "held_out", *(["masks"] if "semantic" in tasks else [])]
    if all((folder / name).is_dir() for name in wanted):
        return
    side = settings.data.tile
    pictures = [(scene, open_picture(scene.path)) for scene in settings.data.scenes]
    parts = {}
    for scene, picture in pictures:
        regions = split(picture.pixels.shape[:2], scene, settings.data)
        parts[scene.name] = {"train": regions[TRAIN], "held_out": regions[settings.reference.region]}
    for part in ("train", "held_out"):
        if not (folder / part).is_dir():
            say(f"cutting tiles for the fine-tunings: {part.replace('_', ' ')}")
            with staged(folder / part) as new:
                for scene, picture in pictures:
                    at = parts[scene.name][part]
                    _write(at.cut(picture.pixels, side), at, new / scene.name)
    if "masks" in wanted and not (folder / "masks").is_dir():
        from rsprune.finetuning.blue_marble import classes

        layout = classes()
        with staged(folder / "masks") as new:
            for at in parts[WITH_LAYOUT].values():
                _write(at.cut(layout[..., None], side)[..., 0], at, new)


def _write(tiles: np.ndarray, at: Tiles, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for tile, y, x in zip(tiles, at.ys, at.xs, strict=True):
        Image.fromarray(tile).save(folder / f"y{y:04d}_x{x:04d}.png")


def rows(settings: ExperimentConfig, out: Path) -> list[dict[str, Any]]:
    """A row per number of the fine-tunings that are done."""
    found = []
    for tuning in planned(settings, out):
        if not tuning.done:
            continue
        facts = json.loads((tuning.folder / "result.json").read_text("utf-8"))
        about = {
            "experiment": settings.name, "arm": tuning.arm, "seed": tuning.seed, "reference": "downstream",
            "step": facts["training"]["step"], "images_seen": facts["training"]["images_seen"],
            "n_real": facts["held_out"]["n"], "revision": facts["revision"], "version": facts["version"],
        }  # fmt: skip
        for method, scores in facts["scores"].items():
            for metric, value in (scores or {}).items():
                if isinstance(value, float):
                    name = f"{tuning.task.label}: {method} {metric}"
                    found.append({**about, "metric": name, "value": value})
    return found
