"""Results of the same experiment from another folder: what they hold counts as done.

So an experiment that takes days is run in slices, and of a slice only ``results.parquet`` has to be kept. All slices
have to be of one kind of machine: the same arm and seed ended with losses up to 1.4 % apart on two of them, which is as
much as arms differ by (docs/evidence.md).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune.errors import ConfigError
from rsprune.experiment.config import ArmConfig, ExperimentConfig
from rsprune.experiment.work import machine
from rsprune.files import write_table
from rsprune.layout import digest

FILE = "earlier.parquet"
KEY = b"rsprune.experiment"  # in the metadata of results

Row = dict[str, Any]


@dataclass(frozen=True)
class Earlier:
    """Rows of runs that were done elsewhere, and what those runs were given, by the arm's label."""

    rows: list[Row] = field(default_factory=list)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def done(self) -> set[tuple[str, int | None, str]]:
        return {key(row) for row in self.rows}

    @property
    def machines(self) -> set[str]:
        return {row["machine"] or "not known" for row in self.rows if row["train_seconds"]}


def key(row: Row) -> tuple[str, int | None, str]:
    """Which piece of work a row is of: arm, seed, and the fine-tuning's label ("" is the run itself)."""
    task = row["metric"].partition(":")[0] if row.get("reference") == "downstream" else ""
    return row["arm"], row.get("seed"), task


def marked(table: pa.Table, settings: ExperimentConfig, arms: list[dict[str, Any]]) -> pa.Table:
    """The table of results with what a later slice has to know: the settings, and what each arm was given."""
    given = {arm["label"]: {k: v for k, v in arm.items() if k != "grid"} for arm in arms}
    about = {"identity": digest(settings.identity()), "settings": asdict(settings), "arms": given}
    return table.replace_schema_metadata({KEY: json.dumps(about).encode()})


def adopt(path: Path, settings: ExperimentConfig, out: Path) -> None:
    """Adds results to those from elsewhere that an experiment's folder has; a run that both have is taken from `path`.

    Raises:
        ConfigError: They are of another experiment, or of another kind of machine.
    """
    table, about = _read(path)
    _check(path, about, settings)
    check_machine(path, Earlier(table.to_pylist()).machines, settings.device)
    if (out / FILE).is_file():
        before, about_before = _read(out / FILE)
        rows = table.to_pylist()
        again = {key(row) for row in rows}
        rows = [*(row for row in before.to_pylist() if key(row) not in again), *rows]
        table = pa.Table.from_pylist(rows, table.schema)
        # A slice knows what its own arms were given, and of the others their names.
        given = about_before["arms"], about["arms"]
        about["arms"] = {k: {**given[0].get(k, {}), **given[1].get(k, {})} for k in {**given[0], **given[1]}}
        both = [*about_before["settings"]["arms"], *about["settings"]["arms"]]
        about["settings"]["arms"] = list({ArmConfig(**arm).label: arm for arm in both}.values())
    write_table(out / FILE, table.replace_schema_metadata({KEY: json.dumps(about).encode()}))


def check(settings: ExperimentConfig, out: Path) -> None:
    """Raises `ConfigError` where what `adopt` has copied into the folder is of another experiment."""
    if (path := out / FILE).is_file():
        _check(path, _read(path)[1], settings)


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    try:
        table = pq.read_table(path)
        return table, json.loads((table.schema.metadata or {})[KEY])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        raise ConfigError(
            f"{path} holds no results of an experiment: give the results.parquet of one"
        ) from None


def _check(path: Path, about: dict[str, Any], settings: ExperimentConfig) -> None:
    if about["identity"] != digest(settings.identity()):
        raise ConfigError(
            f"{path} is of an experiment with other data, training or measurements: its numbers cannot be compared"
        )
    before = {ArmConfig(**arm).label: _selection(arm) for arm in about["settings"]["arms"]}
    for arm in settings.arms:
        if before.get(arm.label, _selection(asdict(arm))) != _selection(asdict(arm)):
            raise ConfigError(
                f"{path} has another selection under the name {arm.label!r}: give the arm another name"
            )


def check_machine(path: Path, there: set[str], device: str) -> None:
    """Raises `ConfigError` where what lies at `path` was trained on other machines than this one's device."""
    here = machine(device)
    if there - {here}:
        raise ConfigError(
            f"{path} was trained on another machine ({', '.join(sorted(there - {here}))}; this is {here}), and "
            "machines move losses by as much as arms differ: run all arms on one kind of machine"
        )


def load(out: Path) -> Earlier:
    """What `adopt` has copied into the folder, or nothing."""
    if not (out / FILE).is_file():
        return Earlier()
    table, about = _read(out / FILE)
    return Earlier(table.to_pylist(), about["arms"])


def _selection(arm: dict[str, Any]) -> str:
    return digest({name: value for name, value in arm.items() if name != "name"})
