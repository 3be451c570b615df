"""The ``rsprune`` command: one verb per stage, and `run` for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from rsprune import config, engine, stages, toml
from rsprune.api import check_workers
from rsprune.cli_options import FLAG, READS_THE_RUN, SECTIONS, app, call, one_of, verb
from rsprune.engine_ray import Ray
from rsprune.errors import ConfigError
from rsprune.export import Format
from rsprune.locations import source_values
from rsprune.run import Run
from rsprune.strategies import load_strategy
from rsprune.terminal import Terminal

Data = Annotated[
    list[str] | None,
    typer.Argument(metavar="DATA", help="Folders or scenes, as PATH or PATH=NAME.", show_default=False),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)]
Out = Annotated[
    Path, typer.Option("-o", "--out", help="The run folder to make or to continue.", show_default=False)
]


# Options of a section that say the same thing in different ways.
_BUDGET = ("select", "keep", "prune", "n")
_THRESHOLD = ("filter", "entropy_drop", "entropy_min", "entropy_otsu")


def _values(base: dict[str, Any], sources: list[dict[str, Any]], flags: dict[str, Any]) -> dict[str, Any]:
    """Plain settings values: `base` (a TOML file's), overridden by the flags that were given."""
    given = {k: v for k, v in flags.items() if v is not None and v != []}
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in base.items()}
    for section, *names in (_BUDGET, _THRESHOLD):
        chosen = [name for name in names if name in given]
        if len(chosen) > 1:
            *first, last = (f"--{name.replace('_', '-')}" for name in names)
            raise ConfigError(f"{', '.join(first)} and {last} exclude each other: give one of them")
        if chosen:  # in place of the one that the run had
            values[section] = {k: v for k, v in values.get(section, {}).items() if k not in names}
    if "prune" in given:
        if not 0 <= given["prune"] < 1:
            raise ConfigError(f"--prune is {given['prune']:g}: give a share from 0 to below 1")
        given["keep"] = round(1 - given["prune"], 12)
    for section in SECTIONS:
        mine = {k: given[k] for k in SECTIONS[section].__pydantic_fields__ if k in given}
        if section != "source":
            values[section] = {**values.get(section, {}), **mine}
    sources = sources or values["scan"].get("sources", [])
    source_flags = {k: given[k] for k in SECTIONS["source"].__pydantic_fields__ if k in given}
    values["scan"]["sources"] = [{**s, **source_flags} for s in sources]
    if "seed" in given:
        values["seed"] = given["seed"]
    return values


@contextmanager
def _job(
    path: Path, flags: dict[str, Any], sources: list[dict[str, Any]] | None = None
) -> Iterator[tuple[stages.Job, Terminal]]:
    """The job that flags describe, its run folder locked; without `sources` on the settings of the run."""
    job, terminal = _wanted(path, flags, sources)
    with job.run.lock():
        yield job, terminal


def _wanted(
    path: Path, flags: dict[str, Any], sources: list[dict[str, Any]] | None
) -> tuple[stages.Job, Terminal]:
    """As `_job`; nothing is written or locked."""
    terminal = Terminal(quiet=flags["quiet"] or flags["as_json"], as_json=flags["as_json"])
    base: dict[str, Any] = {}
    run = Run(path)
    if sources is None:
        run = Run.open(path)
        if not flags["overwrite"]:
            run.check()
        base = toml.load_values(run.config_path)
    if flags["config_file"]:
        extra = toml.load_values(flags["config_file"])
        base = {
            **base,
            **{k: {**base.get(k, {}), **v} if isinstance(v, dict) else v for k, v in extra.items()},
        }
    settings = config.settings(_values(toml.sections(base), sources or [], flags))
    cluster = _cluster(path, flags)
    device = engine.choose_device(flags["device"])
    if flags["device"] == "auto":
        terminal.say(f"device: {device}")
    job = stages.Job(
        Run(cluster.folder) if cluster else run,  # nodes have working folders of their own
        settings,
        workers=check_workers(flags["workers"]),
        device=device,
        cluster=cluster,
        overwrite=flags["overwrite"],
        progress=terminal.progress,
        say=terminal.say,
    )
    return job, terminal


def _cluster(path: Path, flags: dict[str, Any]) -> Ray | None:
    """The cluster that flags ask for, None where parts are computed on this machine. Raises `ConfigError`."""
    given = {f.name: flags.get(f.name) for f in fields(config.EngineConfig)}
    wanted = config.checked(config.EngineConfig, {k: v for k, v in given.items() if v is not None})
    if wanted.engine == "local":
        return None
    return Ray(path.absolute(), wanted.address, flags["workers"], wanted.gpus_per_worker)


@verb("source", "scan", "score", "embed", "filter", "cluster", "select", config.EngineConfig)
def run(
    data: Data = None,
    *,
    out: Out,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar=FLAG, help="Only say how long it will take and what it will need."),
    ] = False,
    flags: dict[str, Any],
) -> None:
    """Select from images: every stage up to the report; continues where it stopped."""
    sources = [source_values(p) for p in data or ()]
    if dry_run:
        from rsprune.stages.dry_run import dry_run as measure

        job, terminal = _wanted(out, flags, sources)
        expected = measure(job)
        return terminal.result(expected.to_json(), expected.in_words())
    with _job(out, flags, sources) as (job, terminal):
        stages.run_all(job)
        terminal.summary(job.run)


@verb("source", "scan", config.EngineConfig)
def scan(data: Data = None, *, out: Out, flags: dict[str, Any]) -> None:
    """List images or windows, read headers, settle radiometry."""
    with _job(out, flags, [source_values(p) for p in data or ()]) as (job, terminal):
        stages.scan_images(job)
        terminal.finished("scan", job.run)


@verb("score", config.EngineConfig)
def score(run: RunDir, flags: dict[str, Any]) -> None:
    """Entropy and the guards of every image."""
    with _job(run, flags) as (job, terminal):
        stages.score_images(job)
        terminal.finished("score", job.run)


@verb("embed", config.EngineConfig)
def embed(run: RunDir, flags: dict[str, Any]) -> None:
    """Features of every image, from an encoder or a file."""
    with _job(run, flags) as (job, terminal):
        stages.embed_images(job)
        terminal.finished("embed", job.run)


@verb("filter", "cluster")
def cluster(run: RunDir, flags: dict[str, Any]) -> None:
    """Scenes by the labelled reference, and clusters."""
    with _job(run, flags) as (job, terminal):
        stages.cluster_images(job)
        terminal.finished("cluster", job.run)


@verb("filter", "select")
def select(run: RunDir, flags: dict[str, Any]) -> None:
    """Decide which images to keep; reads no image."""
    with _job(run, flags) as (job, terminal):
        load_strategy(job.settings.select.strategy)  # a wrong name must not cost the selection that is there
        begun = job.run.marker("cluster") is not None and not job.run.complete("cluster")
        if begun or job.settings.filter != job.run.settings.filter:
            stages.cluster_images(job)
        stages.select_images(job)
        terminal.summary(job.run)


@verb(without=READS_THE_RUN)
def report(run: RunDir, flags: dict[str, Any]) -> None:
    """One self-contained HTML page about the run."""
    with _job(run, flags) as (job, terminal):
        stages.write_page(job)
        terminal.finished("report", job.run)


@verb(without=(*READS_THE_RUN, "overwrite"))
def export(
    run: RunDir,
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.", show_default=False)],
    format: Annotated[
        Format, typer.Option(metavar="<word>", help=f"What to write. {one_of(Format)}")
    ] = "list",
    shard_size: Annotated[
        float, typer.Option(metavar="<float>", help="Most megabytes per shard or table.")
    ] = 500,
    flags: dict[str, Any],
) -> None:
    """Write the kept images: lists, copies, links, tar shards, tables or footprints."""
    from rsprune.export import export as export_kept

    with _job(run, flags) as (job, terminal):
        result = export_kept(job.run, out, format, shard_size=shard_size)
        terminal.result(
            {"count": result.count, "path": str(result.path)}, f"{result.count:,} images: {result.path}"
        )


@verb(without=(*READS_THE_RUN, "overwrite", "quiet"))
def explain(
    run: RunDir,
    id: Annotated[str, typer.Argument(metavar="ID", help="An image's id.")],
    flags: dict[str, Any],
) -> None:
    """Why an image was kept or dropped."""
    from rsprune.explain import explain as explain_image
    from rsprune.explain import format_explanation

    facts = explain_image(Run.open(run), id)
    Terminal(as_json=flags["as_json"]).result(facts, format_explanation(facts))


@verb(without=("workers", "config_file", "overwrite"))
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Two or more run folders.", show_default=False)
    ],
    *,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="PNG to draw.", show_default=False)] = None,
    judge: Annotated[
        str,
        typer.Option(
            metavar="<name>", help="Whose features say what is near: statistics, an encoder, or FILE.npy."
        ),
    ] = "statistics",
    sample: Annotated[
        int, typer.Option(min=1, metavar="<int>", help="Dropped images per run to judge coverage on.")
    ] = 2048,
    flags: dict[str, Any],
) -> None:
    """Overlap of selections, shift of scenes and clusters, coverage of what was dropped."""
    from rsprune.compare import compare as compare_runs

    opened = [Run.open(run) for run in runs]
    device = engine.choose_device(flags["device"])
    facts = compare_runs(opened, judge=judge, sample=sample, seed=flags["seed"] or 0, device=device)
    if out:
        from rsprune.compare_figure import draw_comparison

        draw_comparison(facts, out)
        facts["picture"] = str(out)
    Terminal(quiet=flags["quiet"], as_json=flags["as_json"]).comparison(facts)


@verb("source", "scan", "embed", config.EngineConfig, without=("transform_sample",))
def reference(
    data: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Folder with a folder of images per class.", show_default=False),
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Parquet file to write.", show_default=False)],
    flags: dict[str, Any],
) -> None:
    """Encode a labelled reference once, for --reference FILE in any run with that encoder."""
    from rsprune.stages.references import check_output, write_reference

    check_output(out, overwrite=flags["overwrite"])
    work = out.with_name(f".{out.name}.work")
    with _job(work, flags, [source_values(data)]) as (job, terminal):
        facts = write_reference(job, out)
    said = f"{facts['images']:,} images of {len(facts['classes'])} classes by {facts['encoder']}: {out}"
    terminal.result(facts, f"{said} (licence: {facts['licence']})")


@verb("cluster")
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")] = Path("demo"),
    *,
    flags: dict[str, Any],
) -> None:
    """The whole of `run` on real imagery that is installed with 'rsprune\\[demo]'."""
    from rsprune.demo import prepare

    Terminal(quiet=flags["quiet"] or flags["as_json"]).say(f"preparing imagery in {out / 'data'}")
    data = prepare(out / "data")
    if data.reference and not flags["reference"]:
        flags["reference"] = [str(data.reference)]
    flags["part_size"] = 256  # a few thousand images: smaller parts spread better over the workers
    with _job(out, flags, [asdict(source) for source in data.sources]) as (job, terminal):
        for sentence in data.notes:
            terminal.say(sentence)
        stages.run_all(job)
        terminal.summary(job.run)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print one line of JSON.")] = False,
) -> None:
    """Version, build, what is there, and how to get what is missing."""
    from rsprune.about import about, format_about

    facts = about()
    Terminal(as_json=as_json).result(facts, format_about(facts))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``rsprune`` command."""
    call(arguments)


# Last, as help lists verbs in the order that they were added.
import rsprune.evaluation.cli  # noqa: E402
import rsprune.experiment.cli  # noqa: E402
import rsprune.finetuning.cli  # noqa: E402
import rsprune.training.cli  # noqa: E402, F401
