"""Embeddings and assignments that stay on disk give what they would give in memory."""

import errno
import itertools
import os

import numpy as np
import pyarrow as pa
import pytest

from rsprune.files import write_table
from rsprune.stages.pool import Assignments
from rsprune.stages.select import SCHEMA, _in_row_groups
from rsprune.stored import ClusteredEmbeddings, Selected, StoredEmbeddings
from run_folder import make_run

SIZES = (5, 1, 7, 2)


@pytest.fixture
def x():
    x = np.random.default_rng(0).normal(size=(sum(SIZES), 3)).astype(np.float16)
    x[4] = np.nan
    return x


@pytest.fixture
def stored(x, tmp_path):
    files = [tmp_path / f"part-{k}.npy" for k in range(len(SIZES))]
    for file, part in zip(files, np.split(x, np.cumsum(SIZES)[:-1]), strict=True):
        np.save(file, part)
    return StoredEmbeddings(files)


ROWS = ([], [0], [14, 0, 5, 5, 6, 12, 13], list(range(15))[::-1])
SLICES = ((0, 15), (0, 1), (4, 6), (5, 6), (3, 14), (13, 99), (7, 7), (20, 30))


@pytest.mark.parametrize("kind", ["parts", "by cluster", "selected"])
def test_rows_and_slices_are_those_of_the_array(x, stored, tmp_path, kind):
    if kind == "by cluster":
        stored = ClusteredEmbeddings(stored, np.array([2, 0, -1] * 5), tmp_path)
    if kind == "selected":
        rows = np.random.default_rng(1).permutation(15)
        stored, x = Selected(stored, rows), x[rows]
        np.testing.assert_array_equal(np.asarray(stored, np.float32), x.astype(np.float32))
    assert (stored.shape, stored.ndim, stored.dtype, len(stored)) == (x.shape, 2, x.dtype, 15)
    for rows in ROWS:
        np.testing.assert_array_equal(stored[np.array(rows, np.int64)], x[np.array(rows, np.int64)])
    for start, stop in SLICES:
        np.testing.assert_array_equal(stored[start:stop], x[start:stop])


def test_a_slice_has_no_step(stored):
    with pytest.raises(ValueError, match="step of a slice must be 1, got 2"):
        stored[::2]


def test_the_copy_by_cluster_has_no_name_and_needs_room(stored, tmp_path, monkeypatch):
    before = sorted(tmp_path.iterdir())
    copy = ClusteredEmbeddings(stored, np.zeros(15, int), tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert len(copy[:]) == 15

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        ClusteredEmbeddings(stored, np.zeros(15, int), tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_no_embeddings_are_no_rows(tmp_path):
    none = ClusteredEmbeddings(np.zeros((0, 3), np.float16), np.zeros(0, int), tmp_path)
    assert none[:].shape == (0, 3)


def test_assignments_of_all_parts(tmp_path):
    run = make_run(tmp_path)
    table = run.table("cluster")
    scenes = [[None, "unknown"] + ["sea"] * 18, ["ice"] * 20, ["unknown"] * 12]
    for k, names in enumerate(scenes):
        part = table.slice(20 * k, 20).set_column(3, "scene", pa.array(names, pa.string()))
        write_table(run.part("cluster", k), part)
    got = Assignments.of(run)
    np.testing.assert_array_equal(got.cluster, table["cluster"].to_numpy())
    np.testing.assert_array_equal(got.distance, table["distance"].to_numpy())
    assert [got.scenes[i] if i >= 0 else None for i in got.scene] == [*itertools.chain(*scenes)]
    assert got.known_scene[:2].tolist() == [-1, -1]
    assert (got.known_scene[40:] == -1).all()
    assert len({*got.known_scene[2:40]}) == 2


@pytest.mark.parametrize("sizes", [[1], [4], [3, 1, 9, 2], [5, 5], []])
def test_row_groups_do_not_show_the_parts(monkeypatch, sizes):
    monkeypatch.setattr("rsprune.stages.select.ROW_GROUP", 4)
    values = [str(i) for i in range(sum(sizes))]
    edges = np.cumsum([0, *sizes])
    parts = [pa.chunked_array([values[a:b]], SCHEMA.field("uri").type) for a, b in itertools.pairwise(edges)]
    pieces = [piece.to_pylist() for piece in _in_row_groups(parts)]
    assert pieces == [values[i : i + 4] for i in range(0, len(values), 4)]
