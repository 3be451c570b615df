"""Large clusters are cut into cells, the same ones whatever the order, the numbering and the copies."""

import numpy as np
import pytest

from rsprune.cells import Cells
from rsprune.rank import rank_within
from rsprune.rows import unit_rows
from rsprune.similar import near_duplicates, nearest_kept

LARGEST = 32


@pytest.fixture(autouse=True)
def largest(monkeypatch):
    monkeypatch.setattr("rsprune.cells.LARGEST", LARGEST)


def pool(n=500, seed=0):
    """Clusters of some 30, 125 and 250 images, and some of none."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 1, 2], n, p=[0.1, 0.06, 0.26, 0.58])
    x = 2 * rng.normal(size=(3, 6))[labels] + rng.normal(size=(n, 6))
    return x, labels, rng.permutation(n).astype(np.uint64)


def pieces(cells, name):
    """Cells as sets of names."""
    return {frozenset(name[cells.cell == c].tolist()) for c in range(len(cells.cluster))}


def test_cells_are_parts_of_one_cluster_and_not_too_large():
    x, labels, keys = pool()
    cells = Cells.of(x, labels, keys)
    np.testing.assert_array_equal(cells.clusters, labels)
    np.testing.assert_array_equal(cells.cell < 0, labels < 0)
    sizes = np.bincount(cells.cell[labels >= 0])
    assert sizes.max() <= LARGEST
    assert np.bincount(cells.cluster).tolist()[0] == 1  # small enough as it is
    # A cell is a neighbourhood: its images are closer to each other than those of its cluster.
    unit = unit_rows(x)
    for label in (1, 2):
        whole = unit[labels == label].mean(axis=0)
        inside = [unit[cells.cell == c] for c in np.flatnonzero(cells.cluster == label)]
        spread = np.concatenate([np.square(rows - rows.mean(axis=0)).sum(axis=1) for rows in inside])
        assert spread.mean() < 0.6 * np.square(unit[labels == label] - whole).sum(axis=1).mean()


def test_neither_order_nor_numbers_nor_copies_matter():
    x, labels, keys = pool()
    expected = pieces(Cells.of(x, labels, keys), keys)
    rng = np.random.default_rng(1)
    for rows in (rng.permutation(500), np.r_[np.arange(500), rng.integers(0, 500, 300)]):
        renamed = np.where(labels < 0, -1, 2 - labels)[rows]
        assert pieces(Cells.of(x[rows], renamed, keys[rows]), keys[rows]) == expected


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_that_look_the_same_stay_together_and_go_by_key(value):
    keys = np.random.default_rng(0).permutation(100).astype(np.uint64)
    x, labels = np.full((100, 4), value), np.zeros(100, int)
    assert Cells.of(x, labels, keys).cluster.tolist() == [0]
    np.testing.assert_array_equal(rank_within(x, labels, keys=keys), keys)
    x[:30] = np.random.default_rng(1).normal(size=(30, 4))
    same = pieces(Cells.of(x, labels, keys), np.arange(100))
    assert sum(set(range(30, 100)) <= piece for piece in same) == 1
    assert len(same) > 2


def test_only_candidates_count_but_all_get_a_cell():
    x, labels, keys = pool()
    few = np.zeros(500, bool)
    few[np.flatnonzero(labels == 2)[:LARGEST]] = True
    assert (np.bincount(Cells.of(x, labels, keys, few).cluster) == 1).all()
    some = labels == 1
    cells = Cells.of(x, labels, keys, some)
    assert np.bincount(cells.cluster).tolist()[::2] == [1, 1]
    x[~some] += 100  # what is no candidate has no say
    np.testing.assert_array_equal(Cells.of(x, labels, keys, some).cell[some], cells.cell[some])


@pytest.mark.parametrize("method", ["herding", "mmr"])
def test_cells_take_turns_by_their_sizes(method):
    x, labels, keys = pool()
    rank = rank_within(x, labels, keys=keys, method=method)
    cells = Cells.of(x, labels, keys)
    for label in range(3):
        members = np.flatnonzero(labels == label)
        best_first = members[np.argsort(rank[members])]
        assert sorted(rank[members]) == list(range(len(members)))
        cell = cells.cell[best_first]
        sizes = np.bincount(cell)
        for n in (10, len(members) // 4, len(members) // 2):
            taken = np.bincount(cell[:n], minlength=len(sizes))
            assert np.abs(taken - n * sizes / len(members)).max() < 1.5
    np.testing.assert_array_equal(rank, rank_within(x, labels, keys=keys, method=method, workers=2))


def test_herding_in_cells_keeps_the_mean():
    """A tenth of a cluster has a mean as near to its own as chance gives no tenth."""
    x, _, keys = pool(2000)
    x = unit_rows(x)
    rank = rank_within(x, np.zeros(2000, int), keys=keys)
    apart = np.linalg.norm(x[rank < 200].mean(axis=0) - x.mean(axis=0))
    rng = np.random.default_rng(0)
    chance = [np.linalg.norm(x[rng.permutation(2000)[:200]].mean(axis=0) - x.mean(axis=0)) for _ in range(50)]
    assert apart < min(chance)


def test_copies_with_another_content_are_found_in_their_cell():
    x, labels, keys = pool()
    copies = np.flatnonzero(labels == 2)[:40]
    x, labels, keys = (np.concatenate([a, a[copies]]) for a in (x, labels, keys))
    keys[500:] += 1000
    cell = Cells.of(x, labels, keys).cell
    found = near_duplicates(x, cell, np.r_[np.ones(500), np.zeros(40)], keys, 0.9999)
    assert found.tolist() == [-1] * 500 + copies.tolist()


@pytest.mark.parametrize("at_once", [1, 2, 2**16])
def test_a_cell_that_keeps_none_looks_into_its_cluster_and_then_into_the_nearest(monkeypatch, at_once):
    monkeypatch.setattr("rsprune.similar._SEARCHED", at_once)
    angle = np.radians([0, 1, 20, 21, 90, 60])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    cells = Cells(np.array([0, 0, 1, 1, 2, 3]), np.array([0, 0, 1, 2]))
    kept = np.array([True, False, False, False, True, False])
    nearest, cosine = nearest_kept(
        x,
        cells,
        np.arange(6, dtype=np.uint64),
        kept,
        np.full(6, -1),
        np.array([[1, 0.2], [0, 1], [0.5, 0.8]]),
    )
    assert nearest.tolist() == [-1, 0, 0, 0, -1, 4]
    np.testing.assert_allclose(cosine[[1, 2, 3, 5]], np.cos(np.radians([1, 20, 21, 30])), atol=1e-6)
