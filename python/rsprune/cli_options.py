"""How verbs of the ``rsprune`` command come to their options, and how what goes wrong in them is said.

A verb's settings come from `config`: every field there is an option of the verbs whose stage owns it.
"""

from __future__ import annotations

import errno
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer

from rsprune import config
from rsprune.errors import RspruneError

app = typer.Typer(
    name="rsprune",
    help="Keep the part of a remote-sensing image collection that is worth training on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

SECTIONS: dict[str, Any] = {
    "source": config.SourceConfig,
    "scan": config.ScanConfig,
    "score": config.ScoreConfig,
    "embed": config.EmbedConfig,
    "filter": config.FilterConfig,
    "cluster": config.ClusterConfig,
    "select": config.SelectConfig,
}
AS_TEXT = {  # parsed by config
    "bands": str, "n_clusters": str, "calibrate": str, "scale": list[str], "reference": list[str],
    "stratify": str, "exclude_from": list[str],
}  # fmt: skip
FLAG = ""  # an option without a value, of which Typer would otherwise say that it takes a <bool>
VALUES = {  # what help calls the value of an option; <text> where it is text and not listed here
    "bands": "<B,B,...>", "scale": "<LO,HI>", "mask": "<rule>", "encoder": "<name>", "embeddings": "<file>",
    "reference": "<path>", "n_clusters": "<number>", "calibrate": "<names>", "strategy": "<name>",
    "exclude_from": "<path>", "stratify": "<names>", "address": "<host>", "extractor": "<name>",
    "weights": "<file>", "kept": "<ids>", "model_config": "<file>", "vae": "<folder>",
    "sample_weights": "<by>", "resume_from_checkpoint": "<path>", "scene": "<name>",
}  # fmt: skip

COMMON: dict[str, tuple[Any, Any]] = {
    "seed": (int | None, typer.Option(help="The same seed gives the same images.")),
    "workers": (int | None, typer.Option(help="Processes; one per core if not given.")),
    "device": (str, typer.Option(metavar="<name>", help="auto, cpu or cuda\\[:i].")),
    "config_file": (
        Path | None,
        typer.Option("--config", metavar="<file>", help="TOML file with settings; options win over it."),
    ),
    "overwrite": (
        bool,
        typer.Option("--overwrite", metavar=FLAG, help="Throw away results of other settings."),
    ),
    "as_json": (bool, typer.Option("--json", metavar=FLAG, help="Print the result as one line of JSON.")),
    "quiet": (bool, typer.Option("-q", "--quiet", metavar=FLAG, help="No progress, no notices.")),
    "verbose": (bool, typer.Option("-v", "--verbose", metavar=FLAG, help="Show the traceback of an error.")),
}
ABSENT = {"device": "cpu", "overwrite": False, "quiet": False}  # for verbs without these options
# Options that change nothing about a run that is finished.
READS_THE_RUN = ("seed", "workers", "device", "config_file")
DEFAULTS = {"device": "auto", "overwrite": False, "as_json": False, "quiet": False, "verbose": False}


def verb(
    *sections: str | type, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with the options of `sections` and the common ones; it gets its own arguments and `flags`.

    Args:
        sections: settings whose fields become options.
        without: options that would have no effect; `flags` holds what they are where nothing was given.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "flags"]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        parameters += [p for section in sections for p in _options(section) if p.name not in without]
        for name, (kind, opt) in COMMON.items():
            opt.rich_help_panel = "Common"
            if name not in without:
                parameters.append(parameter(name, Annotated[kind, opt], DEFAULTS.get(name)))
        absent = {name: ABSENT.get(name) for name in without}

        def command(**values: Any) -> None:
            values = absent | values
            arguments = {p.name: values.pop(p.name) for p in own}
            with in_words(verbose=bool(values["verbose"])):
                function(**arguments, flags=values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name=function.__name__.removesuffix("_"))(command)
        return function

    return decorate


@contextmanager
def in_words(*, verbose: bool) -> Iterator[None]:
    """Ends the command with a sentence and an exit code where something goes wrong inside."""
    try:
        yield
    except (RspruneError, OSError, MemoryError, KeyboardInterrupt) as e:
        if verbose:
            traceback.print_exc()
        sentence, code = _sentence(e)
        print(f"rsprune: {sentence}", file=sys.stderr)
        raise typer.Exit(code) from None


def call(arguments: list[str] | None) -> NoReturn:
    """Runs a command and exits; an option that there is not, or a value it cannot have, gets one sentence too."""
    try:
        code = app(arguments, prog_name="rsprune", standalone_mode=False)
    except typer.Abort:
        print("rsprune: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sentence = getattr(error, "format_message", str)
        if sentence is str:  # a defect of ours, which wants its traceback
            raise
        if said := sentence():  # nothing where help has been printed in place of a sentence
            said = f"{said[0].lower()}{said[1:].rstrip('.')}".replace("Value error, ", "")
            where = getattr(getattr(error, "ctx", None), "command_path", "rsprune")
            print(f"rsprune: {said} (see '{where} --help')", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(code or 0)


def parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """An option or argument of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _options(section: str | type) -> Iterator[inspect.Parameter]:
    if isinstance(section, type):  # settings that are not those of a run
        yield from setting_options(section, section.__name__.removesuffix("Config"))
        return
    for option in setting_options(SECTIONS[section], section.capitalize()):
        yield option
        if option.name == "keep":
            help = "Share to drop: --prune 0.85 is --keep 0.15."
            panel = section.capitalize()
            yield parameter("prune", Annotated[float | None, typer.Option(help=help, rich_help_panel=panel)])


def setting_options(kind: Any, panel: str) -> Iterator[inspect.Parameter]:
    """An option per described field of a settings dataclass; None where it is not given."""
    for name, field in kind.__pydantic_fields__.items():
        if not field.description:
            continue
        default = "" if field.default in (None, (), False) else f" \\[{_plain(field.default)}]"
        flag = f"--{name.replace('_', '-')}"
        if field.default is True:
            flag += f"/--no{flag[1:]}"
        listed = f" {one_of(field.annotation)}" if get_origin(field.annotation) is Literal else ""
        text = None if field.annotation is int else AS_TEXT.get(name)  # --scale of a task is a plain number
        kind = text or field.annotation
        opt = typer.Option(
            flag, help=field.description + listed + default, rich_help_panel=panel, show_default=False,
            metavar="<word>" if listed else _value(name, kind),
        )  # fmt: skip
        yield parameter(name, Annotated[kind | None, opt])


def one_of(choices: Any) -> str:
    """The values of a `Literal`, in words: as the type of an option they would be broken anywhere."""
    return f"One of {', '.join(get_args(choices))}."


def _value(name: str, kind: Any) -> str | None:
    """What help calls the value of an option; None leaves numbers to Typer."""
    kinds = get_args(kind) or (kind,)
    if bool in kinds:
        return FLAG
    return None if int in kinds or float in kinds else VALUES.get(name, "<text>")


def _plain(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _sentence(error: BaseException) -> tuple[str, int]:
    """An error in words, and its exit code."""
    if isinstance(error, RspruneError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to continue", 130
    if isinstance(error, MemoryError):
        return "out of memory; lower --workers and run the same command again to continue", 1
    name = getattr(error, "filename", None)
    where = f" ({name})" if name else ""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left to write to{where}; make room and run the same command again to continue", 1
    return f"{getattr(error, 'strerror', None) or error}{where}", 1
