"""The model folder: what diffusers loads, a model card, and grids of samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin

from rsprune.errors import ConfigError
from rsprune.files import staged, write_atomic, write_json
from rsprune.training import pipeline
from rsprune.training.checkpoint import os_errors
from rsprune.training.config import TrainConfig
from rsprune.training.folder import STATE
from rsprune.training.log import read
from rsprune.training.models import FOLDERS, given_channels
from rsprune.training.pool import Pool


def write_model(
    output: Path,
    model: ModelMixin,
    scheduler: SchedulerMixin,
    settings: TrainConfig,
    labels: Sequence[str],
    *,
    vae: AutoencoderKL | None = None,
    residual: float = 0.0,
) -> None:
    """Writes what ``DiffusionPipeline.from_pretrained(output)`` reads."""
    name = FOLDERS[settings.model]
    with staged(output / name) as folder, os_errors(output / name):
        model.save_pretrained(folder, safe_serialization=True)
    with staged(output / "scheduler") as folder:
        scheduler.save_pretrained(folder)
    if vae is not None and not (output / "vae").is_dir():
        with staged(output / "vae") as folder, os_errors(output / "vae"):
            vae.save_pretrained(folder, safe_serialization=True)
    index: dict[str, Any] = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        name: ["diffusers", type(model).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    if is_plain(settings, model):
        (output / "pipeline.py").unlink(missing_ok=True)
    else:
        other = next(f for f in FOLDERS.values() if f != name)
        index |= {"_class_name": ["pipeline", "TilePipeline"], other: [None, None]}
        index["vae"] = [None, None] if vae is None else ["diffusers", "AutoencoderKL"]
        index |= {"labels": list(labels), "pixel_unshuffle": settings.pixel_unshuffle, "residual": residual}
        shutil.copyfile(pipeline.__file__, output / "pipeline.py")
    write_json(output / "model_index.json", index)


def is_plain(settings: TrainConfig, model: ModelMixin) -> bool:
    """Whether diffusers' own DDPMPipeline can draw from the model."""
    own = (
        settings.model == "dit"
        or settings.condition != "none"
        or settings.vae
        or settings.pixel_unshuffle > 1
    )
    return not own and not given_channels(model)


def write_card(
    output: Path, model: ModelMixin, settings: TrainConfig, pool: Pool, state: dict[str, Any]
) -> None:
    """Writes ``README.md``: what the model is, what it saw, and how to use it."""
    bands, side = pool.pixels.shape[3], state["resolution"]
    code = "" if is_plain(settings, model) else ", trust_remote_code=True"
    task = state["settings"].get("task")  # what `rsprune finetune` was asked
    task = task if isinstance(task, Mapping) and "foundation" in task else None
    call = ['class_labels=["NAME"]'] if pool.names else []
    call += ["given=given"] if given_channels(model) else []
    call += ["num_inference_steps=25"] + ([] if bands in (1, 3) else ['output_type="np"'])
    kind = f"{'' if pool.names else 'un'}conditional-image-generation" if task is None else "image-to-image"
    names = "" if not pool.names else f"\nLabels: {', '.join(f'`{n}`' for n in pool.names)}.\n"
    works_on = (
        f"latents of `{Path(settings.vae).name}`, a copy of which is in `vae`" if settings.vae else "pixels"
    )
    text = f"""---
library_name: diffusers
tags: [remote-sensing, {kind}, rsprune]
---

# {output.name}

Draws remote-sensing images of {side} x {side} pixels, {bands} bands and {state["bits"]} bits
({settings.model}, {state["parameters"]:,} parameters, {settings.objective}).

| | |
|---|---|
| data | `{pool.facts["data"]}`, {pool.facts["images"]:,} images ({pool.facts["selected"]}) |
| hash of the ids | `{pool.facts["ids_hash"]}` |
| hash of what it learnt from | `{state["data"]}` |
| range of values | {"; ".join(_range(scale, state["bits"]) for scale in pool.facts["scales"])} |
| works on | {works_on} |
{_task_row(task)}| steps | {state["step"]:,}, {state["images_seen"]:,} images seen |
| seed | {settings.seed} |
| weights | {"moving average" if settings.use_ema else "last step"} |
| made with | {", ".join(f"{name} {version}" for name, version in state["versions"].items())} |
{names}
```python
{"import torch" + chr(10) if task else ""}from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("PATH"{code})
{_given_code(task)}image = pipe({", ".join(call)}).images[0]
```

Licence: that of the imagery it was trained on; see the data's own terms before you share the model or its images.
"""
    write_atomic(output / "README.md", lambda f: f.write(text.encode()))


def _task_row(task: Mapping[str, Any] | None) -> str:
    """What the model was fine-tuned for, as a row of the card; empty where it was not."""
    if task is None:
        return ""
    about = ", ".join(f"{k} {v}" for k, v in task.items() if k not in ("name", "foundation", "from_scratch"))
    start = "weights not used (from scratch)" if task["from_scratch"] else "its weights widened"
    return (
        f"| fine-tuned for | {task['name']}: {about} |\n"
        f"| foundation model | sha256 of its weights `{task['foundation']}`, {start} |\n"
    )


def _given_code(task: Mapping[str, Any] | None) -> str:
    """How what the network is given is made, for the card's example."""
    if task is None:
        return ""
    if task["name"] == "semantic":
        return (
            "# masks: class numbers [N, H, W], a torch tensor of int64\n"
            f"given = 2.0 * torch.nn.functional.one_hot(masks, {task['classes']}).permute(0, 3, 1, 2) - 1\n"
        )
    return (
        "# low: images [N, C, H, W] with values in -1..1\n"
        f'given = torch.nn.functional.interpolate(low, scale_factor={task["scale"]}, mode="bicubic").clamp(-1, 1)\n'
    )


def _range(scale: Mapping[str, Any], bits: int) -> str:
    """What the ends of an image's values stand for in a source, in words."""
    pairs = [f"{lo:g} to {hi:g}" for lo, hi in scale["scale"]]
    said = pairs[0] if len(set(pairs)) == 1 else ", ".join(pairs)
    return f"{scale['name']}: {said}".removeprefix(": ") + f" as 0 to {2**bits - 1}"


def viewable(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] of 8 or 16 bits as uint8 [N, H, W, 3]: the first three bands, or the first one as grey."""
    images = (images >> (8 * images.itemsize - 8)).astype(np.uint8)
    return images[..., :3] if images.shape[3] >= 3 else images[..., :1].repeat(3, axis=3)


def write_grid(path: Path, images: np.ndarray) -> None:
    """A PNG of images [N, H, W, C] side by side, as `viewable` shows them."""
    from PIL import Image

    n, h, w, _ = images.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    sheet = np.full((rows, h + 2, columns, w + 2, 3), 255, np.uint8)
    for i, image in enumerate(viewable(images)):
        sheet[i // columns, 1:-1, i % columns, 1:-1] = image
    picture = Image.fromarray(sheet.reshape(rows * (h + 2), columns * (w + 2), 3))
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, lambda f: picture.save(f, format="PNG"))


def write_curve(output: Path) -> None:
    """Draws the losses in ``log.jsonl``, and their running mean, as ``samples/loss.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = np.array([line["loss"] for line in read(output)])
    if not len(losses):
        return
    window = max(1, len(losses) // 50)
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    axes.plot(np.arange(1, len(losses) + 1), losses, lw=0.5, alpha=0.4, label="loss")
    axes.plot(np.arange(window, len(losses) + 1), mean, label=f"mean of {window} steps")
    # From above the first steps, which are far off the rest.
    axes.set(xlabel="step", ylabel="loss", ylim=(0, 1.3 * np.quantile(losses, 0.95)))
    axes.legend()
    path = output / "samples" / "loss.png"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, lambda f: figure.savefig(f, format="png", dpi=120))


def trained_bits(folder: Path) -> int:
    """Bits of the images that a model was trained on; 8 where its folder does not say it."""
    try:
        return json.loads((folder / STATE).read_text("utf-8"))["bits"]
    except (OSError, ValueError, KeyError):
        return 8


def read_scheduler(folder: Path) -> dict[str, Any]:
    """What the scheduler in a model folder is made of. Raises `ConfigError` where it cannot be read."""
    try:
        about: dict[str, Any] = json.loads(
            (folder / "scheduler" / "scheduler_config.json").read_text("utf-8")
        )
        _ = about["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder} has no readable scheduler: give a model made with 'rsprune train'"
        ) from None
    return about


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's own settings in a model folder; defaults where diffusers' pipeline does."""
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError):
        index = {}
    defaults = {"labels": [], "pixel_unshuffle": 1, "residual": 0.0}
    return {name: index.get(name, default) for name, default in defaults.items()}
