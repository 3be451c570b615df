"""The verb ``experiment``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from rsprune.cli_options import FLAG, app, in_words
from rsprune.errors import ConfigError
from rsprune.terminal import Terminal

NEEDED = ("torch", "diffusers", "accelerate")


@app.command()
def experiment(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file.", show_default=False)],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder to make, or to continue in.", show_default=False)
    ],
    arms: Annotated[
        str | None, typer.Option(metavar="<name>,...", help="Only these, with commas between.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="<int>,...", help="Only these, with commas between.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="<int>", help="Runs at once, in place of the file's.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="<name>", help="cpu or cuda, in place of the file's.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, metavar="<float>", help="Stop after this time; go on later.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="results.parquet of this experiment from elsewhere: its runs count as done.",
            show_default=False,
        ),
    ] = None,
    only_collect: Annotated[
        bool, typer.Option("--collect", metavar=FLAG, help="Only write the results so far.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", metavar=FLAG, help="Print the result as one line of JSON.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", metavar=FLAG, help="No notices.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", metavar=FLAG, help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Train the same model on several selections, and compare; continues where it stopped."""
    from dataclasses import replace

    with in_words(verbose=verbose):
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise ConfigError(f"experiment needs {', '.join(missing)}: run pip install 'rsprune[train]'")
        from rsprune.experiment.config import load
        from rsprune.experiment.runner import experiment as run_experiment
        from rsprune.experiment.runner import results_so_far

        settings = load(config)
        settings = replace(settings, workers=workers or settings.workers)
        if results or not only_collect:  # else nothing is compared with this machine
            settings = replace(settings, device=_device(device or settings.device))
        terminal = Terminal(quiet=quiet or as_json, as_json=as_json)
        if only_collect:
            facts = results_so_far(settings, out, results=results)
        else:
            facts = run_experiment(
                settings,
                out,
                labels=_listed(arms),
                seeds=_seeds(seeds),
                minutes=minutes,
                results=results,
                say=terminal.say,
            )
        said = f"{facts['done']} of {facts['planned']} runs are done: {facts['report']}"
        terminal.result(facts, said)


def _device(wanted: str) -> Literal["cpu", "cuda"]:
    from rsprune.encoders.torch_model import torch_device

    found = torch_device(wanted)
    if found == "cpu":
        return "cpu"
    if found == "cuda":
        return "cuda"
    raise ConfigError(
        f"experiments train on cpu or cuda, not {found}: choose the GPU with CUDA_VISIBLE_DEVICES"
    )


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError:
        raise ConfigError(f"--seeds is {text!r}: give whole numbers with commas between") from None
