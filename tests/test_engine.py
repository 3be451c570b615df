"""Parts on worker processes: what is tried again, what is given up, and what ends the run."""

from __future__ import annotations

import errno
import importlib.util
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import collection
import rsprune
from dying import dies
from means import Means
from rsprune import engine, reading, stages
from rsprune.engine import Failed, attempt, map_parts
from rsprune.errors import ConfigError, StoreError, TooManyUnreadable
from rsprune.run import Run
from rsprune.stages import disk, encode


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(engine, "PAUSE", 0.0)


class Fails:
    """Raises `error` the first `times` it is called."""

    def __init__(self, error: Exception, times: int):
        self.error, self.times, self.calls = error, times, 0

    def __call__(self, task):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return task


@pytest.mark.parametrize(
    "error", [ValueError("a\n b"), StoreError("no answer"), ConnectionResetError(104, "reset")]
)
def test_a_part_is_tried_three_times(error):
    assert attempt(Fails(error, 2), "x") == "x"
    failed = attempt(again := Fails(error, 3), "x")
    assert again.calls == 3
    assert (failed.task, type(failed)) == ("x", Failed)
    assert str(error).split()[-1] in failed.reason
    assert "\n" not in failed.reason
    assert "Traceback" in failed.trace


@pytest.mark.parametrize(
    "error", [ConfigError("no such encoder"), OSError(errno.ENOSPC, "full"), MemoryError()]
)
def test_what_another_attempt_cannot_mend_is_raised_at_once(error):
    with pytest.raises(type(error)):
        attempt(again := Fails(error, 1), "x")
    assert again.calls == 1


def test_a_worker_that_dies_costs_no_other_part(tmp_path):
    """One lives the second time; another one never does."""
    tasks = [(i, str(tmp_path / f"{i}"), {3: 1, 5: 99}.get(i, 0)) for i in range(8)]
    results = list(map_parts(dies, tasks, 2))
    failed = [r for r in results if isinstance(r, Failed)]
    assert sorted(r for r in results if not isinstance(r, Failed)) == [0, 1, 2, 3, 4, 6, 7]
    assert [f.task[0] for f in failed] == [5]
    assert failed[0].reason == "ended its worker process 3 times"


def test_few_tasks_are_in_flight(monkeypatch):
    most, now, lock = [0], [0], threading.Lock()

    class Pool(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            return super().submit(function, *arguments)

    def task(i):
        with lock:
            now[0] -= 1
        return i

    with Pool(3) as pool:
        monkeypatch.setattr(engine, "_pool", lambda workers: pool)
        assert sorted(map_parts(task, range(100), 3)) == list(range(100))
    assert most[0] <= 6


# Parts that are given up -------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    for i, tile in enumerate(collection.tiles()):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{i:02d}.png").write_bytes(tile.read_bytes())
    return tmp_path / "in"


@pytest.fixture
def settings(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32))
    return {"scan": {"part_size": 4, "max_bad": 0.4}, "embed": {"embeddings": str(tmp_path / "x.npy")}}


def store_without(monkeypatch, broken: set[str]) -> list[str]:
    """Images in `broken` cannot be fetched; gives a list of those that are asked for."""
    image, asked = reading.Reader.image, []

    def fetch(self, row):
        asked.append(row["id"])
        if row["id"] in broken:
            raise StoreError("the store does not answer")
        return image(self, row)

    monkeypatch.setattr(reading.Reader, "image", fetch)
    monkeypatch.setattr(stages, "write_page", lambda job: None)  # shows images as well
    return asked


@pytest.mark.parametrize("size", [1, 8192])
def test_a_part_that_is_given_up_is_unreadable_until_the_next_run(images, tmp_path, monkeypatch, size):
    """One image that the embedding space is estimated on is of another part, 8,192 are of that one as well."""
    monkeypatch.setattr(encode, "load_encoder", lambda name, device: Means())
    settings = {
        "scan": {"part_size": 4, "max_bad": 0.4},
        "embed": {"encoder": "means", "transform_sample": size},
    }
    arguments = {"n": 6, "workers": 1, "settings": settings}
    asked = store_without(monkeypatch, broken := set())
    whole = rsprune.prune(images, tmp_path / "whole", **arguments)
    asked.clear()
    broken.add("02.png")
    run = rsprune.prune(images, tmp_path / "run", **arguments)
    assert asked.count("02.png") == 3
    lost = {d["id"] for d in run.decisions.to_pylist() if d["reason"] == "unreadable"}
    (name,) = run.marker("score").failed
    assert lost == set(run.table("scan").filter(in_part(run, name))["id"].to_pylist())
    assert "02.png" in lost
    errors = {r["id"]: r["error"] for r in run.table("score").to_pylist()}
    assert {i for i in errors if errors[i] == "the store does not answer"} == lost
    assert [e["failed"] for e in run.log() if "failed" in e] == [name]
    asked.clear()
    broken.clear()
    mended = rsprune.prune(images, tmp_path / "run", **arguments)
    assert set(asked) == (lost if size == 1 else {f"{i:02d}.png" for i in range(24)})
    assert mended.kept_ids == whole.kept_ids
    names = "decisions.parquet", "transform.safetensors", "radiometry.json"
    for ours, theirs in zip(results(mended, *names), results(whole, *names), strict=True):
        assert ours.read_bytes() == theirs.read_bytes(), ours
    asked.clear()
    rsprune.prune(images, tmp_path / "run", **arguments)
    assert asked == []


def results(run: Run, *names: str) -> list[Path]:
    return [run.path / name for name in names] + [f for s in ("scan", "score", "embed") for f in run.parts(s)]


def in_part(run: Run, name: str):
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return pc.is_in(run.table("scan")["id"], pq.read_table(run.part("scan", name))["id"].combine_chunks())


def test_too_many_given_up_stop_the_run_early(images, tmp_path, settings, monkeypatch):
    asked = store_without(monkeypatch, {f"{i:02d}.png" for i in range(24)})
    with pytest.raises(
        TooManyUnreadable, match=r"given up in stage 'score', more than --max-bad 0.4 allows .*not answer"
    ):
        rsprune.prune(images, tmp_path / "run", workers=1, settings=settings)
    assert len(set(asked)) < 6  # the first image of each part that was tried
    monkeypatch.undo()
    assert len(rsprune.prune(images, tmp_path / "run", n=5, workers=1, settings=settings).kept_ids) == 5


# What it will take -------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_noticed_first(images, tmp_path, rsprune, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    asked = store_without(monkeypatch, set())
    code, _, said = rsprune("run", images, "-o", tmp_path / "run", "--encoder", "rcf", "--workers", 1, "-q")
    assert code == 1
    assert said.startswith(f"rsprune: {tmp_path / 'run'} needs about ")
    assert "for 24 images but only 10 kB are free" in said
    assert said.count("\n") == 1
    assert not asked
    assert not list((tmp_path / "run").glob("manifest/*"))


@pytest.mark.parametrize("given", [False, True])
def test_a_dry_run_says_what_it_will_take(images, tmp_path, rsprune, settings, given):
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    size = sum(p.stat().st_size for p in images.iterdir())
    options = ["--embeddings", settings["embed"]["embeddings"]] if given else ["--encoder", "rcf"]
    line = ["run", images, "-o", tmp_path / "run", "--workers", 2, "--dry-run", *options]
    code, out, _ = rsprune(*line, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["images"] == facts["sampled"] == 25
    assert facts["unreadable"] == 1
    assert 0.8 * size < facts["bytes"] < 1.25 * size
    assert facts["disk_bytes"] == disk.folder_bytes(25, 8 if given else 1024)
    assert all(0 < facts["per_image"][stage] < 5 for stage in ("scan", "score"))
    assert (facts["per_image"]["embed"] > 0) != given
    assert facts["seconds"] == pytest.approx(25 / 2 * sum(facts["per_image"].values()), abs=0.06)
    assert not (tmp_path / "run").exists()
    code, out, _ = rsprune(*line)
    assert code == 0
    assert out.startswith("images: 25, about ")
    assert "unreadable: 1 of these 25" in out


def test_a_dry_run_leaves_a_run_as_it_is(images, tmp_path, rsprune):
    out = tmp_path / "run"
    assert rsprune("scan", images, "-o", out, "-q")[0] == 0
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*")}
    assert rsprune("run", images, "-o", out, "--dry-run", "--encoder", "rcf", "--workers", 1)[0] == 0
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*")} == before


def fake_torch(cuda, devices=0, oldest=9):
    """Of a machine whose first device may be older than the others."""
    there = SimpleNamespace(
        device_count=lambda: devices, get_device_capability=lambda i: (9 if i else oldest, 5)
    )
    return SimpleNamespace(version=SimpleNamespace(cuda=cuda), cuda=there, __spec__="there")


@pytest.mark.parametrize(
    ("missing", "torch", "auto", "said"),
    [
        ("no CUDA device", fake_torch("13.0", 2), "cpu", "no CUDA device"),
        (None, None, "cpu", "PyTorch is not installed"),
        (None, fake_torch(None), "cpu", "PyTorch is installed without CUDA"),
        (None, fake_torch("13.0", 0), "cpu", "PyTorch finds 0 CUDA devices"),
        (
            None,
            fake_torch("13.0", 2, oldest=7),
            "cpu",
            "device 0 is of compute capability 7.5, and .* need 8.0",
        ),
        (None, fake_torch("13.0", 2), "cuda", None),
    ],
)
def test_cuda_is_chosen_only_where_all_that_computes_on_it_can(monkeypatch, missing, torch, auto, said):
    monkeypatch.setattr(rsprune, "cuda_unavailable", lambda: missing)
    monkeypatch.setitem(sys.modules, "torch", torch)
    if torch is None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert engine.choose_device("auto") == auto
    if said is None:
        assert engine.choose_device("cuda:1") == "cuda:1"
        with pytest.raises(
            ConfigError, match="--device cuda:2 cannot run here: PyTorch finds 2 CUDA devices"
        ):
            engine.choose_device("cuda:2")
    else:
        with pytest.raises(ConfigError, match=f"--device cuda cannot run here: {said}; use --device cpu"):
            engine.choose_device("cuda")
    for wrong in ("cuda:x", "cuda:", "cudax", "gpu"):
        with pytest.raises(ConfigError, match="give auto, cpu, cuda or cuda:INDEX"):
            engine.choose_device(wrong)
