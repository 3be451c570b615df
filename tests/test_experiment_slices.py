"""An experiment in slices: what one folder has done counts in another one, by its results alone."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import experiment_case
from rsprune.errors import ConfigError
from rsprune.experiment.config import ArmConfig, DownstreamConfig
from rsprune.experiment.earlier import FILE, KEY, adopt, load

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "accelerate")),
    reason="the extra [train] is not installed",
)
FULL, CHOSEN = "full", "rsprune 25 %"
TASK = DownstreamConfig(
    task="super-resolution",
    settings={"scale": 2, "lpips": False, "estimates": 2, "sample_steps": 2},
    training={"max_train_steps": 2, "train_batch_size": 2},
    from_scratch=False,
)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """The full arm trained and fine-tuned in one folder, and the other arm in a second one that has its results."""
    from rsprune.experiment.runner import experiment

    folder = tmp_path_factory.mktemp("slices")
    _, settings = experiment_case.settings(folder)
    settings = replace(settings, downstream=(TASK,))
    first, second, said = folder / "first", folder / "second", []
    experiment(settings, first, labels=[FULL], seeds=[0])
    results = first / "results.parquet"
    found = experiment(settings, second, seeds=[0], results=results, say=said.append)
    return settings, first, second, found, said


def numbers(path, arm):
    """Everything measured of an arm: what it was measured on, and the value."""
    names = ("seed", "step", "reference", "metric", "time", "value", "revision", "machine")
    return [tuple(r[name] for name in names) for r in pq.read_table(path).to_pylist() if r["arm"] == arm]


def test_what_was_done_elsewhere_is_not_done_again(slices):
    _, first, second, found, _ = slices
    assert found["done"] == 2
    assert [path.parent.name for path in second.glob("runs/*/result.json")] == ["rsprune-25-0"]
    assert [path.parent.name for path in second.glob("downstream/*/result.json")] == [
        "super-resolution-x2-rsprune-25-0"
    ]
    before = numbers(first / "results.parquet", FULL)
    assert len(before) > 50
    assert before == numbers(second / "results.parquet", FULL)


def test_results_of_both_are_compared_in_one_table(slices):
    settings, _, second, _, _ = slices
    rows = pq.read_table(second / "results.parquet").to_pylist()
    assert {(row["arm"], row["seed"]) for row in rows} == {(FULL, 0), (CHOSEN, 0)}
    assert all(row["machine"] for row in rows if row["reference"] != "downstream")
    text = (second / "results.md").read_text()
    assert "2 of 4 runs are done." in text
    assert f"| {CHOSEN} − {FULL} |" in text
    images = {row["arm"]: row["images"] for row in rows if row["reference"] == "natural"}
    assert (
        f"| {FULL} | {images[FULL]:,} | 0 |" in text
    )  # what it was given is known, though not selected here
    assert text.count("| full |") > 5
    tuned = {r["arm"]: r["value"] for r in rows if r["metric"] == "super-resolution x2: expected psnr"}
    line = f"{CHOSEN} − {FULL} | {tuned[CHOSEN] - tuned[FULL]:+.3f} |"
    assert line in text
    assert line.replace(" | ", "</td><td>").replace(" |", "</td>") in (second / "index.html").read_text()


def test_a_third_folder_takes_the_sum(slices, tmp_path):
    """Results that have earlier ones in them are complete; a run that is done here goes before an earlier one."""
    from rsprune.experiment.runner import experiment

    settings, _, second, _, _ = slices
    third = tmp_path / "third"
    found = experiment(settings, third, seeds=[0], results=second / "results.parquet")
    assert found["done"] == 2
    assert not list(third.glob("runs/*"))
    for arm in (FULL, CHOSEN):
        assert sorted(map(str, numbers(third / "results.parquet", arm))) == sorted(
            map(str, numbers(second / "results.parquet", arm))
        )


def test_results_of_several_slices_are_added(slices, tmp_path):
    """Given one after the other; and what is there is looked at again when the folder goes on."""
    from rsprune.experiment.runner import experiment

    settings, first, second, _, _ = slices
    both = pq.read_table(second / "results.parquet")
    alone = both.filter(pc.equal(both["arm"], CHOSEN))
    pq.write_table(alone, tmp_path / "alone.parquet")
    out = tmp_path / "out"
    out.mkdir()
    adopt(tmp_path / "alone.parquet", settings, out)
    adopt(first / "results.parquet", settings, out)
    assert sorted(map(str, load(out).rows)) == sorted(map(str, both.to_pylist()))
    about = json.loads(alone.schema.metadata[KEY])
    about["arms"][FULL] = {"label": FULL, "seeds": []}  # as of a slice that has not run it
    pq.write_table(alone.replace_schema_metadata({KEY: json.dumps(about)}), tmp_path / "alone.parquet")
    adopt(tmp_path / "alone.parquet", settings, out)
    assert load(out).arms[FULL]["images"] > 0
    assert load(out).done == {(arm, 0, task) for arm in (FULL, CHOSEN) for task in ("", TASK.label)}
    adopt(first / "results.parquet", settings, out)
    assert len(load(out).rows) == len(both)
    table = pq.read_table(out / FILE)
    at = table.schema.get_field_index("machine")
    pq.write_table(table.set_column(at, "machine", pa.array(["Abacus 1"] * len(table))), out / FILE)
    with pytest.raises(ConfigError, match=r"was trained on another machine \(Abacus 1; this is "):
        experiment(settings, out)
    arms = (ArmConfig("full"), ArmConfig("random", name=CHOSEN, keep=0.25))
    with pytest.raises(ConfigError, match="has another selection under the name 'rsprune 25 %'"):
        experiment(replace(settings, arms=arms, primary=()), out)


def test_fine_tunings_whose_models_are_elsewhere_are_named(slices, tmp_path):
    from rsprune.experiment.runner import experiment

    settings, _, second, _, _ = slices
    other = replace(TASK, settings={**TASK.settings, "scale": 4})
    said = []
    experiment(
        replace(settings, downstream=(other,)),
        tmp_path / "other",
        seeds=[0],
        results=second / "results.parquet",
        say=said.append,
    )
    assert [line for line in said if line.startswith("2 fine-tunings are left out: their models are where")]
    assert not (tmp_path / "other" / "downstream").exists()


def test_results_of_something_else_are_refused(slices, tmp_path, rsprune):
    from rsprune.experiment.runner import experiment

    settings, first, _, _, _ = slices
    results, out = first / "results.parquet", tmp_path / "out"
    slower = replace(settings, training={**settings.training, "learning_rate": 0.1})
    with pytest.raises(ConfigError, match="is of an experiment with other data, training or measurements"):
        experiment(slower, out / "a", results=results)
    arms = (ArmConfig("full"), ArmConfig("random", name=CHOSEN, keep=0.25))
    with pytest.raises(ConfigError, match="has another selection under the name 'rsprune 25 %'"):
        experiment(replace(settings, arms=arms, primary=()), out / "b", results=results)
    table = pq.read_table(results)
    at = table.schema.get_field_index("machine")
    moved = table.set_column(at, "machine", pa.array(["Abacus 1"] * len(table)))
    pq.write_table(moved, tmp_path / "moved.parquet")
    with pytest.raises(ConfigError, match=r"was trained on another machine \(Abacus 1; this is "):
        experiment(settings, out / "e", results=tmp_path / "moved.parquet")
    other = tmp_path / "table.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    for path in (other, tmp_path / "nothing.parquet"):
        with pytest.raises(ConfigError, match="holds no results of an experiment: give the results.parquet"):
            experiment(settings, out / "c", results=path)
    config = first.parent / "tiny.toml"
    code, _, said = rsprune("experiment", config, "-o", out / "d", "--results", other)
    assert code == 2
    assert "holds no results of an experiment" in said
