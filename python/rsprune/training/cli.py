"""The verbs ``train`` and ``sample``; their options are the settings in `config`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from rsprune.cli_options import COMMON, DEFAULTS, app, in_words, parameter, setting_options
from rsprune.errors import ConfigError
from rsprune.locations import absolute
from rsprune.terminal import Terminal
from rsprune.toml import table
from rsprune.training.config import SampleConfig, TrainConfig, checked

NEEDED = ("torch", "diffusers", "accelerate")
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="A run folder; or images: a folder, Parquet, tar shards.", show_default=False
    ),
]
Output = Annotated[
    Path,
    typer.Option("-o", "--output", help="The folder to train in, or to continue in.", show_default=False),
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A trained model's folder.", show_default=False)]


def verb(
    *kinds: type, common: Sequence[str], into: typer.Typer = app, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with the settings of `kinds` and some of the common options; both arrive in `flags`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "flags"]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        for kind in kinds:
            options = setting_options(kind, kind.__name__.removesuffix("Config"))
            parameters += [p for p in options if p.name not in without]
        for option in common:
            annotation, described = COMMON[option]
            parameters.append(parameter(option, Annotated[annotation, described], DEFAULTS.get(option)))

        def command(**values: Any) -> None:
            arguments = {p.name: values.pop(p.name) for p in own}
            with in_words(verbose=values["verbose"]):
                missing = [name for name in NEEDED if find_spec(name) is None]
                if missing:
                    raise ConfigError(f"{name} needs {', '.join(missing)}: run pip install 'rsprune[train]'")
                function(**arguments, flags=values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        into.command(name=name)(command)
        return function

    return decorate


@verb(TrainConfig, common=("device", "config_file", "overwrite", "as_json", "quiet", "verbose"))
def train(data: Data = None, *, output: Output, flags: dict[str, Any]) -> None:
    """Train a diffusion model on the kept images of a run, or on a folder of images."""
    values = given_values(TrainConfig, "train", flags)
    if data is not None:
        values["data"] = absolute(data)
    if "data" not in values:
        raise ConfigError("there is nothing to train on: give a run folder or images with --data")
    settings = checked(TrainConfig, values)
    terminal = Terminal(quiet=flags["quiet"] or flags["as_json"], as_json=flags["as_json"])
    from rsprune.encoders.torch_model import torch_device
    from rsprune.training.train import train as train_model

    device = torch_device(flags["device"])
    if device.startswith("cuda:"):
        raise ConfigError(
            f"training takes the first GPU it sees: set CUDA_VISIBLE_DEVICES={device[5:]} instead"
        )
    state = train_model(settings, output, device=device, overwrite=flags["overwrite"], say=terminal.say)
    if os.environ.get("RANK", "0") != "0":  # one of several processes: the first one speaks
        return
    said = f"{state['step']:,} steps, {state['images_seen']:,} images seen: {output}"
    terminal.result({"output": str(output), **state}, said)


@verb(SampleConfig, common=("device", "config_file", "as_json", "quiet", "verbose"))
def sample(
    model: Model,
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.", show_default=False)],
    given: Annotated[
        str | None,
        typer.Option(
            "--given",
            help="Low-resolution images or layouts, for a fine-tuned model: an image is drawn for each.",
            show_default=False,
        ),
    ] = None,
    flags: dict[str, Any],
) -> None:
    """Draw images from a trained model."""
    from rsprune.encoders.torch_model import torch_device
    from rsprune.training.folder import task_of
    from rsprune.training.publish import trained_bits
    from rsprune.training.sample import load_pipeline, write_samples

    bits = trained_bits(model)
    values = {"bits": bits, **given_values(SampleConfig, "sample", flags)}
    settings = checked(SampleConfig, values)
    pipe, task = load_pipeline(model, device=torch_device(flags["device"])), task_of(model)
    if given is None:
        count, path = settings.n, write_samples(pipe, settings, out)
    elif task is None:
        raise ConfigError(f"{model} was not made by 'rsprune finetune': leave out --given")
    else:
        from rsprune.finetuning.given import write_drawn

        if settings.scene is not None or settings.guidance != 1:
            raise ConfigError("--scene and --guidance are not for a fine-tuned model: leave them out")
        wish = None if flags["n"] is None else settings.n
        count, path = write_drawn(pipe, task, given, settings, out, bits=bits, count=wish)
    Terminal(as_json=flags["as_json"]).result(
        {"count": count, "path": str(path)}, f"{count:,} images: {path}"
    )


def given_values(kind: type, section: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Settings of a TOML file's section, and the flags that were given, which win."""
    base = table(flags["config_file"], section) if flags["config_file"] else {}
    given = {f.name: flags.get(f.name) for f in fields(kind)}
    return {**base, **{name: value for name, value in given.items() if value is not None}}
