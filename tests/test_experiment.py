"""A whole experiment, killed in the middle and continued: what it leaves, and that it leaves the same."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import experiment_case
from rsprune.errors import ConfigError

needs_training = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "accelerate")),
    reason="the extra [train] is not installed",
)
pytestmark = needs_training
RUNS = ("full-0", "rsprune-25-0", "full-1", "rsprune-25-1")


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return not re.search(r"^State:\s+Z", status, re.M)  # a zombie that nobody has waited for is dead


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An experiment that was killed while its second run was trained, and then run to its end."""
    folder = tmp_path_factory.mktemp("experiment")
    config, settings = experiment_case.settings(folder)
    out = folder / "out"
    code = "from rsprune.cli import main; main()"
    command = [sys.executable, "-c", code, "experiment", str(config), "-o", str(out), "-q"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    second = out / "runs" / RUNS[1]
    there = (second / "work.log", out / "index.html")
    wait_for(lambda: all(p.is_file() for p in there) or process.poll() is not None, 300)
    assert process.poll() is None
    wait_for(lambda: children(process.pid), 10)
    began = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(alive(pid) for pid in began), 30)
    before = {path: path.read_bytes() for path in out.glob("runs/*/result.json")}
    assert [path.parent.name for path in before] == [RUNS[0]]
    partial = pq.read_table(out / "results.parquet")
    again = subprocess.run(
        command[:-1], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert all(path.read_bytes() == content for path, content in before.items())
    return settings, out, partial, again.stdout


def test_partial_results_are_written_after_each_run(finished):
    _, _, partial, _ = finished
    assert set(partial["arm"].to_pylist()) == {"full"}
    assert set(partial["seed"].to_pylist()) == {0}


def test_everything_is_written(finished):
    _, out, _, said = finished
    assert "4 of 4 runs are done" in said
    for name in ("results.parquet", "results.md", "index.html", "curves.png", "last.png", "experiment.json"):
        assert (out / name).stat().st_size > 200, name
    for run in RUNS:
        with Image.open(out / "runs" / run / "grid.png") as grid:
            assert grid.size == (2 * 34, 2 * 34)
        assert not list((out / "runs" / run).glob("model/checkpoint-*"))


def test_every_number_says_what_it_depends_on(finished):
    settings, out, _, _ = finished
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert {row["step"] for row in rows} == set(settings.measure.checkpoints)
    assert {(row["arm"], row["seed"]) for row in rows} == {
        (a, s) for a in ("full", "rsprune 25 %") for s in (0, 1)
    }
    for row in rows:
        assert row["version"]
        assert row["experiment"] == "tiny"
        assert row["images_seen"] == 4 * row["step"]
        assert row["value"] > 0
    images = {row["arm"]: row["images"] for row in rows}
    assert images["rsprune 25 %"] == round(images["full"] / 4)


def test_the_mean_loss_is_that_of_its_times(finished):
    settings, out, _, _ = finished
    rows = pq.read_table(out / "results.parquet").to_pylist()
    for kind in ("natural", "balanced"):
        mine = [r for r in rows if (r["arm"], r["seed"], r["step"], r["reference"]) == ("full", 1, 6, kind)]
        mean = [r["value"] for r in mine if r["time"] is None]
        by_time = {r["time"]: r["value"] for r in mine if r["time"] is not None}
        assert list(by_time) == list(settings.measure.times)
        assert mean == [pytest.approx(np.mean(list(by_time.values())))]


def test_a_run_that_was_killed_gives_what_it_would_have_given(finished, tmp_path):
    """The request of the run that was killed, done from its start in another folder."""
    _, out, _, _ = finished
    from rsprune.experiment.work import Request, work

    run = out / "runs" / RUNS[1]
    request = replace(Request.read(run / "request.json"), folder=tmp_path / "again")
    request.folder.mkdir()
    work(request)
    first, again = (json.loads((f / "result.json").read_text())["rows"] for f in (run, request.folder))
    assert first == again


def test_a_finished_experiment_does_nothing_more(finished, rsprune, tmp_path):
    _, out, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    code, said, _ = rsprune("experiment", out.parent / "tiny.toml", "-o", out, "--json")
    assert code == 0
    assert json.loads(said)["done"] == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_page_is_one_file_and_escapes(finished):
    from rsprune.experiment import page

    settings, out, _, _ = finished
    html = (out / "index.html").read_text()
    assert html.count("data:image/png;base64,") == 4  # two pictures, two grids
    assert 'src="http' not in html
    from rsprune.experiment.results import collect

    facts = collect(settings, out)
    page.write({**facts, "title": "<script>alert(1)</script>"}, out)
    assert "<script>alert" not in (out / "index.html").read_text()
    collect(settings, out)


def test_the_text_shows_every_seed_and_names_the_corrected(finished):
    _, out, _, _ = finished
    text = (out / "results.md").read_text()
    assert "4 of 4 runs are done." in text
    assert "rsprune 25 % − full" in text
    assert text.count("(Holm)") == 1  # on the balanced reference only
    rows = pq.read_table(out / "results.parquet").to_pylist()
    for row in rows:
        if row["step"] == 6 and row["reference"] in ("natural", "balanced") and row["time"] is None:
            assert f"{row['value']:.4f}" in text


def test_another_experiment_is_refused(finished):
    from rsprune.experiment.runner import experiment, results_so_far

    settings, out, _, _ = finished
    other = replace(settings, training={**settings.training, "learning_rate": 0.1})
    with pytest.raises(ConfigError, match="holds an experiment with other data, training or measurements"):
        experiment(other, out)
    with pytest.raises(ConfigError, match="holds an experiment with other data, training or measurements"):
        results_so_far(other, out)
    arms = (settings.arms[0], replace(settings.arms[1], name="rsprune 25", keep=0.5))
    with pytest.raises(ConfigError, match="was trained on another selection than 'rsprune 25' now makes"):
        experiment(replace(settings, arms=arms, primary=()), out)
    with pytest.raises(ConfigError, match="there is no arm 'best'"):
        experiment(settings, out, labels=["best"])
    with pytest.raises(ConfigError, match="has no seed 7: give one of 0, 1, or add it"):
        experiment(settings, out, seeds=[7])


def test_runs_of_another_machine_are_not_gone_on_with(finished, tmp_path):
    from rsprune.experiment.runner import experiment

    settings, out, _, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    path = copy / "runs" / RUNS[0] / "result.json"
    result = json.loads(path.read_text())
    result["about"]["machine"] = "Abacus 1"
    path.write_text(json.dumps(result))
    with pytest.raises(ConfigError, match=r"was trained on another machine \(Abacus 1; this is "):
        experiment(settings, copy)
    path.unlink()  # as if it had not come to its end
    begun = path.with_name("begun.json")
    assert (
        json.loads(begun.read_text())["machine"]
        == json.loads((path.parents[1] / RUNS[1] / "begun.json").read_text())["machine"]
    )
    begun.write_text(json.dumps({"machine": "Abacus 1"}))
    assert experiment(settings, copy, minutes=0)["done"] == 3
    (path.parent / "model/checkpoint-2").mkdir()
    with pytest.raises(ConfigError, match=r"was trained on another machine \(Abacus 1; this is "):
        experiment(settings, copy)


def test_time_that_is_up_stops_before_the_next_run(finished, tmp_path):
    """No run is started in no time, and nothing is called done."""
    from rsprune.experiment.runner import experiment

    settings, out, _, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "runs" / RUNS[3] / "result.json").unlink()
    said = []
    found = experiment(settings, copy, minutes=0, say=said.append)
    assert found["done"] == 3
    assert any("time is up" in sentence for sentence in said)


def test_models_are_fine_tuned_alike_and_beside_fresh_weights(finished, monkeypatch):
    from rsprune.experiment.config import DownstreamConfig
    from rsprune.experiment.downstream import ready
    from rsprune.experiment.runner import experiment

    settings, out, _, _ = finished
    training = {"max_train_steps": 2, "train_batch_size": 2}
    task = DownstreamConfig(
        task="super-resolution",
        arms=("full",),
        settings={"scale": 2, "lpips": False, "estimates": 2, "sample_steps": 2},
        training=training,
    )
    experiment(replace(settings, downstream=(task,)), out, labels=["full"], seeds=[1])
    folders = sorted(path.parent.name for path in out.glob("downstream/*/result.json"))
    assert folders == ["super-resolution-x2-from-scratch-1", "super-resolution-x2-full-1"]
    assert not list(out.glob("downstream/*/model/checkpoint-*"))
    rows = [r for r in pq.read_table(out / "results.parquet").to_pylist() if r["reference"] == "downstream"]
    by = {(r["arm"], r["metric"]): r for r in rows}
    assert by["full", "super-resolution x2: expected psnr"]["images_seen"] == 4
    bicubic = [by[arm, "super-resolution x2: bicubic psnr"]["value"] for arm in ("full", "from scratch")]
    assert bicubic[0] == bicubic[1]
    learnt = [by[arm, "super-resolution x2: expected psnr"]["value"] for arm in ("full", "from scratch")]
    assert learnt[0] != learnt[1]
    held_out = json.loads((out / "data/prepared.json").read_text())["held_out"]
    assert len(list(out.glob("data/downstream/held_out/*/*.png"))) == held_out
    assert all(row["n_real"] == len(list(out.glob("data/downstream/held_out/*/*.png"))) for row in rows)
    text = (out / "results.md").read_text()
    value = by["from scratch", "super-resolution x2: expected psnr"]["value"]
    assert f"| from scratch | {value:.3f} |" in text
    assert f"| bicubic | {bicubic[0]:.3f} |" in text
    assert "Fine-tuned: super-resolution x2" in (out / "index.html").read_text()
    arm = out / "runs/full-1/arm.json"
    given = arm.read_text()
    arm.write_text(given.replace(json.loads(given)["ids_hash"], "of another selection"))
    tuned = replace(settings, downstream=(task,))
    with pytest.raises(ConfigError, match="or from another model"):
        ready(tuned, out, ["full"], [1], say=print)
    arm.write_text(given)
    assert len(ready(tuned, out, ["full"], [1], say=print)) == 2
    moved = out.rename(out.with_name("moved"))  # and all is as it was
    assert all(tuning.done for tuning in ready(tuned, moved, ["full"], [1], say=print))
    moved.rename(out)
    # Cut in the middle of a picture's tiles, and asked for again: all are there.
    shutil.rmtree(out / "data/downstream/train")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            ready(tuned, out, ["full"], [1], say=print)
    assert not (out / "data/downstream/train").exists()
    ready(tuned, out, ["full"], [1], say=print)
    assert list(out.glob("data/downstream/train/*/*.png"))
    other = replace(task, training={**training, "learning_rate": 0.5})
    with pytest.raises(ConfigError, match="was fine-tuned with other settings"):
        experiment(replace(settings, downstream=(other,)), out, labels=["full"], seeds=[1])


@pytest.mark.parametrize(
    ("task", "said"),
    [("super-resolution", "the linear heads of LPIPS are not there"), ("semantic", "the weights of alexnet")],
)
def test_weights_that_are_needed_hours_later_are_asked_for_first(tmp_path, monkeypatch, task, said):
    """For super-resolution the heads are not in the cache though the network is; for layouts nothing is."""
    from rsprune.evaluation.extractors.weights import Weights
    from rsprune.experiment.config import DownstreamConfig
    from rsprune.experiment.runner import experiment

    monkeypatch.setenv("RSPRUNE_CACHE", str(tmp_path / "cache"))
    if task == "super-resolution":
        monkeypatch.setattr(Weights, "load", lambda *_: {})
    _, settings = experiment_case.settings(tmp_path)
    scenes = (replace(settings.data.scenes[0], path="bluemarble"),)
    settings = replace(
        settings, data=replace(settings.data, scenes=scenes), downstream=(DownstreamConfig(task),)
    )
    with pytest.raises(ConfigError, match=said):
        experiment(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arms_that_come_later_get_floors_too(tmp_path, monkeypatch):
    """Nothing is trained here: floors are of real tiles, and are measured before any run."""
    from rsprune.experiment import runner

    monkeypatch.setattr(runner, "_execute", lambda *_: None)
    _, settings = experiment_case.settings(tmp_path)
    measure = replace(settings.measure, samples=12, extractors=("lite0",))
    settings, out = replace(settings, measure=measure), tmp_path / "out"
    found = []
    for labels in (["full"], [], []):
        runner.experiment(settings, out, labels=labels)
        found.append(json.loads((out / "floors.json").read_text()))
    first, both, again = found
    assert {row["arm"] for row in first} == {"real: second half", "real: full"}
    assert {row["arm"] for row in both} == {"real: second half", "real: full", "real: rsprune 25 %"}
    assert both[: len(first)] == first
    assert {row["n_generated"] for row in both if row["arm"] != "real: second half"} == {12}
    assert all(row["n_generated"] <= 12 for row in both)
    assert again == both
    for row in (stale := json.loads(json.dumps(both))):
        if row["arm"] == "real: full":
            row |= {"value": -1.0, "ids_hash": "of another selection"}
    (out / "floors.json").write_text(json.dumps(stale))
    runner.experiment(settings, out)
    anew = json.loads((out / "floors.json").read_text())
    assert sorted(map(str, anew)) == sorted(map(str, both))
