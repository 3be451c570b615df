"""Images of the same ground, strata, and images that an evaluation set has as well."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import collection
from image_files import texture, write_tiff
from rsprune.cli import main
from rsprune.config import FilterConfig, SelectConfig, SourceConfig
from rsprune.duplicates import COLUMNS, Footprints, spatial_duplicates
from rsprune.filters import REASONS
from rsprune.rows import content_key
from rsprune.run import Run
from rsprune.selection import decide
from rsprune.sources import open_source
from rsprune.stages.exclusions import Exclusion, leaks
from rsprune.strata import strata, stratified_order


def at(boxes, *, frame=0, day=np.nan):
    n = len(boxes)
    return Footprints(
        np.broadcast_to(frame, n).astype(np.int64),
        np.array(boxes, float),
        np.broadcast_to(day, n).astype(float),
    )


def square(x, y=0, side=10):
    return [x, y, x + side, y + side]


def found(footprints, quality=None, keys=None, **settings):
    n = len(footprints.frame)
    quality = -np.arange(n) if quality is None else np.array(quality)
    keys = np.arange(n) if keys is None else np.array(keys)
    return spatial_duplicates(
        footprints, quality.astype(np.float32), keys.astype(np.uint64), **settings
    ).tolist()


def test_more_than_half_of_the_smaller_footprint():
    assert found(at([square(0), square(4.9), square(5), square(20)])) == [-1, 0, -1, -1]
    # 2 lies inside 0, and 3 shares 6 of its 10 columns with 0.
    assert found(at([square(0, side=100), square(200), square(10), [94, 0, 104, 10], [95, 0, 105, 10]])) == [
        -1, -1, 0, 0, -1,
    ]  # fmt: skip
    assert found(at([square(0), square(8)]), overlap=0.1) == [-1, 0]
    assert found(at([square(0), square(0)]), overlap=1) == [-1, -1]


def test_the_best_stays_and_a_dropped_image_drops_none():
    line = at([square(0), square(4), square(8)])
    assert found(line, [1, 3, 2]) == [1, -1, 1]
    assert found(line, [3, 2, 1]) == [-1, 0, -1]
    assert found(line, [3, 2, 1], candidates=np.array([False, True, True])) == [-1, -1, 1]
    assert found(line, [np.nan, 0, 0], [0, 2, 1]) == [-1, 2, -1]


def test_only_within_some_days_and_one_frame():
    same = at([square(0)] * 4, day=np.array([0, 29, 31, np.nan]))
    assert found(same, days=30) == [-1, 0, -1, 0]
    assert found(same) == [-1, 0, 0, 0]
    assert found(at([square(0)] * 3, frame=np.array([0, 1, 0]))) == [-1, -1, 0]
    assert found(at([square(0)] * 3, frame=-1)) == [-1] * 3


def test_copies_are_one_image_with_several_footprints():
    """Which of two copies is listed first must not decide what else is kept."""
    boxes = [square(0), square(500), square(501), square(2)]
    assert found(at(boxes), [3, 3, 2, 1], [7, 7, 8, 9]) == [-1, -1, 0, 0]
    assert found(at(boxes[::-1]), [1, 2, 3, 3], [9, 8, 7, 7]) == [2, 2, -1, -1]
    # One footprint of the copies repeats a better image, so neither is kept.
    assert found(at([square(0), square(3), square(900)]), [5, 4, 4], [1, 2, 2]) == [-1, 0, 0]


def plain(footprints, order, overlap, days):
    """The definition, one image after the other."""
    result, accepted = np.full(len(order), -1), []
    for i in order:
        for j in accepted:
            a, b = footprints.box[i], footprints.box[j]
            w, h = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
            smaller = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
            near = not abs(footprints.day[i] - footprints.day[j]) > days
            together = footprints.frame[i] == footprints.frame[j]
            if together and near and min(w, h) > 0 and w * h > (overlap + 1e-6) * smaller:
                result[i] = j
                break
        else:
            accepted.append(i)
    return result.tolist()


@pytest.mark.parametrize("overlap", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_the_grid_finds_what_comparing_all_finds(monkeypatch, seed, overlap):
    monkeypatch.setattr("rsprune.duplicates._FIRST_BLOCK", 8)
    monkeypatch.setattr("rsprune.duplicates._LARGEST_BLOCK", 32)
    monkeypatch.setattr("rsprune.duplicates._PAIRS", 16)
    rng = np.random.default_rng(seed)
    n = 300
    corner, sides = (
        rng.uniform(-60, 60, (n, 2)),
        rng.choice([3, 8, 10, 30], (n, 2)) * rng.uniform(0.8, 1.2, (n, 2)),
    )
    day = np.where(rng.random(n) < 0.2, np.nan, rng.uniform(0, 60, n))
    footprints = Footprints(rng.integers(0, 2, n), np.concatenate([corner, corner + sides], axis=1), day)
    quality = rng.permutation(n)
    expected = plain(footprints, np.argsort(-quality), overlap, 20)
    assert found(footprints, quality, overlap=overlap, days=20) == expected
    assert 20 < sum(i >= 0 for i in expected) < n - 20


# From files ---------------------------------------------------------------------------------------------------


def scene(path, *, east=0.0, size=64, pixel=10.0, crs="EPSG:32618", when=None, seed=0):
    from rasterio.transform import from_origin

    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": from_origin(440_000 + east, 4_180_000, pixel, pixel)} if crs else {}
    write_tiff(path, texture(size, size, seed=seed), **place)
    if when:
        import rasterio

        with rasterio.open(path, "r+") as file:
            file.update_tags(TIFFTAG_DATETIME=when)
    return path


def manifest(folder, **settings):
    source = open_source(SourceConfig(os.fspath(folder), **settings))
    rows = []
    for item in source.items():
        window = item.window._asdict() if item.window else dict.fromkeys("xywh")
        rows.append({"id": item.id, "uri": item.uri, "source": 0, **vars(source.header(item)), **window})
    table = pa.Table.from_pylist(rows)
    for name in COLUMNS:
        if table[name].type == pa.null():
            kind = pa.string() if name in ("crs", "timestamp", "uri") else pa.float64()
            table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    return table


def test_footprints_of_georeferenced_files(tmp_path):
    scene(tmp_path / "a.tif", when="2021:06:01 10:00:00")
    scene(tmp_path / "b.tif", east=310, when="2021:06:20 10:00:00")  # 33 of 64 columns are also in a
    scene(tmp_path / "c.tif", east=320)  # half of them
    scene(tmp_path / "d.tif", crs="EPSG:32619")  # looks the same, but in another zone
    scene(tmp_path / "e.tif", pixel=20)  # contains a, at half the detail
    scene(tmp_path / "f.tif", size=32)  # part of a
    scene(tmp_path / "g.tif", crs=None)
    table = manifest(tmp_path)
    footprints = Footprints.of(table)
    assert found(footprints) == [-1, 0, -1, -1, -1, 0, -1]
    assert found(footprints, days=10) == [-1, -1, 1, -1, -1, 0, -1]  # c may be of any date
    assert footprints.frame[-1] == -1
    assert table["left"].to_pylist()[:2] == [440_000, 440_310]
    assert table["top"].to_pylist()[0] - table["bottom"].to_pylist()[0] == 640


@pytest.mark.parametrize("crs", ["EPSG:32618", None])
@pytest.mark.parametrize(("stride", "dropped"), [(32, False), (24, True)])
def test_windows_of_one_scene(tmp_path, crs, stride, dropped):
    """Half a side apart they share exactly half, which is not more than half."""
    scene(tmp_path / "a.tif", size=160, crs=crs)
    if not crs:
        scene(tmp_path / "b.tif", size=160, crs=crs, seed=1)
    table = manifest(tmp_path, tile=64, stride=stride)
    duplicate_of = found(Footprints.of(table))
    assert any(i >= 0 for i in duplicate_of) == dropped
    uri = table["uri"].to_pylist()
    assert all(uri[i] == uri[j] for i, j in enumerate(duplicate_of) if j >= 0)


def pool(n=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], n // 3).astype(np.int32)
    x = np.eye(8)[labels] + 0.4 * rng.normal(size=(n, 8))
    return {
        "scores": {"entropy": rng.gamma(4, 1, n).astype(np.float32)},
        "hashes": [f"content {i}" for i in range(n)],
        "x": x / np.linalg.norm(x, axis=1, keepdims=True),
        "labels": labels,
        "distance": rng.random(n).astype(np.float32),
        "centers": np.eye(8)[:3],
        "filters": FilterConfig(entropy_drop=0),
    }


def reasons(decisions):
    return np.array(REASONS)[decisions.reason]


def test_decisions_name_the_image_that_stays():
    given = pool()
    boxes = np.array([square(100 * i) for i in range(60)])
    boxes[40:50] = boxes[:10] + np.array([1, 0, 1, 0])
    select = SelectConfig(near_duplicate=2)
    result = decide(**given, budget=60, footprints=at(boxes), select=select)
    dropped = np.flatnonzero(reasons(result) == "spatial_duplicate")
    assert len(dropped) == 10
    other = np.where(dropped < 40, dropped + 40, dropped - 40)
    np.testing.assert_array_equal(result.duplicate_of[dropped], other)
    np.testing.assert_array_equal(result.nearest_kept[dropped], other)
    entropy = given["scores"]["entropy"]
    assert (entropy[dropped] <= entropy[other]).all()
    assert (result.threshold[dropped] == 0.5).all()
    assert result.kept.sum() == 50
    off = decide(
        **given, budget=60, footprints=at(boxes), select=SelectConfig(near_duplicate=2, spatial_overlap=1)
    )
    assert off.kept.all()


@pytest.mark.parametrize("repeats", [1, 2])
def test_order_and_copies_do_not_matter(repeats):
    """The same contents are kept from a shuffled pool, and from one with every image twice."""
    given = pool()
    rng = np.random.default_rng(1)
    boxes = np.array([square(4 * i) for i in rng.permutation(60)])

    def kept(rows):
        columns = {k: np.asarray(given[k])[rows] for k in ("x", "labels", "distance")}
        columns["hashes"] = [given["hashes"][i] for i in rows]
        columns["scores"] = {"entropy": given["scores"]["entropy"][rows]}
        result = decide(
            **{**given, **columns},
            budget=12,
            footprints=at(boxes[rows]),
            select=SelectConfig(near_duplicate=2),
        )
        best = np.flatnonzero(result.kept)
        return [columns["hashes"][i] for i in best[np.argsort(result.rank[best])]]

    assert kept(rng.permutation(np.tile(np.arange(60), repeats))) == kept(np.arange(60))


# Leaks --------------------------------------------------------------------------------------------------------


def test_leaks_by_content_and_by_cosine():
    x = np.eye(4)[[0, 1, 2, 3]].astype(np.float16)
    x[3] = np.nan
    other = np.array([[0.02, 1, 0, 0], [np.nan] * 4])
    sets = [
        Exclusion("a", "", frozenset({"h2", "h9"}), np.zeros((0, 4))),
        Exclusion("b", "", frozenset(), other),
    ]
    assert leaks(sets, ["h0", "h1", "h2", None], x, 0.95).tolist() == [False, True, True, False]
    assert leaks(sets, ["h0", "h1", "h2", None], x, 2).tolist() == [False, False, True, False]


@pytest.mark.parametrize("strategy", ["rsprune", "random", "kcenter"])
def test_no_strategy_keeps_a_leak(strategy):
    leaked = np.arange(60) % 4 == 0
    result = decide(
        **pool(), budget=60, leaked=leaked, select=SelectConfig(strategy=strategy, near_duplicate=2)
    )
    assert (reasons(result)[leaked] == "reference_leak").all()
    assert result.kept.sum() == 45
    assert result.kept[result.nearest_kept[leaked]].all()


# Strata -------------------------------------------------------------------------------------------------------


def test_strata_are_named():
    table = pa.table(
        {
            "gsd": pa.array([10, 9.7, 30, None, 0.3], pa.float32()),
            "source": pa.array([0, 0, 1, 1, 0], pa.int16()),
            "timestamp": ["2020-01-31T00:00:00", "2021-12-01", None, "no date", "2020-07-01T10:00:00Z"],
        }
    )
    code, names = strata(table, ["gsd"], ["s2", "l8"])
    assert [names[i] for i in code] == ["about 8 m", "about 8 m", "about 32 m", "unknown", "about 0.25 m"]
    code, names = strata(table, ["date", "sensor"], ["s2", "l8"])
    assert [names[i] for i in code] == [
        "December to February, s2", "December to February, s2", "unknown, l8", "unknown, l8",
        "June to August, s2",
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["rsprune", "random", "density", "kcenter"])
@pytest.mark.parametrize("budget", [1, 7, 20, 59, 60, 90])
def test_every_stratum_is_pruned_by_the_same_share(strategy, budget):
    kind = np.where(np.arange(60) % 10 < 7, 0, np.where(np.arange(60) % 10 < 9, 1, 2))
    select = SelectConfig(strategy=strategy, near_duplicate=2)
    result = decide(**pool(), budget=budget, strata=kind, select=select)
    n = min(budget, 60)
    assert result.kept.sum() == n
    counts = np.bincount(kind[result.kept], minlength=3)
    assert (np.abs(counts - n * np.array([0.7, 0.2, 0.1])) < 1).all()


def test_strata_leave_subsets_nested():
    kind = np.arange(60) % 3
    previous = set()
    for budget in range(0, 60, 7):
        result = decide(**pool(), budget=budget, strata=kind, select=SelectConfig(near_duplicate=2))
        now = set(np.flatnonzero(result.kept))
        assert previous <= now
        previous = now


def test_one_stratum_changes_nothing():
    keys = content_key([str(i) for i in range(10)], 0)
    rows = np.array([4, 2, 9])
    got = stratified_order(rows, np.zeros(10, int), 2, keys, lambda rows, seats: rows[:seats])
    assert got.tolist() == [4, 2]


# End to end ---------------------------------------------------------------------------------------------------


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def rsprune(*arguments):
    """A command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
        main([*map(str, arguments), "--workers", "1", "-q"])
    return Done(done.value.code or 0, out.getvalue(), err.getvalue())


def of(run, reason):
    return {d["id"]: d for d in Run.open(run).decisions.to_pylist() if d["reason"] == reason}


def test_a_time_series_from_files(tmp_path):
    rng = np.random.default_rng(0)
    for place in range(6):
        for k, day in enumerate(("01", "11", "21")):
            name = tmp_path / f"in/{place}-{k}.tif"
            scene(
                name,
                east=10_000 * place,
                when=f"2021:0{1 + 4 * (k == 2)}:{day} 10:00:00",
                seed=10 * place + k,
            )
    np.save(tmp_path / "x.npy", rng.normal(size=(18, 12)).astype(np.float32))
    line = [
        "run",
        tmp_path / "in",
        "-o",
        tmp_path / "run",
        "--embeddings",
        tmp_path / "x.npy",
        "--entropy-drop",
        0,
    ]
    done = rsprune(*line, "--n", 12)
    assert done.returncode == 0, done.stderr
    dropped = of(tmp_path / "run", "spatial_duplicate")
    assert sorted(id[0] for id in dropped) == list("012345")
    for id, decision in dropped.items():
        assert id[2] in "01"  # the third is of May
        assert decision["duplicate_of"] == decision["nearest_kept"] == f"{id[0]}-{1 - int(id[2])}.tif"
    done = rsprune("select", tmp_path / "run", "--n", 6, "--duplicate-days", 365)
    assert len(of(tmp_path / "run", "spatial_duplicate")) == 12
    done = rsprune("explain", tmp_path / "run", next(iter(dropped)))
    assert "spatial duplicate" in done.stdout
    assert "--spatial-overlap" in done.stdout
    done = rsprune("select", tmp_path / "run", "--n", 12, "--spatial-overlap", 1, "--stratify", "date")
    assert done.returncode == 0, done.stderr
    seasons = [int(id[2]) == 2 for id in of(tmp_path / "run", "kept")]
    assert sum(seasons) == 4
    assert rsprune("select", tmp_path / "run", "--stratify", "colour").returncode == 2


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


def test_the_summary_counts_the_new_reasons(tmp_path):
    for i in range(12):
        scene(tmp_path / f"in/{i:02d}.tif", east=10 * i, seed=i)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32))
    line = ["run", tmp_path / "in", "-o", tmp_path / "run", "--embeddings", tmp_path / "x.npy", "--json"]
    facts = json.loads(rsprune(*line, "--entropy-drop", 0).stdout.splitlines()[-1])
    assert facts["reasons"]["spatial_duplicate"] == 11
    assert "spatial duplicate" in (tmp_path / "run/report.html").read_text("utf-8")
