"""The folder of a training: whose it is, what it can be continued from."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w
import torch

from rsprune.errors import ConfigError
from rsprune.files import write_atomic, write_json
from rsprune.run import Run
from rsprune.training import checkpoint
from rsprune.training.config import TrainConfig, differences
from rsprune.training.ema import Ema
from rsprune.training.log import NAMES

STATE = "trainer_state.json"
# What a training makes beside its checkpoints; another one must find none of it.
MODEL = ("unet", "transformer", "vae", "scheduler")
FILES = (STATE, *NAMES, "model_index.json", "pipeline.py", "README.md", "metrics.json")
SAME = ("settings", "data", "network", "images_per_step")  # what makes two trainings the same


def check_folder(output: Path) -> None:
    """Raises `ConfigError` where `output` holds what no training wrote; cheap, so before the data is read."""
    if (output / "manifest").is_dir():
        raise ConfigError(f"{output} is a run folder: choose another folder for the model with --output")
    if output.is_dir() and not (output / STATE).is_file() and {p.name for p in output.iterdir()} - {".lock"}:
        raise ConfigError(f"{output} holds files that no training wrote: choose another --output")


def prepare_folder(output: Path, state: dict[str, Any], settings: TrainConfig, *, overwrite: bool) -> None:
    """Makes `output` the folder of this training. Raises `ConfigError` where it belongs to another."""
    checkpoint.clean(output)
    if overwrite and (output / STATE).is_file():
        for folder in checkpoint.everything(output):
            checkpoint.remove(folder)
        for name in MODEL:
            if (output / name).is_dir():
                checkpoint.remove(output / name)
        for file in (*(output / name for name in FILES), *output.glob("latents-*.npy")):
            file.unlink(missing_ok=True)
    if (output / STATE).is_file():
        old, new = Run(output).json(STATE), {name: state[name] for name in SAME}
        if any(old[name] != new[name] for name in SAME):
            what = differences(old["settings"], new["settings"]) or differences(
                {name: old[name] for name in SAME}, new
            )
            raise ConfigError(
                f"{output} holds another training ({what}): choose another --output, or --overwrite it"
            )
        if settings.resume_from_checkpoint == "none" and checkpoint.everything(output):
            raise ConfigError(
                f"{output} holds checkpoints of this training: continue with "
                "--resume-from-checkpoint latest, or --overwrite them"
            )
    else:
        write_json(output / STATE, state)
    values = {name: value for name, value in asdict(settings).items() if value is not None}
    write_atomic(output / "train.toml", lambda f: f.write(tomli_w.dumps({"train": values}).encode()))


def resume(
    settings: TrainConfig,
    output: Path,
    state: dict[str, Any],
    model: torch.nn.Module,
    ema: Ema | None,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
) -> int:
    """Loads a checkpoint and returns its step; 0 where there is none."""
    wish = settings.resume_from_checkpoint
    if wish == "none":
        return 0
    folder = checkpoint.latest(output, say) if wish == "latest" else Path(wish)
    if folder is None:
        say(f"no checkpoint in {output}: starting at step 0")
        return 0
    tensors, saved = checkpoint.load(folder)
    for name in SAME:
        if saved[name] != state[name]:
            raise ConfigError(f"checkpoint {folder} is of another training: give one of this")
    if saved["step"] > settings.max_train_steps:
        raise ConfigError(
            f"checkpoint {folder} is at step {saved['step']:,}, past --max-train-steps "
            f"{settings.max_train_steps:,}: give more steps"
        )
    model.load_state_dict(tensors["model"])
    if ema:
        ema.model.load_state_dict(tensors["ema"])
    checkpoint.load_optimizer(optimizer, model, tensors["optimizer"])
    state.update(step=saved["step"], images_seen=saved["images_seen"])
    say(f"continuing from {folder.name}: step {saved['step']:,} of {settings.max_train_steps:,}")
    return saved["step"]


def last_good(output: Path) -> str:
    """Which checkpoint is left, in words."""
    folders = checkpoint.everything(output)
    return f"the last good checkpoint is {folders[0]}" if folders else "there was no checkpoint yet"


def versions(
    packages: Sequence[str] = ("rsprune", "torch", "diffusers", "accelerate", "numpy"),
) -> dict[str, str]:
    """Of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def task_of(folder: Path) -> Mapping[str, Any] | None:
    """What a model in `folder` was fine-tuned for; None for one that needs nothing but noise."""
    try:
        task = json.loads((folder / STATE).read_text("utf-8"))["settings"]["task"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return task if isinstance(task, dict) else None
