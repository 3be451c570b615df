"""What is wrong with the settings of the clusters is said before older results are thrown away."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import collection
from decided import rsprune
from rsprune.run import Run
from rsprune.stages import Job, cluster_images, select_images


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has been selected from given embeddings, and the folder around it."""
    folder = tmp_path_factory.mktemp("clusters")
    images = sorted(p for p in collection.make(folder / "in").rglob("*.png"))
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(len(images), 12)).astype(np.float16))
    narrow = pa.table({"id": ["a", "b"], "label": ["sea", "ice"], "embedding": [[1.0] * 5, [0.0] * 5]})
    pq.write_table(narrow, folder / "narrow.parquet")
    done = rsprune("run", folder / "in", "-o", folder / "run", "--embeddings", folder / "x.npy", "--n", 5)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--n-clusters", 1000], "--n-clusters is 1000 but only"),
        (["--reference", "narrow.parquet"], "embeddings of 5 features, the run has 12"),
    ],
)
def test_older_results_stay_when_new_settings_cannot_be_met(finished, monkeypatch, arguments, said):
    monkeypatch.chdir(finished)
    before = {p: p.read_bytes() for p in (finished / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    done = rsprune("cluster", "run", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    after = {p: p.read_bytes() for p in (finished / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before
    assert Run.open(finished / "run").complete("report")


def test_as_many_clusters_as_there_are_images_work(finished):
    run = Run.open(finished / "run")
    done = rsprune("cluster", finished / "run", "--n-clusters", 10)
    assert done.returncode == 0, done.stderr
    assert run.json("calibration.json")["n_clusters"] == 10
    assert not run.complete("select")
    assert rsprune("select", finished / "run", "--n", 5).returncode == 0


def test_what_takes_long_can_be_followed(finished):
    run = Run.open(finished / "run")
    images = len(run.table("scan", ["id"]))
    seen: dict[str, list[int]] = {}

    def follow(done, doing, of):
        counts = list(done)
        seen[doing] = [sum(counts), of]
        return counts

    again = replace(run.settings, seed=9)
    job = Job(run, again, workers=2, overwrite=True, progress=follow)
    cluster_images(job)
    select_images(job)
    assert set(seen) == {"scenes", "cluster", "near duplicates", "ranking", "nearest kept"}
    assert seen["scenes"] == seen["cluster"] == [images, images]
    assert all(counted == of > 0 for counted, of in seen.values())
