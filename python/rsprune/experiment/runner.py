"""Runs an experiment: selections, then a process per arm and seed, and the results so far after each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from rsprune.errors import ConfigError, RspruneError
from rsprune.evaluation.provenance import code
from rsprune.experiment import arms, distances, downstream, earlier
from rsprune.experiment.config import ArmConfig, ExperimentConfig
from rsprune.experiment.prepare import Prepared, prepare
from rsprune.experiment.results import collect
from rsprune.experiment.work import BEGUN, training_settings
from rsprune.files import write_json
from rsprune.layout import digest
from rsprune.run import Run
from rsprune.training import checkpoint

Say = Callable[[str], None]
IDENTITY = "experiment.json"  # of the folder: the settings that its numbers depend on


class RunFailed(RspruneError):
    """A training or its measurement ended with an error."""

    exit_code = 1


class Work(Protocol):
    """What a process of its own does in a folder of its own, as ``request.json`` there says."""

    module: ClassVar[str]  # of the process

    @property
    def label(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def folder(self) -> Path: ...
    @property
    def done(self) -> bool: ...


@dataclass(frozen=True)
class Planned:
    """One run: an arm with a seed."""

    arm: ArmConfig
    seed: int
    folder: Path

    module: ClassVar[str] = "rsprune.experiment.work"

    @property
    def label(self) -> str:
        return self.arm.label

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()


def experiment(
    settings: ExperimentConfig,
    out: Path,
    *,
    labels: Sequence[str] = (),
    seeds: Sequence[int] = (),
    minutes: float | None = None,
    results: Path | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Runs what is missing of an experiment, and writes its results into `out`.

    Args:
        settings: Of the experiment.
        out: Folder to make, or to go on in.
        labels: Arms to run; all if not given.
        seeds: To run; all of the settings if not given.
        minutes: After which to stop. What is being trained is stopped too, and goes on from its last
            checkpoint when the experiment is run again.
        results: ``results.parquet`` of this experiment from another folder; its runs count as done from now on.
        say: Takes notices.

    Returns:
        How many runs are done, of how many, and where the results are.

    Raises:
        ConfigError: The folder or the results are of another experiment or machine, there is no such arm or seed,
            or weights that a fine-tuning is measured with are not there.
        RunFailed: A run ended with an error; the others go on first.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    unknown = [label for label in labels if label not in {arm.label for arm in settings.arms}]
    if unknown:
        known = ", ".join(arm.label for arm in settings.arms)
        raise ConfigError(f"there is no arm {unknown[0]!r}: give one of {known}")
    if others := [seed for seed in seeds if seed not in settings.seeds]:
        known = ", ".join(map(str, settings.seeds))
        raise ConfigError(
            f"the experiment has no seed {others[0]}: give one of {known}, or add it to its seeds"
        )
    downstream.check_weights(settings)
    with Run(out).lock():
        _check_identity(settings, out)
        _check_machine(settings, out)
        about = {"identity": digest(settings.identity()), "settings": asdict(settings)}
        write_json(out / IDENTITY, {**about, **code()})
        if results:
            earlier.adopt(results, settings, out)
        data = prepare(settings, out, say=say)
        if settings.measure.samples:
            for name in settings.measure.extractors:
                say(f"features of real tiles by {name}, for distances")
                distances.write_real_features(
                    data, name, weights=settings.measure.weights, device=settings.device
                )
        chosen = [arm for arm in settings.arms if not labels or arm.label in labels]
        elsewhere = earlier.load(out).done
        # Seed by seed, so that unfinished results compare all arms already.
        plan = [
            Planned(arm, seed, out / "runs" / f"{arm.slug}-{seed}")
            for seed in seeds or settings.seeds
            for arm in chosen
            if (arm.label, seed, "") not in elsewhere
        ]
        prepared = _requests(settings, data, out, plan, say)
        _floors(settings, data, out, plan, prepared)
        _execute(settings, out, plan, deadline, say)
        tunings = downstream.ready(settings, out, labels, seeds, say=say)
        _execute(settings, out, tunings, deadline, say)
        return _said(collect(settings, out), out)


def results_so_far(settings: ExperimentConfig, out: Path, *, results: Path | None = None) -> dict[str, Any]:
    """Runs nothing, and writes the results so far, as `experiment` does at its end; may run beside it.

    Raises:
        ConfigError: There is no experiment, or as for `experiment`.
    """
    _check_identity(settings, out)
    if results:
        with Run(out).lock():
            earlier.adopt(results, settings, out)
    return _said(collect(settings, out), out)


def _check_identity(settings: ExperimentConfig, out: Path) -> None:
    """Raises `ConfigError` where `out` holds an experiment with other settings, or results of one."""
    path = out / IDENTITY
    if path.is_file() and json.loads(path.read_text("utf-8"))["identity"] != digest(settings.identity()):
        raise ConfigError(
            f"{out} holds an experiment with other data, training or measurements: choose another folder with -o"
        )
    earlier.check(settings, out)


def _check_machine(settings: ExperimentConfig, out: Path) -> None:
    """Raises `ConfigError` where a run in the folder was trained on another machine, or on its other device."""
    there = {path.parent: json.loads(path.read_text("utf-8")) for path in out.glob(f"runs/*/{BEGUN}")}
    there = {folder: about for folder, about in there.items() if checkpoint.everything(folder / "model")}
    for path in out.glob("runs/*/result.json"):
        there[path.parent] = json.loads(path.read_text("utf-8"))["about"]
    for folder, about in sorted(there.items()):
        if about.get("machine") is not None:
            earlier.check_machine(folder, {about["machine"]}, settings.device)
    earlier.check_machine(out / earlier.FILE, earlier.load(out).machines, settings.device)


def _said(found: dict[str, Any], out: Path) -> dict[str, Any]:
    report = str(out / "index.html")
    return {"done": found["done"], "planned": found["planned"], "out": str(out), "report": report}


def _requests(
    settings: ExperimentConfig, data: Prepared, out: Path, plan: Sequence[Planned], say: Say
) -> dict[Path, arms.Training]:
    """Selects for every run, and writes down what its process is to do."""
    found = {}
    for run in plan:
        say(f"selecting: {run.arm.label}, seed {run.seed}")
        training = arms.select(settings, data, out, run.arm, run.seed, say=lambda _: None)
        found[run.folder] = training
        if run.done:
            _check_same(run, training)
            continue
        run.folder.mkdir(parents=True, exist_ok=True)
        values = training_settings(settings, run.seed, run.folder) | training.settings()
        request = {
            "folder": str(run.folder.absolute()), "data": str(data.path.absolute()),
            "training": {k: _absolute(k, v) for k, v in values.items()}, "measure": asdict(settings.measure),
            "device": settings.device, "kept": str(training.kept.absolute()) if training.kept else None,
        }  # fmt: skip
        write_json(run.folder / "request.json", request)
        write_json(run.folder / "arm.json", {"arm": run.arm.label, "seed": run.seed, **training.facts})
    return found


def _check_same(run: Planned, training: arms.Training) -> None:
    """Raises `ConfigError` where a run that is done was trained on other images."""
    before = json.loads((run.folder / "arm.json").read_text("utf-8"))
    if before["ids_hash"] != training.facts["ids_hash"]:
        raise ConfigError(
            f"{run.folder} was trained on another selection than {run.arm.label!r} now makes: give the arm "
            "another name, or remove that folder"
        )


def _absolute(name: str, value: Any) -> Any:
    is_path = name in ("data", "model_config") or (name in ("kept", "sample_weights") and value != "all")
    return str(Path(value).absolute()) if is_path else value


def _floors(
    settings: ExperimentConfig,
    data: Prepared,
    out: Path,
    plan: Sequence[Planned],
    found: dict[Path, arms.Training],
) -> None:
    """What real images get, of the first seed's selections; before any of an arm's runs, which so cannot change it.

    Those of a selection that is not made any more are measured anew.
    """
    if not settings.measure.samples:
        return
    path = out / "floors.json"
    first = [run for run in plan if run.seed == settings.seeds[0] and run.arm.strategy != "reweighted"]
    hashes = {distances.floor_name(run.arm.label): found[run.folder].facts["ids_hash"] for run in first}
    before = json.loads(path.read_text("utf-8")) if path.is_file() else []
    before = [row for row in before if row.get("ids_hash") == hashes.get(row["arm"], row.get("ids_hash"))]
    before = [row for row in before if row["n_generated"] <= settings.measure.samples]
    known = {row["arm"] for row in before}
    kept = {
        run.arm.label: found[run.folder].kept
        for run in first
        if distances.floor_name(run.arm.label) not in known
    }
    if kept:
        rows = distances.floors(data, kept, settings.measure, device=settings.device)
        new = (
            {**code(), **row, "ids_hash": hashes.get(row["arm"])} for row in rows if row["arm"] not in known
        )
        write_json(path, [*before, *new])


def _execute(
    settings: ExperimentConfig,
    out: Path,
    plan: Sequence[Work],
    deadline: float | None,
    say: Say,
) -> None:
    """Runs what is not done yet, `settings.workers` at once. Raises `RunFailed`."""
    waiting = [run for run in plan if not run.done]
    if waiting and deadline is not None and time.monotonic() >= deadline:
        say("time is up before a run could begin: go on with the same command")
        return
    children: set[subprocess.Popen[bytes]] = set()
    stop, failed = threading.Event(), []
    with ThreadPoolExecutor(settings.workers) as executor:
        try:
            pending: dict[Future[Any], Work] = {
                executor.submit(_child, run, settings, children, stop): run for run in waiting
            }
            while pending:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                done, _ = wait(pending, timeout=left, return_when=FIRST_COMPLETED)
                if not done:
                    say("time is up: what is being trained goes on from its last checkpoint next time")
                    break
                for future in done:
                    run = pending.pop(future)
                    if future.result() == 0:
                        say(f"done: {run.label}, seed {run.seed}")
                        collect(settings, out)
                    else:
                        failed.append(run)
                        say(f"failed: {run.label}, seed {run.seed}; see {run.folder / 'work.log'}")
        finally:
            stop.set()
            for child in list(children):
                child.terminate()
            executor.shutdown(cancel_futures=True)
    if failed:
        names = ", ".join(f"{run.label} with seed {run.seed}" for run in failed)
        raise RunFailed(
            f"{len(failed)} of {len(plan)} runs failed ({names}): see {failed[0].folder / 'work.log'}, then run "
            "the same command again"
        )


def _child(
    run: Work, settings: ExperimentConfig, children: set[subprocess.Popen[bytes]], stop: threading.Event
) -> int:
    """Exit code of the process that does a run. It ends when this process does, which holds its input."""
    if stop.is_set():
        return -1
    environment = dict(os.environ)
    if settings.device == "cpu":  # several processes of one thread are faster than the reverse
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", run.module, str(run.folder / "request.json")]
    with (run.folder / "work.log").open("ab") as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        children.add(child)
        if stop.is_set():  # since this function began, so nobody else will end it
            child.terminate()
        try:
            return child.wait()
        finally:
            children.discard(child)
            if child.stdin:
                child.stdin.close()
