"""Where losses go: a line per step in ``log.jsonl``, or a tracker of accelerate's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rsprune.errors import ConfigError
from rsprune.files import write_atomic

STEPS, METRICS = "log.jsonl", "metrics.jsonl"
NAMES = (STEPS, METRICS)


class Log:
    """Writes steps; opened at a step, it forgets what was written of later ones."""

    def __init__(self, output: Path, kind: str, *, step: int, accelerator: Accelerator):
        self._output, self._file, self._accelerator = output, None, None
        if kind == "jsonl":
            for name in NAMES:
                kept = [line for line in read(output, name) if line["step"] <= step]
                if name == STEPS or (output / name).is_file():
                    _rewrite(output / name, kept)
            self._file = (output / STEPS).open("a", encoding="utf-8")
        elif kind != "none":
            self._accelerator = accelerator
            accelerator.init_trackers("rsprune", init_kwargs={"wandb": {"dir": str(output)}})

    def write(self, step: int, **values: float) -> None:
        """One finished step."""
        if self._file:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._accelerator:
            self._accelerator.log(values, step=step)

    def judge(self, step: int, **metrics: float) -> None:
        """How good the model is after a step."""
        if self._file:
            with (self._output / METRICS).open("a", encoding="utf-8") as f:
                f.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._accelerator:
            self._accelerator.log(metrics, step=step)

    def flush(self) -> None:
        if self._file:
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()
        if self._accelerator:
            self._accelerator.end_training()


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomic(path, lambda f: f.write(text.encode()))


def read(output: Path, name: str = STEPS) -> list[dict[str, Any]]:
    """Lines of a training folder's log; one that was cut off, and what follows it, is left out."""
    try:
        lines = (output / name).read_text("utf-8").splitlines()
    except OSError:
        return []
    steps = []
    for line in lines:
        try:
            steps.append(json.loads(line))
        except ValueError:
            break
    return steps


def check_tracker(kind: str) -> None:
    """Raises `ConfigError` where the package of a tracker is not installed."""
    from importlib.util import find_spec

    if kind in ("tensorboard", "wandb") and find_spec(kind) is None:
        raise ConfigError(f"--report-to {kind} needs the package {kind}: run 'pip install {kind}'")
