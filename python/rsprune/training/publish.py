"""The model folder: what diffusers loads, a model card, and grids of samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from rsprune.run import write_atomic, write_json
from rsprune.training import pipeline
from rsprune.training.checkpoint import os_errors, staged
from rsprune.training.config import TrainConfig
from rsprune.training.log import read
from rsprune.training.models import FOLDERS
from rsprune.training.pool import Pool


def write_model(
    output: Path, model: torch.nn.Module, scheduler: Any, settings: TrainConfig, labels: Sequence[str]
) -> None:
    """Writes what ``DiffusionPipeline.from_pretrained(output)`` reads."""
    name = FOLDERS[settings.model]
    with staged(output / name) as folder, os_errors(output / name):
        model.save_pretrained(folder, safe_serialization=True)
    with staged(output / "scheduler") as folder:
        scheduler.save_pretrained(folder)
    index: dict[str, Any] = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        name: ["diffusers", type(model).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    if is_plain(settings):
        (output / "pipeline.py").unlink(missing_ok=True)
    else:
        other = next(f for f in FOLDERS.values() if f != name)
        index |= {"_class_name": ["pipeline", "TilePipeline"], other: [None, None]}
        index |= {"labels": list(labels), "pixel_unshuffle": settings.pixel_unshuffle}
        shutil.copyfile(pipeline.__file__, output / "pipeline.py")
    write_json(output / "model_index.json", index)


def is_plain(settings: TrainConfig) -> bool:
    """Whether diffusers' own DDPMPipeline can draw from the model."""
    return settings.model == "unet" and settings.condition == "none" and settings.pixel_unshuffle == 1


def write_card(output: Path, settings: TrainConfig, pool: Pool, state: dict[str, Any]) -> None:
    """Writes ``README.md``: what the model is, what it saw, and how to use it."""
    code = "" if is_plain(settings) else ", trust_remote_code=True"
    call = 'class_labels=["NAME"]' if pool.names else "batch_size=1"
    names = "" if not pool.names else f"\nLabels: {', '.join(f'`{n}`' for n in pool.names)}.\n"
    text = f"""---
library_name: diffusers
tags: [remote-sensing, unconditional-image-generation, rsprune]
---

# {output.name}

Draws remote-sensing images of {state["resolution"]} x {state["resolution"]} pixels and {pool.pixels.shape[3]} bands
({settings.model}, {state["parameters"]:,} parameters, {settings.objective}).

| | |
|---|---|
| data | `{pool.facts["data"]}`, {pool.facts["images"]:,} images ({pool.facts["selected"]}) |
| hash of the ids | `{pool.facts["ids_hash"]}` |
| hash of the pixels | `{state["data"]}` |
| steps | {state["step"]:,}, {state["images_seen"]:,} images seen |
| seed | {settings.seed} |
| weights | {"moving average" if settings.use_ema else "last step"} |
{names}
```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("PATH"{code})
image = pipe({call}, num_inference_steps=25).images[0]
```

Licence: that of the imagery it was trained on; see the data's own terms before you share the model or its images.
"""
    write_atomic(output / "README.md", lambda f: f.write(text.encode()))


def write_grid(path: Path, images: np.ndarray) -> None:
    """A PNG of images [N, H, W, C] uint8 side by side; of more than three bands the first three are shown."""
    from PIL import Image

    n, h, w, bands = images.shape
    shown = images[..., :3] if bands >= 3 else images[..., :1].repeat(3, axis=3)
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    sheet = np.full((rows, h + 2, columns, w + 2, 3), 255, np.uint8)
    for i, image in enumerate(shown):
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


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's own settings in a model folder; defaults where diffusers' pipeline does."""
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError):
        index = {}
    return {"labels": index.get("labels", []), "pixel_unshuffle": index.get("pixel_unshuffle", 1)}
