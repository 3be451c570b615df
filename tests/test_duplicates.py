"""Images of the same ground, found by their footprints."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from decided import of, pool, reasons, rsprune, scene
from image_files import encoded, texture
from rsprune import duplicates
from rsprune.config import SelectConfig, SourceConfig
from rsprune.duplicates import COLUMNS, Footprints, spatial_duplicates
from rsprune.selection import decide
from rsprune.sources import open_source
from shard_files import write_shard


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


def test_many_of_one_footprint_are_not_compared_all_with_all(monkeypatch):
    """They come last, when blocks are large; blocks with too many pairs of equals are halved."""
    others = [square(100 * i) for i in range(32)]
    footprints = at([*others, *[square(-500)] * 40])
    expected = [-1] * 33 + [32] * 39
    assert found(footprints) == expected
    monkeypatch.setattr("rsprune.duplicates._FIRST_BLOCK", 4)
    monkeypatch.setattr("rsprune.duplicates._MOST_PAIRS", 40)
    held, overlapping = [], duplicates._overlapping

    def counted(placed, ours, theirs, *rest):
        for pair in overlapping(placed, ours, theirs, *rest):
            held.append(len(pair[0]) if ours is theirs else 0)
            yield pair

    monkeypatch.setattr("rsprune.duplicates._overlapping", counted)
    assert found(footprints) == expected
    assert max(held) <= 2 * 40 + 10


# From files ---------------------------------------------------------------------------------------------------


def manifest(folder, **settings):
    source = open_source(SourceConfig(os.fspath(folder), **settings))
    rows = []
    for item in source.items():
        window = item.window._asdict() if item.window else dict.fromkeys("xywh")
        where = {"id": item.id, "uri": item.uri, "member": item.member, "source": 0}
        rows.append({**where, **vars(source.header(item)), **window})
    table = pa.Table.from_pylist(rows)
    for name in COLUMNS:
        if table[name].type == pa.null():
            kind = pa.string() if name in ("crs", "timestamp", "uri", "member") else pa.float64()
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
    footprints = Footprints.of([table])
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
    duplicate_of = found(Footprints.of([table]))
    assert any(i >= 0 for i in duplicate_of) == dropped
    uri = table["uri"].to_pylist()
    assert all(uri[i] == uri[j] for i, j in enumerate(duplicate_of) if j >= 0)


@pytest.mark.parametrize("kind", ["shard", "table"])
def test_windows_of_images_in_one_file_are_of_different_ground(tmp_path, kind):
    """Their coordinates count from the corner of their own image, not of the shard or table that holds it."""
    images = {name: encoded(texture(128, 128, seed=i)) for i, name in enumerate(("a.png", "b.png", "c.png"))}
    if kind == "shard":
        path = write_shard(tmp_path / "s.tar", images)
    else:
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({"id": list(images), "image": list(images.values())}), path)
    table = manifest(path, tile=64, stride=24)
    assert len(set(table["uri"].to_pylist())) == 1
    member = table["member"].to_pylist()
    assert len(set(member)) == 3
    duplicate_of = found(Footprints.of([table]))
    assert any(i >= 0 for i in duplicate_of)
    assert all(member[i] == member[j] for i, j in enumerate(duplicate_of) if j >= 0)
    assert not any(i >= 0 for i in found(Footprints.of([manifest(path, tile=64)])))


def test_windows_of_a_shard_are_selected_as_those_of_its_files(tmp_path):
    images = {f"{name}.png": encoded(texture(128, 128, seed=i)) for i, name in enumerate("abcd")}
    (tmp_path / "files").mkdir()
    for name, data in images.items():
        (tmp_path / "files" / name).write_bytes(data)
    write_shard(tmp_path / "s.tar", images)
    kept = []
    for source in ("files", "s.tar"):
        line = ("run", tmp_path / source, "-o", tmp_path / f"run-{source}", "--tile", 32, "--encoder", "rcf")
        done = rsprune(*line, "--n", 20, "--near-duplicate", 2)
        assert done.returncode == 0, done.stderr
        kept.append([id.replace(".png", "") for id in of(tmp_path / f"run-{source}", "kept")])
        assert not of(tmp_path / f"run-{source}", "spatial_duplicate")
    assert kept[0] == kept[1]
    assert len(kept[0]) == 20


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


# Decisions ----------------------------------------------------------------------------------------------------


def test_decisions_name_the_image_that_stays():
    given = pool()
    boxes = np.array([square(100 * i) for i in range(60)])
    boxes[40:50] = boxes[:10] + np.array([1, 0, 1, 0])
    select = SelectConfig(near_duplicate=2)
    result = decide(**given, budget=60, footprints=lambda: at(boxes), select=select)
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
        **given,
        budget=60,
        footprints=lambda: at(boxes),
        select=SelectConfig(near_duplicate=2, spatial_overlap=1),
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
            footprints=lambda: at(boxes[rows]),
            select=SelectConfig(near_duplicate=2),
        )
        best = np.flatnonzero(result.kept)
        return [columns["hashes"][i] for i in best[np.argsort(result.rank[best])]]

    assert kept(rng.permutation(np.tile(np.arange(60), repeats))) == kept(np.arange(60))


def test_the_summary_counts_the_new_reasons(tmp_path):
    for i in range(12):
        scene(tmp_path / f"in/{i:02d}.tif", east=10 * i, seed=i)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32))
    line = ["run", tmp_path / "in", "-o", tmp_path / "run", "--embeddings", tmp_path / "x.npy", "--json"]
    facts = json.loads(rsprune(*line, "--entropy-drop", 0).stdout.splitlines()[-1])
    assert facts["reasons"]["spatial_duplicate"] == 11
    assert "spatial duplicate" in (tmp_path / "run/report.html").read_text("utf-8")
