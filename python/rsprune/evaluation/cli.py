"""The verb ``evaluate``; its options are the settings in `config` and those of image sources."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rsprune.cli_options import verb
from rsprune.config import SourceConfig, checked
from rsprune.errors import ConfigError
from rsprune.evaluation.config import EvaluateConfig
from rsprune.terminal import Terminal
from rsprune.toml import table

Samples = Annotated[
    str,
    typer.Argument(
        metavar="SAMPLES",
        help="Folder of images or of a trained model, or features as .npy or .parquet.",
        show_default=False,
    ),
]
Reference = Annotated[
    str,
    typer.Option("--reference", help="The same of real images, held out from training.", show_default=False),
]
Training = Annotated[
    str | None,
    typer.Option(
        "--training", help="The same of the training images, to see memorisation.", show_default=False
    ),
]
Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="JSON file to write the result to.", show_default=False)
]


@verb("source", EvaluateConfig, without=("workers",))
def evaluate(
    samples: Samples,
    *,
    reference: Reference,
    training: Training = None,
    out: Out = None,
    flags: dict[str, Any],
) -> None:
    """Distance, precision, diversity and memorisation of samples, each beside what real images get.

    Of a model: its denoising loss on the reference, with the same noise for every model.
    """
    from rsprune.config import settings as run_settings
    from rsprune.evaluation.evaluate import evaluate as evaluate_samples
    from rsprune.evaluation.model import is_model
    from rsprune.files import write_json

    if out and out.exists() and not flags["overwrite"]:
        raise ConfigError(f"{out} is there already: give another file with -o, or --overwrite")
    base = table(flags["config_file"], "evaluate") if flags["config_file"] else {}
    given = _given(EvaluateConfig, flags)
    settings = checked(EvaluateConfig, base | given)
    if is_model(samples) and not settings.draw and (idle := given.keys() - {"reference_kind", "draw"}):
        raise ConfigError(
            f"--{min(idle).replace('_', '-')} is for images, and of a model only the held-out loss is measured: give "
            "--draw N as well, or leave it out"
        )
    source = _given(SourceConfig, flags) | {"path": samples}
    terminal = Terminal(quiet=flags["quiet"] or flags["as_json"], as_json=flags["as_json"])
    facts = evaluate_samples(
        samples,
        reference,
        training=training,
        settings=settings,
        source=run_settings({"scan": {"sources": [source]}}).scan.sources[0],
        seed=flags["seed"] or 0,
        device=flags["device"],
        progress=terminal.progress,
    )
    if out:
        write_json(out, facts)
    if flags["as_json"]:
        terminal.result(facts, "")
        return
    if "loss" in facts:
        terminal.out.print(_losses(facts))
    if "scores" in facts:
        terminal.out.print(_table(facts))
    for sentence in facts["notes"]:
        terminal.say(sentence)
    if out:
        terminal.out.print(f"result: {out}", markup=False)


def _given(kind: type, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags for settings of `kind` that were given."""
    return {f.name: flags[f.name] for f in fields(kind) if flags.get(f.name) not in (None, [])}


def _losses(facts: dict[str, Any]) -> Table:
    loss = facts["loss"]
    table = Table(title=f"{loss['name']}, {facts['reference']['n']:,} reference images, lower is better")
    table.add_column("mean over")
    for name in ("mean", *(f"noise {time:g}" for time in loss["times"])):
        table.add_column(name, justify="right")
    titles = {"natural": "images", "balanced": "folders"}
    for kind, title in titles.items():
        if kind in loss:
            found = loss[kind]
            table.add_row(title, *(f"{value:.4f}" for value in (found["mean"], *found["by_time"])))
    return table


def _table(facts: dict[str, Any]) -> Table:
    counts = f"{facts['samples']['n']:,} samples against {facts['reference']['n']:,} reference images"
    table = Table(title=counts, caption=f"floor: {facts['floor']['kind']}")
    table.add_column("score")
    for name in ("value", "deviation", "floor"):
        table.add_column(name, justify="right")
    for score in facts["scores"].values():
        deviation = score.get("deviation")
        spread = "" if deviation is None else f"{deviation:.4g}"
        table.add_row(score["name"], f"{score['value']:.4g}", spread, f"{score['floor']:.4g}")
    return table
