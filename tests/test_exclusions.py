"""Images that an evaluation set has as well are not kept."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import collection
from decided import of, pool, reasons, rsprune, scene
from rsprune.config import SelectConfig
from rsprune.run import Run
from rsprune.selection import decide
from rsprune.stages.exclusions import Exclusion, leaks
from shard_files import write_shard


def test_leaks_by_content_and_by_cosine():
    x = np.eye(4)[[0, 1, 2, 3]].astype(np.float16)
    x[3] = np.nan
    other = np.array([[0.02, 1, 0, 0], [np.nan] * 4])
    sets = [
        Exclusion("a", "", frozenset({"h2", "h9"}), np.zeros((0, 4))),
        Exclusion("b", "", frozenset(), other),
    ]
    hashes = pa.chunked_array([["h0", "h1", "h2", None]])
    assert leaks(sets, hashes, x, 0.95).tolist() == [False, True, True, False]
    assert leaks(sets, hashes, x, 2).tolist() == [False, False, True, False]


@pytest.mark.parametrize("strategy", ["rsprune", "random", "kcenter"])
def test_no_strategy_keeps_a_leak(strategy):
    leaked = np.arange(60) % 4 == 0
    result = decide(
        **pool(), budget=60, leaked=leaked, select=SelectConfig(strategy=strategy, near_duplicate=2)
    )
    assert (reasons(result)[leaked] == "reference_leak").all()
    assert result.kept.sum() == 45
    assert result.kept[result.nearest_kept[leaked]].all()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return collection.make(tmp_path_factory.mktemp("images"))


def test_images_of_an_evaluation_set_are_not_kept(images, tmp_path):
    held_out = tmp_path / "held out"
    held_out.mkdir()
    for i in (0, 7, 14):
        shutil.copy(images / f"real/{i:02d}.png", held_out / f"{i}.png")
    # A copy of another depth has another content; it is found by what it looks like.
    from PIL import Image

    bright = np.asarray(Image.open(images / "real/20.png")).astype(int) + 3
    Image.fromarray(bright.clip(0, 255).astype(np.uint8)).save(held_out / "other.png")
    line = ["run", images, "-o", tmp_path / "run", "--n", 8, "--entropy-drop", 0]
    done = rsprune(*line, "--exclude-from", held_out)
    assert done.returncode == 0, done.stderr
    leaked = of(tmp_path / "run", "reference_leak")
    assert {f"real/{i:02d}.png" for i in (0, 7, 14, 20)} <= set(leaked)
    assert "copies/00.png" in leaked
    x = Run.open(tmp_path / "run").embeddings().astype(np.float32)
    ids = Run.open(tmp_path / "run").table("scan")["id"].to_pylist()
    sources = x[[ids.index(f"real/{i:02d}.png") for i in (0, 7, 14, 20)]]
    for id in leaked:  # nothing is dropped that looks like none of them
        assert (sources @ x[ids.index(id)]).max() > 0.9
    assert not {*Run.open(tmp_path / "run").kept_ids} & set(leaked)
    # The set is encoded once: without its files the same selection is still there.
    before = Run.open(tmp_path / "run").kept_ids
    assert rsprune("select", tmp_path / "run", "--n", 8).returncode == 0
    assert Run.open(tmp_path / "run").kept_ids == before

    # The same set as a file of features and hashes made by the first run.
    table = Run.open(tmp_path / "run/excluded/held out").table("score", ["content_hash"])
    pq.write_table(table, tmp_path / "hashes.parquet")
    done = rsprune("select", tmp_path / "run", "--n", 8, "--exclude-from", tmp_path / "hashes.parquet")
    assert done.returncode == 0, done.stderr
    by_hash = {f"real/{i:02d}.png" for i in (0, 7, 14)} | {"copies/00.png"}
    assert set(of(tmp_path / "run", "reference_leak")) == by_hash

    # A run stands for the images that it was made from.
    done = rsprune("run", held_out, "-o", tmp_path / "other", "--n", 1)
    assert done.returncode == 0, done.stderr
    done = rsprune("select", tmp_path / "run", "--n", 8, "--exclude-from", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    assert set(of(tmp_path / "run", "reference_leak")) == set(leaked)


def test_images_of_the_reference_are_not_kept(images, tmp_path):
    """The collection holds every tile of the reference."""
    line = [
        "run",
        images,
        "-o",
        tmp_path / "run",
        "--n",
        5,
        "--reference",
        collection.TILES,
        "--near-duplicate",
        2,
    ]
    done = rsprune(*line, "--exclude-reference", "--entropy-drop", 0)
    assert done.returncode == 0, done.stderr
    real = {f"real/{i:02d}.png" for i in range(24)} | {
        f"copies/{i:02d}.png" for i in range(collection.COPIES)
    }
    assert set(of(tmp_path / "run", "reference_leak")) == real
    done = rsprune("explain", tmp_path / "run", "real/03.png")
    assert "dropped: reference leak" in done.stdout
    assert "--exclude-reference" in done.stdout


def test_windows_and_bands_are_read_as_those_of_the_pool(tmp_path):
    scene(tmp_path / "in/a.tif", size=192, seed=3)
    scene(tmp_path / "in/b.tif", size=192, east=50_000, seed=4)
    shutil.copytree(tmp_path / "in", tmp_path / "held")
    (tmp_path / "held/b.tif").unlink()
    line = ["run", tmp_path / "in", "-o", tmp_path / "run", "--tile", 64, "--bands", "3,1,2", "--n", 4]
    done = rsprune(*line, "--near-duplicate", 2, "--exclude-from", tmp_path / "held", "--entropy-drop", 0)
    assert done.returncode == 0, done.stderr
    leaked = of(tmp_path / "run", "reference_leak")
    assert len(leaked) == 9
    assert all(id.startswith("a.tif#") for id in leaked)


def test_a_set_in_a_store_and_shards_by_pattern(tmp_path):
    fs = pytest.importorskip("fsspec").filesystem("memory")
    fs.store.clear()
    for i in range(9):
        scene(tmp_path / f"in/{i}.tif", east=10_000 * i, seed=i)
    for i in (2, 5):
        fs.pipe_file(f"/held/x/{i}.tif", (tmp_path / f"in/{i}.tif").read_bytes())
    write_shard(tmp_path / "held-0.tar", {"seven.tif": (tmp_path / "in/7.tif").read_bytes()})
    given = ("--exclude-from", "memory://held", "--exclude-from", f"{tmp_path}/held-*.tar=shards")
    done = rsprune("run", tmp_path / "in", "-o", tmp_path / "run", "--n", 2, "--near-duplicate", 2, *given)
    assert done.returncode == 0, done.stderr
    assert set(of(tmp_path / "run", "reference_leak")) == {"2.tif", "5.tif", "7.tif"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--exclude-from", "nowhere"], "there is nothing to exclude at"),
        (["--exclude-reference"], "--exclude-reference needs a --reference"),
        (["--exclude-from", "a/x", "--exclude-from", "b/x"], "two sets to exclude are called 'x'"),
        (["--exclude-from", "wrong.parquet"], "needs a column embedding or content_hash"),
        (["--exclude-from", "short.parquet"], "needs embeddings of 12 features"),
        (["--exclude-from", "text.parquet"], "cannot be read as Parquet"),
        (["--exclude-from", "images"], "holds images, but this run takes its features from"),
        (["--spatial-overlap", "0"], "--spatial-overlap is 0.0"),
        (["--duplicate-days", "-1"], "--duplicate-days is -1.0"),
    ],
)
def test_sets_that_cannot_be_excluded_get_one_sentence(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    for name in ("in", "images"):
        for i in range(9):
            scene(tmp_path / f"{name}/{i}.tif", east=10_000 * i, seed=i)
    np.save("x.npy", np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32))
    pq.write_table(pa.table({"vector": [[1.0]]}), "wrong.parquet")
    pq.write_table(pa.table({"embedding": [[1.0]]}), "short.parquet")
    (tmp_path / "text.parquet").write_text("text")
    done = rsprune("run", "in", "-o", "run", "--embeddings", "x.npy", "--n", 2, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
