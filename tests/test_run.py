"""The whole way from images to decisions, and what a run folder promises about being interrupted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import collection
import rsprune
from rsprune.errors import ConfigError
from rsprune.run import Run

KEEP = 0.25
SETTINGS = [
    "--part-size", "7", "--keep", str(KEEP), "--reference", str(collection.TILES), "--entropy-drop", "0.2",
]  # fmt: skip

# Runs the command, but dies in the moment before the named file would get its final name.
KILLED_AT = """
import fnmatch, os, pathlib, signal, sys
rename = pathlib.Path.replace
def replace(self, target):
    if fnmatch.fnmatch(str(target), "*/" + sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.replace = replace
from rsprune.cli import main
main(sys.argv[2:])
"""
WRITTEN = (
    "run/.stages/listing/part-000001-*", "config.toml", "manifest/part-000003-*", "radiometry.json", ".stages/scan.json",
    "scores/part-000002-*", "embeddings/sample-part-000001-*", "transform.safetensors",
    "embeddings/part-000004-*",
    "references/sentinel2/features/lite0/part-000002-*", "calibration.json", "assignments/part-000002-*",
    "clusters.safetensors", "decisions.parquet", "kept.txt", ".stages/select.json", "report.html",
)  # fmt: skip


def command(
    *arguments: object, code: str = "from rsprune.cli import main; main()", **more
) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, **more)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return collection.make(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Run:
    """A run that nothing has happened to."""
    out = tmp_path_factory.mktemp("run") / "run"
    done = command("run", images, "-o", out, "--workers", 1, *SETTINGS)
    assert done.returncode == 0, done.stderr
    return Run.open(out)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(f): (f.stat().st_mtime_ns, f.stat().st_ino)
        for f in folder.rglob("*")
        if f.is_file() and f.name != ".lock"
    }


def test_every_image_has_one_decision_and_the_faults_the_right_one(finished, images):
    decisions = finished.decisions.to_pylist()
    assert sorted(d["id"] for d in decisions) == sorted(
        str(p.relative_to(images)) for p in images.rglob("*.png")
    )
    by_folder: dict[str, list[str]] = {}
    for d in decisions:
        by_folder.setdefault(d["id"].split("/")[0], []).append(d["reason"])
    assert by_folder["empty"] == ["nodata"] * collection.EMPTY
    assert by_folder["noise"] == ["noise"] * collection.NOISE
    assert by_folder["flat"] == ["low_entropy"] * collection.FLAT
    both = [
        d["reason"]
        for d in decisions
        if d["id"].split("/")[0] in ("copies", "real") and int(Path(d["id"]).stem) < 6
    ]
    assert both.count("exact_duplicate") + both.count("low_entropy") >= collection.COPIES


def test_the_budget_is_a_share_of_all_readable_images(finished):
    n = round(KEEP * len(finished.decisions))
    assert len(finished.kept_ids) == n
    kept = [d for d in finished.decisions.to_pylist() if d["kept"]]
    assert [d["id"] for d in sorted(kept, key=lambda d: d["rank"])] == finished.kept_ids
    assert {d["reason"] for d in kept} == {"kept"}


def test_the_reference_gives_scenes_and_a_benchmark(finished):
    scenes = set(finished.table("cluster")["scene"].to_pylist())
    assert {p.name for p in collection.TILES.iterdir() if p.is_dir()} & scenes
    assert finished.json("calibration.json")["joint"]["classes"] == [
        "built",
        "coast",
        "crops",
        "water",
        "woody",
    ]


def test_the_page_is_there(finished):
    assert finished.report_path.read_text("utf-8").lstrip().lower().startswith("<!doctype html>")


def test_two_workers_keep_the_same(finished, images, tmp_path):
    done = command("run", images, "-o", tmp_path / "run", "--workers", 2, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/kept.txt").read_bytes() == (finished.path / "kept.txt").read_bytes()
    for stage in ("scan", "score", "embed", "cluster"):
        for ours, theirs in zip(finished.parts(stage), Run.open(tmp_path / "run").parts(stage), strict=True):
            assert ours.read_bytes() == theirs.read_bytes()


def test_a_complete_run_is_not_repeated(finished, images):
    before = snapshot(finished.path)
    assert command("run", images, "-o", finished.path, "--workers", 1, *SETTINGS).returncode == 0
    after = snapshot(finished.path)
    assert {f for f in after if after[f] != before.get(f)} == set()


def test_another_budget_reads_no_image_and_nests(finished, images, tmp_path):
    moved = tmp_path / "gone"
    images.rename(moved)
    before, kept = snapshot(finished.path), finished.kept_ids
    try:
        smaller = command("select", finished.path, "--n", 5)
        assert smaller.returncode == 0, smaller.stderr
        assert finished.kept_ids == kept[:5]
        again = command("select", finished.path, "--keep", KEEP)
        assert again.returncode == 0, again.stderr
        assert finished.kept_ids == kept
    finally:
        moved.rename(images)
    costly = ("manifest", "scores", "embeddings", "assignments")
    after = snapshot(finished.path)
    assert all(after[f] == before[f] for f in before if Path(f).parent.name in costly)


def test_killed_in_every_stage(finished, images, tmp_path):
    out = tmp_path / "run"
    line = ["run", images, "-o", out, "--workers", 1, *SETTINGS]
    for name in WRITTEN:
        dead = command(name, *line, code=KILLED_AT)
        assert dead.returncode == -signal.SIGKILL, (name, dead.stderr)
    done = command(*line)
    assert done.returncode == 0, done.stderr
    assert (out / "kept.txt").read_bytes() == (finished.path / "kept.txt").read_bytes()
    for ours, theirs in zip(sorted(out.rglob("part-*")), sorted(finished.path.rglob("part-*")), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    assert not list(out.rglob("*.tmp"))


def test_workers_do_not_outlive_a_killed_run(images, tmp_path):
    out = tmp_path / "run"
    line = [sys.executable, "-c", "from rsprune.cli import main; main()", "run", str(images), "-o", str(out)]
    process = subprocess.Popen(
        [*line, "--workers", "2", *SETTINGS], stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: list(out.glob("embeddings/*")))
    process.kill()
    process.wait()
    wait_for(lambda: not in_session(process.pid))


def in_session(leader: int) -> list[str]:
    """Processes that were started by `leader` and are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_ctrl_c_says_how_to_continue(finished, images, tmp_path):
    out = tmp_path / "run"
    # A shell's background job, as a test run may be, starts with the signal ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from rsprune.cli import main; main()"
    line = [sys.executable, "-c", code, "run", str(images), "-o", str(out)]
    process = subprocess.Popen(
        [*line, "--workers", "2", *SETTINGS], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: list(out.glob("scores/part-*")))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "rsprune: interrupted; run the same command again to continue"
    assert "Traceback" not in said
    assert command("run", images, "-o", out, "--workers", 1, *SETTINGS).returncode == 0
    assert (out / "kept.txt").read_bytes() == (finished.path / "kept.txt").read_bytes()


def test_other_settings_are_refused_until_overwritten(finished, images, tmp_path):
    out = tmp_path / "run"
    x = tmp_path / "x.npy"
    import numpy as np

    np.save(x, np.random.default_rng(0).normal(size=(len(finished.decisions), 8)).astype(np.float32))
    same = {"keep": 0.5, "workers": 1, "settings": {"embed": {"embeddings": str(x)}}}
    rsprune.prune(images, out, **same)
    other = {**same["settings"], "score": {"patch": 16}}
    with pytest.raises(ConfigError, match="stage 'score' for other settings"):
        rsprune.prune(images, out, keep=0.5, workers=1, settings=other)
    assert Run.open(out).settings.score.patch == 32
    run = rsprune.prune(images, out, keep=0.5, workers=1, settings=other, overwrite=True)
    assert run.settings.score.patch == 16


def test_a_second_process_is_refused(finished):
    with finished.lock():
        refused = command("select", finished.path, "--n", 5)
    assert refused.returncode == 2
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in refused.stderr


def test_the_lock_of_a_process_that_has_died_is_none(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    holder = "import os, sys; from rsprune.run import Run; Run(sys.argv[1]).lock().__enter__(); os.kill(os.getpid(), 9)"
    assert command(tmp_path, code=holder).returncode == -signal.SIGKILL
    with Run(tmp_path).lock():
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_stage_verbs_in_turn_give_the_same(finished, images, tmp_path):
    out = tmp_path / "run"
    for line in (
        ["scan", images, "-o", out, "--part-size", 7],
        ["score", out],
        ["embed", out, "--workers", 1],
        ["cluster", out, "--reference", collection.TILES, "--entropy-drop", 0.2],
        ["select", out, "--keep", KEEP],
        ["report", out],
    ):
        done = command(*line)
        assert done.returncode == 0, done.stderr
    assert (out / "kept.txt").read_bytes() == (finished.path / "kept.txt").read_bytes()


def test_json_is_the_last_line(finished):
    done = command("select", finished.path, "--keep", KEEP, "--json")
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["kept"] == len(finished.kept_ids)
    assert sum(facts["reasons"].values()) == facts["images"] == len(finished.decisions)


def test_parts_are_plain_parquet(finished):
    manifest = pq.read_table(finished.path / "manifest")
    assert manifest["id"].to_pylist() == sorted(manifest["id"].to_pylist())
    assert finished.embeddings().shape == (len(manifest), 112)
