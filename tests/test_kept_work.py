"""Nothing that lies in a folder is thrown away without being asked for, and nothing old is trusted by mistake."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest

import collection
from rsprune import config, stages
from rsprune.errors import ConfigError
from rsprune.locations import source_values
from rsprune.run import Run
from rsprune.stages import Job, embed_images, scan_images, score_images


@pytest.fixture
def images(tmp_path):
    return collection.make(tmp_path / "in")


def job(images, out, *, overwrite=False, **values) -> Job:
    scan = {"sources": [source_values(str(images))], "part_size": 6}
    settings = config.settings({"scan": scan, "embed": {"encoder": "rcf"}, "select": {"keep": 0.3}, **values})
    return Job(Run(out), settings, workers=1, overwrite=overwrite)


def run(images, out, *stages, **values) -> Run:
    made = job(images, out, **values)
    with made.run.lock():
        for stage in stages:
            stage(made)
    return made.run


def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_files_of_the_users_in_the_place_of_a_run_are_left_alone(images, tmp_path):
    project = tmp_path / "project"
    (project / "embeddings").mkdir(parents=True)
    (project / "embeddings" / "clip.npy").write_bytes(b"hours of work")
    (project / "report.html").write_text("mine")
    before = files(project)
    with pytest.raises(ConfigError, match="holds embeddings and was not made by rsprune"):
        run(images, project, scan_images)
    assert {name: text for name, text in files(project).items() if name in before} == before
    run(images, project, scan_images, overwrite=True)
    assert not (project / "report.html").exists()


def test_a_mistyped_path_throws_nothing_away(images, tmp_path):
    made = run(images, tmp_path / "run", scan_images, score_images)
    before = files(made.path)
    with pytest.raises(ConfigError, match="No such file"):
        run(tmp_path / "im", made.path, scan_images, overwrite=True)
    assert {n: c for n, c in files(made.path).items() if n != ".lock"} == {
        n: c for n, c in before.items() if n != ".lock"
    }


def test_results_on_another_disk_are_not_taken_for_those_of_new_settings(images, tmp_path):
    """The folder of a stage may be a link; it stays one."""
    made = run(images, tmp_path / "run", scan_images, score_images)
    shutil.move(made.path / "scores", tmp_path / "disk")
    (made.path / "scores").symlink_to(tmp_path / "disk")
    other = {"score": {"patch": 8}}
    again = run(images, made.path, scan_images, score_images, overwrite=True, **other)
    fresh = run(images, tmp_path / "fresh", scan_images, score_images, **other)
    assert (made.path / "scores").is_symlink()
    assert again.table("score").equals(fresh.table("score"))


def test_a_folder_that_cannot_be_listed_for_the_moment_is_not_gone(tmp_path, monkeypatch):
    """As on a network file system whose server does not answer."""
    images = tmp_path / "in"
    for tile in collection.tiles():
        (images / tile.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(tile, images / tile.parent.name)
    made = run(images, tmp_path / "run", scan_images, score_images)
    before, scandir = files(made.path / "scores"), os.scandir

    def failing(path):
        if str(path).rstrip("/").endswith("/in/water"):
            raise OSError(errno.EIO, "Input/output error", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        with pytest.raises(ConfigError, match=r"cannot list .*water.*: Input/output error"):
            run(images, made.path, scan_images, score_images)
    assert files(made.path / "scores") == before


def test_filters_learnt_before_a_crash_are_not_those_of_other_images(images, tmp_path, monkeypatch):
    """Killed once the encoder was learnt, and gone on with more images."""
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(images.rglob("*.png"))[:10]:
        shutil.copy(file, few)
    with monkeypatch.context() as patch:
        patch.setattr(stages.embed, "_encode_sample", lambda task: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(few, tmp_path / "run", scan_images, score_images, embed_images)
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    for file in sorted(images.rglob("*.png"))[10:]:
        shutil.copy(file, few)
    made = run(few, tmp_path / "run", scan_images, score_images, embed_images)
    fresh = run(few, tmp_path / "fresh", scan_images, score_images, embed_images)
    for name in ("encoder.safetensors", "transform.safetensors"):
        assert (made.path / name).read_bytes() == (fresh.path / name).read_bytes()
    np.testing.assert_array_equal(made.embeddings(), fresh.embeddings())


def test_assignments_that_are_missing_are_made_again(images, tmp_path):
    made = job(images, tmp_path / "run")
    with made.run.lock():
        stages.run_all(made)
    decisions = made.run.path / "decisions.parquet"
    before = decisions.read_bytes()
    made.run.parts("cluster")[1].unlink()
    run(images, made.run.path, stages.cluster_images, stages.select_images)
    assert len(made.run.parts("cluster")) == len(made.run.names)
    assert decisions.read_bytes() == before
    (made.run.path / ".stages" / "cluster.json").write_text('{"finger')
    with pytest.raises(ConfigError, match=r"cluster.json is damaged"):
        run(images, made.run.path, stages.cluster_images)
    run(images, made.run.path, stages.cluster_images, stages.select_images, overwrite=True)
    assert decisions.read_bytes() == before
