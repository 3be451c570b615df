"""References and embeddings that are hardly of use: the run goes through, or says in one sentence why not."""

from __future__ import annotations

import io
import shutil
import warnings
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import collection
from image_files import write_tiff
from rsprune.cli import main
from rsprune.run import Run

N = 40


def rsprune(*arguments):
    """A command, in this process: exit code and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
        main([*map(str, arguments), "--workers", "1", "-q"])
    return done.value.code or 0, err.getvalue()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """40 images of real ground."""
    root = tmp_path_factory.mktemp("pool")
    for i, tile in enumerate(collection.tiles()):
        pixels = np.asarray(Image.open(tile).convert("RGB"))
        collection.save(root / f"{i:02d}.png", pixels)
        if i < N - 24:
            collection.save(root / f"turned {i:02d}.png", pixels[::-1])
    return root


@pytest.fixture
def embedded(tmp_path):
    """Makes features of the pool and of a reference from one function of a generator, and their options."""

    def make(x, reference=None, labels=None):
        np.save(tmp_path / "x.npy", np.asarray(x, np.float32))
        line = ["--embeddings", tmp_path / "x.npy"]
        if reference is not None:
            table = pa.table({"embedding": [row.tolist() for row in np.asarray(reference)], "label": labels})
            pq.write_table(table, tmp_path / "reference.parquet")
            line += ["--reference", tmp_path / "reference.parquet"]
        return line

    return make


def features(n=N, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 12))


def finished(pool, out, *arguments, n=5):
    code, said = rsprune("run", pool, "-o", out, "--n", n, *arguments)
    assert (code, said) == (0, ""), said
    run = Run.open(out)
    assert len(run.kept_ids) == n
    return run


def scenes(run):
    return set(run.table("cluster")["scene"].to_pylist())


def class_folders(root, n_classes, each):
    tiles = collection.tiles()
    for i in range(n_classes * each):
        target = root / f"class {i % n_classes}" / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiles[i], target)
    return root


@pytest.mark.parametrize(("n_classes", "each"), [(1, 1), (1, 8), (12, 1), (2, 2)])
def test_a_reference_of_few_images_or_classes(pool, tmp_path, n_classes, each):
    reference = class_folders(tmp_path / "reference", n_classes, each)
    run = finished(pool, tmp_path / "run", "--reference", reference)
    assert scenes(run) <= {f"class {i}" for i in range(n_classes)} | {"unknown"}
    assert run.json("calibration.json")["granularity"] >= 1


def test_classes_that_the_pool_lacks(pool, tmp_path, embedded):
    x, others = features(), features(30, 1) * 0.1
    x[:, 0], others[:15, 0], others[15:, 1] = 5, 5, 50
    options = embedded(x, others, ["here"] * 15 + ["nowhere"] * 15)
    run = finished(pool, tmp_path / "run", *options)
    assert "nowhere" not in scenes(run)
    x[:, 0] = -5
    run = finished(pool, tmp_path / "none", *embedded(x, others + 100, ["a"] * 15 + ["b"] * 15))
    assert "unknown" in scenes(run)


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_a_reference_of_another_band_count(pool, tmp_path, bands):
    """An encoder for red, green and blue repeats one band and takes the first three of more."""
    for i, tile in enumerate(collection.tiles()):
        pixels = np.asarray(Image.open(tile).convert("RGB"))
        target = tmp_path / "reference" / tile.parent.name / f"{i}.tif"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_tiff(target, np.concatenate([pixels] * 5, axis=2)[..., :bands], photometric="MINISBLACK")
    options = ["--n", 5, "--reference", tmp_path / "reference"]
    code, said = rsprune("run", pool, "-o", tmp_path / "run", *options)
    if bands == 2:
        assert code == 2
        assert said.count("\n") == 1
        assert "2 bands" in said
    else:
        assert (code, said) == (0, "")
        assert scenes(Run.open(tmp_path / "run")) <= {"coast", "water", "crops", "woody", "built", "unknown"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(pool, tmp_path, embedded, value):
    x = features()
    x[3, 5] = value
    code, said = rsprune("run", pool, "-o", tmp_path / "run", "--n", 5, *embedded(x))
    assert (code, said.count("\n")) == (2, 1)
    assert "NaN or infinity in the embedding of '03.png'" in said


def test_zero_embeddings(pool, tmp_path, embedded):
    x = features()
    x[:6] = 0
    finished(pool, tmp_path / "some", *embedded(x), n=8)
    run = finished(pool, tmp_path / "all", *embedded(np.zeros((N, 12))), n=8)
    assert np.isfinite(run.embeddings()).all()


@pytest.mark.parametrize("what", ["nan", "zero"])
def test_a_reference_with_broken_embeddings(pool, tmp_path, embedded, what):
    others = features(20, 1)
    others[:5] = np.nan if what == "nan" else 0
    labels = ["a", "b"] * 10
    finished(pool, tmp_path / "some", *embedded(features(), others, labels))
    others[:] = np.nan if what == "nan" else 0
    code, said = rsprune("run", pool, "-o", tmp_path / "all", "--n", 5, *embedded(features(), others, labels))
    if what == "nan":
        assert code == 2
        assert "no labelled image" in said
        assert said.count("\n") == 1
    else:
        assert (code, said) == (0, "")


def test_a_reference_without_labels(pool, tmp_path, embedded):
    options = embedded(features(), features(20, 1), pa.array([None] * 20, pa.string()))
    code, said = rsprune("run", pool, "-o", tmp_path / "run", "--n", 5, *options)
    assert (code, said.count("\n")) == (2, 1)
    assert "no labelled image" in said


def test_a_reference_with_other_features(pool, tmp_path, embedded):
    options = embedded(features(), np.ones((20, 7)), ["a", "b"] * 10)
    code, said = rsprune("run", pool, "-o", tmp_path / "run", "--n", 5, *options)
    assert (code, said.count("\n")) == (2, 1)
    assert "7 features" in said


@pytest.mark.parametrize("reference", [False, True])
def test_all_images_are_identical(tmp_path, reference):
    pixels = np.asarray(Image.open(collection.tiles()[0]).convert("RGB"))
    for i in range(20):
        collection.save(tmp_path / f"in/{i:02d}.png", pixels)
    options = ["--reference", collection.TILES] if reference else []
    run = finished(tmp_path / "in", tmp_path / "run", *options, n=1)
    reasons = run.decisions["reason"].to_pylist()
    assert sorted(set(reasons)) == ["exact_duplicate", "kept"]
    assert set(run.decisions["duplicate_of"].to_pylist()) == {None, run.kept_ids[0]}


def test_images_differ_but_their_embeddings_do_not(pool, tmp_path, embedded):
    run = finished(pool, tmp_path / "run", *embedded(np.ones((N, 12))), n=1)
    assert "near_duplicate" not in run.decisions["reason"].to_pylist()  # none has a direction
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, said = rsprune("select", tmp_path / "run", "--n", 30, "--entropy-drop", 0)
    assert (code, said) == (0, "")
    assert len(Run.open(tmp_path / "run").kept_ids) == 30
