"""The verbs ``finetune super-resolution`` and ``finetune semantic``; their options are settings of `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rsprune.cli_options import app
from rsprune.errors import ConfigError
from rsprune.finetuning.config import SemanticConfig, SuperResolutionConfig
from rsprune.locations import absolute
from rsprune.terminal import Terminal
from rsprune.training.cli import Data, Output, given_values, verb
from rsprune.training.config import TrainConfig, checked

# The network is the foundation's, and it is conditioned on what it is given only.
FIXED = (
    "model", "model_config", "pixel_unshuffle", "vae", "objective", "prediction_type", "condition",
    "condition_dropout",
)  # fmt: skip
COMMON = ("device", "config_file", "overwrite", "as_json", "quiet", "verbose")
PATHS = ("validation_data", "masks", "weights")
Foundation = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The trained model to start from.", show_default=False)
]
Masks = Annotated[
    str | None,
    typer.Option("--masks", help="Maps of class numbers under the names of the images.", show_default=False),
]

finetuning = typer.Typer(
    help="Teach a trained model to follow an image that it is given.", no_args_is_help=True
)
app.add_typer(finetuning, name="finetune")


@verb(SuperResolutionConfig, TrainConfig, common=COMMON, into=finetuning, without=FIXED)
def super_resolution(
    foundation: Foundation, data: Data = None, *, output: Output, flags: dict[str, Any]
) -> None:
    """Sharper images from those with larger pixels; measured beside bicubic."""
    facts, terminal = _run(SuperResolutionConfig, foundation, data, output, flags)
    if facts and not flags["as_json"]:
        terminal.out.print(_super_resolution(facts))


@verb(SemanticConfig, TrainConfig, common=COMMON, into=finetuning, without=FIXED)
def semantic(
    foundation: Foundation,
    data: Data = None,
    masks: Masks = None,
    *,
    output: Output,
    flags: dict[str, Any],
) -> None:
    """Images that follow a map of classes; measured by a segmenter that real images taught."""
    if masks is not None:
        flags["masks"] = masks
    facts, terminal = _run(SemanticConfig, foundation, data, output, flags)
    if facts and not flags["as_json"]:
        terminal.out.print(_semantic(facts))


def _run(
    kind: type[SuperResolutionConfig] | type[SemanticConfig],
    foundation: Path,
    data: str | None,
    output: Path,
    flags: dict[str, Any],
) -> tuple[dict[str, Any], Terminal]:
    values = given_values(kind, "finetune", flags) | {"foundation": absolute(str(foundation))}
    values |= {name: absolute(values[name]) for name in PATHS if values.get(name)}
    training = given_values(TrainConfig, "train", flags)
    if data is not None:
        training["data"] = absolute(data)
    if "data" not in training:
        raise ConfigError("there is nothing to train on: give a run folder or images with --data")
    if kind is SemanticConfig and "masks" not in values:
        raise ConfigError("there are no layouts: give maps of class numbers with --masks")
    fixed = sorted({*FIXED} & {*training})
    if fixed:
        raise ConfigError(f"{fixed[0]} is that of the model which is fine-tuned: leave it out")
    settings = checked(kind, values)
    terminal = Terminal(quiet=flags["quiet"] or flags["as_json"], as_json=flags["as_json"])
    from rsprune.encoders.torch_model import torch_device
    from rsprune.finetuning.finetune import finetune

    facts = finetune(
        settings,
        training,
        output,
        device=torch_device(flags["device"]),
        overwrite=flags["overwrite"],
        say=terminal.say,
    )
    if facts:
        said = f"{facts['training']['step']:,} steps: {output}, measured in {output / 'metrics.json'}"
        terminal.result({"output": str(output), **facts}, said)
    return facts, terminal


def _super_resolution(facts: dict[str, Any]) -> Table:
    drawn, n = facts["drawn"], facts["held_out"]["n"]
    table = Table(title=f"x{facts['task']['scale']}, {n:,} held-out images")
    columns = {
        "psnr": "PSNR (dB)", "psnr_median": "median", "ssim": "SSIM", "lpips": "LPIPS",
        "consistency": "consistency (dB)", "nearer_than_bicubic": "nearer than bicubic",
    }  # fmt: skip
    table.add_column("")
    for title in columns.values():
        table.add_column(title, justify="right")
    for name, scores in facts["scores"].items():
        how = drawn.get(name)
        note = f", {how['steps']} step{'s' * (how['steps'] > 1)}, mean of {how['mean_of']}" if how else ""
        cells = ["" if (v := scores[key]) is None else f"{v:.4g}" for key in columns]
        table.add_row(name + note, *cells)
    return table


def _semantic(facts: dict[str, Any]) -> Table:
    table = Table(title=f"{facts['task']['classes']} classes, {facts['held_out']['n']:,} held-out layouts")
    table.add_column("")
    for title in ("mIoU", "pixels right"):
        table.add_column(title, justify="right")
    names = {"generated": "generated", "real": "real images (ceiling)", "shuffled": "other layouts (floor)"}
    for name, title in names.items():
        scores = facts["scores"][name]
        table.add_row(title, f"{scores['miou']:.3f}", f"{scores['accuracy']:.3f}")
    if kd := facts["scores"]["kd"]:
        table.caption = f"{kd['name']} {kd['value']:.4g} ± {kd['deviation']:.2g}, halves of the real ones {kd['floor']:.4g}"
    return table
