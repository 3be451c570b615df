"""What is wrong with the settings of the clusters is said before older results are thrown away."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import collection
from decided import rsprune
from rsprune.run import Run


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
