"""One run of an experiment: an arm with a seed is trained and measured, in a process of its own.

    python -m rsprune.experiment.work REQUEST.json

The process ends when its standard input does, so that nothing goes on when the experiment was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsprune.evaluation.provenance import code
from rsprune.experiment.config import ExperimentConfig, MeasureConfig
from rsprune.files import write_json

BEGUN = "begun.json"  # says on what machine a run was begun, which is to go on on one alike


@dataclass(frozen=True)
class Request:
    """What a run is to do; `folder` is its own, `training` are settings of `rsprune train`."""

    folder: Path
    data: Path
    training: dict[str, Any]
    measure: MeasureConfig
    device: str
    kept: Path | None

    @classmethod
    def read(cls, path: Path) -> Request:
        values = json.loads(path.read_text("utf-8"))
        measure = MeasureConfig(**values.pop("measure"))
        folder, data = Path(values.pop("folder")), Path(values.pop("data"))
        kept = values.pop("kept")
        return cls(folder=folder, data=data, measure=measure, kept=Path(kept) if kept else None, **values)

    @property
    def model(self) -> Path:
        return self.folder / "model"


def training_settings(settings: ExperimentConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Settings of `rsprune train` that all arms share, and the seed."""
    values = dict(settings.training)
    if settings.network:
        network = folder / "network.json"
        write_json(network, settings.network)
        values["model_config"] = str(network)
    return {
        "validation_images": 0,
        **values,
        "seed": seed,
        "max_train_steps": settings.steps,
        # Every checkpoint to be measured is kept until it is.
        "checkpointing_steps": settings.saving_steps,
        "checkpoints_total_limit": 10**6,
    }


def work(request: Request) -> None:
    """Trains, or goes on training, then measures; the result is the last file that is written."""
    import torch

    from rsprune.experiment.measure import MEASUREMENTS
    from rsprune.training import checkpoint
    from rsprune.training.config import TrainConfig, checked
    from rsprune.training.train import train

    if request.device == "cpu":
        torch.set_num_threads(1)
    started = time.monotonic()
    write_json(request.folder / BEGUN, {"machine": machine(request.device)})
    state = train(
        checked(TrainConfig, request.training), request.model, device=request.device, say=lambda s: print(s, flush=True)
    )  # fmt: skip
    trained = time.monotonic()
    rows = []
    for measurement in MEASUREMENTS:
        rows += measurement(request)
        print(f"{measurement.__name__}: {time.monotonic() - trained:.0f} s after training", flush=True)
    about = {
        **code(), "machine": machine(request.device), "images_seen": state["images_seen"], "parameters": state["parameters"], "pixels": state["data"],
        "versions": state["versions"], "train_seconds": round(trained - started, 1),
        "measure_seconds": round(time.monotonic() - trained, 1),
    }  # fmt: skip
    write_json(request.folder / "result.json", {"about": about, "rows": rows})
    for folder in checkpoint.everything(request.model):
        checkpoint.remove(folder)


def machine(device: str) -> str:
    """The name of the GPU that computes, or of the processor with its family and model, which names alone may not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        known = dict(re.findall(r"^(.+?)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M))
        if "model name" in known:
            return f"{known['model name']} (family {known.get('cpu family')}, model {known.get('model')})"
    return platform.processor() or platform.machine()


def end_with_parent() -> None:
    """Ends this process when its standard input ends."""

    def watch() -> None:
        # Not through sys.stdin, whose lock a thread that waits would hold when the process ends.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(path: str) -> None:
    end_with_parent()
    work(Request.read(Path(path)))


if __name__ == "__main__":
    main(sys.argv[1])
