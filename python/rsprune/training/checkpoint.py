"""Checkpoints: folders that are complete or not there, of safetensors only."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rsprune.errors import ConfigError
from rsprune.files import staged, write_json
from rsprune.run import Run

MANIFEST = "checkpoint.json"
_NAME = re.compile(r"checkpoint-(\d+)$")


def save(
    output: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: dict[str, Any]
) -> Path:
    """Writes ``checkpoint-STEP`` with a safetensors file per entry of `tensors`; staged, then renamed."""
    target = output / f"checkpoint-{step}"
    with staged(target) as folder:
        for name, values in tensors.items():
            save_tensors(folder / f"{name}.safetensors", values)
        files = {f.name: _fingerprint(f) for f in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, {**state, "step": step, "files": files})
    return target


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Tensors per file and the state of a checkpoint. Raises `ConfigError` where `fault` finds one."""
    why = fault(folder)
    if why:
        raise ConfigError(f"checkpoint {folder} {why}: give another one, or latest")
    tensors = {f.stem: load_file(f) for f in sorted(folder.glob("*.safetensors"))}
    return tensors, Run(folder).json(MANIFEST)


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where it is complete."""
    try:
        files = Run(folder).json(MANIFEST)["files"]
    except (OSError, ValueError, KeyError):
        return f"has no readable {MANIFEST}"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"lacks {name}"
        if _fingerprint(folder / name) != expected:
            return f"is damaged: {name} is not as it was written"
    return None


def everything(output: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [(int(m[1]), p) for p in output.glob("checkpoint-*") if (m := _NAME.match(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def latest(output: Path, say: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint; damaged ones are named and skipped."""
    for folder in everything(output):
        why = fault(folder)
        if why is None:
            return folder
        say(f"checkpoint {folder.name} {why}; skipped")
    return None


def prune(output: Path, limit: int | None) -> None:
    """Deletes the oldest checkpoints above `limit`."""
    for folder in everything(output)[limit:] if limit else ():
        remove(folder)


def remove(folder: Path) -> None:
    """Deletes a checkpoint, which is not there any more from the first moment on."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(output: Path) -> None:
    """Removes what a killed process had begun to write."""
    for abandoned in output.glob(".*.tmp"):
        if abandoned.is_dir():
            shutil.rmtree(abandoned, ignore_errors=True)
        else:
            abandoned.unlink(missing_ok=True)


def save_tensors(path: Path, values: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file. Raises `OSError` where there is no space."""
    with os_errors(path):
        save_file({k: v.detach().cpu().contiguous() for k, v in values.items()}, path)


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turns what safetensors says of a full disk into the `OSError` that it was."""
    try:
        yield
    except SafetensorError as e:
        code = re.search(r"(?:os error|code:) (\d+)", str(e))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """State of an optimiser as ``PARAMETER:KEY`` -> tensor."""
    return {
        f"{name}:{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts `optimizer_tensors` back."""
    at = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    number = {name: at[id(p)] for name, p in model.named_parameters()}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for flat, value in tensors.items():
        name, _, key = flat.rpartition(":")
        state.setdefault(number[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _fingerprint(file: Path) -> list[Any]:
    value = xxhash.xxh3_128()
    with file.open("rb") as f:
        while chunk := f.read(1 << 22):
            value.update(chunk)
    return [file.stat().st_size, value.hexdigest()]
