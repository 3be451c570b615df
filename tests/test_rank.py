import numpy as np
import pytest

import rsprune.rank
from rsprune.rank import METHODS, rank_by, rank_within, spreads
from rsprune.rows import unit_rows


def pool(n, d=6, k=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x, rng.integers(0, k, n), rng.integers(0, 2**63, n).astype(np.uint64)


def herding_loop(x):
    """Next = argmax x.mu - mean similarity to those taken, written down as it is said."""
    x = unit_rows(x).astype(np.float64)
    mu, taken = x.mean(axis=0), []
    while len(taken) < len(x):
        score = x @ mu - (np.mean([x @ x[j] for j in taken], axis=0) if taken else 0)
        score[taken] = -np.inf
        taken.append(int(score.argmax()))
    return taken


@pytest.mark.parametrize("gram_bytes", [1 << 20, 0])
@pytest.mark.parametrize("compact_above", [512, 8])
def test_herding_is_the_formula(monkeypatch, gram_bytes, compact_above):
    monkeypatch.setattr(rsprune.rank, "BLOCK_BYTES", gram_bytes)
    monkeypatch.setattr(rsprune.rank, "_COMPACT_ABOVE", compact_above)
    x, _, keys = pool(60)
    rank = rank_within(x, np.zeros(60, int), keys=keys)
    assert np.argsort(rank).tolist() == herding_loop(x)


def test_herding_by_hand():
    # mu points between the two close ones and away from the third: nearest first, then the odd one out.
    angle = np.radians([0, 20, 110])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rank = rank_within(x, np.zeros(3, int), keys=np.arange(3, dtype=np.uint64))
    assert rank.tolist() == [2, 0, 1]


def test_large_clusters_are_ranked_without_their_gram_matrix(monkeypatch):
    x, labels, keys = pool(1500, d=8, k=2)
    whole = rank_within(x, labels, keys=keys)
    monkeypatch.setattr(rsprune.rank, "BLOCK_BYTES", 1000)
    parts = rank_within(x, labels, keys=keys)
    # Sums in another order may swap near ties late in the order, not move images about.
    assert (whole == parts).mean() > 0.99


def test_herding_represents_the_mean_better_than_chance():
    x, _, keys = pool(200, d=16, seed=3)
    x = unit_rows(x + 1)
    first = np.argsort(rank_within(x, np.zeros(200, int), keys=keys))[:10]
    error = np.linalg.norm(x[first].mean(0) - x.mean(0))
    rng = np.random.default_rng(0)
    chance = [np.linalg.norm(x[rng.choice(200, 10, False)].mean(0) - x.mean(0)) for _ in range(50)]
    assert error < min(chance)


@pytest.mark.parametrize("centers", [None, np.array([[0.5, 0.0], [3.0, 3.0]])])
def test_the_closest_image_is_first(centers):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(50, 2)), rng.integers(0, 2, 50)
    keys = rng.integers(0, 2**63, 50).astype(np.uint64)
    rank = rank_within(x, labels, keys=keys, method="closest", centers=centers)
    for k in (0, 1):
        members = np.flatnonzero(labels == k)
        center = x[members].mean(0) if centers is None else centers[k]
        distance = np.linalg.norm(x[members] - center, axis=1)
        np.testing.assert_array_equal(members[np.argsort(distance)], members[np.argsort(rank[members])])


@pytest.mark.parametrize("method", METHODS)
def test_ranks_are_complete_in_every_cluster(method):
    x, labels, keys = pool(100)
    labels[::7] = -1
    rank = rank_within(x, labels, keys=keys, method=method)
    assert (rank[::7] == -1).all()
    for k in range(4):
        assert sorted(rank[labels == k]) == list(range((labels == k).sum()))


@pytest.mark.parametrize("method", METHODS)
def test_neither_row_order_nor_cluster_numbers_matter(method):
    x, labels, keys = pool(300, seed=5)
    expected = rank_within(x, labels, keys=keys, method=method)
    shuffle = np.random.default_rng(2).permutation(300)
    got = rank_within(x[shuffle], 3 - labels[shuffle], keys=keys[shuffle], method=method)
    np.testing.assert_array_equal(got, expected[shuffle])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_images_go_by_key(method, value):
    keys = np.array([5, 3, 9, 1], np.uint64)
    rank = rank_within(np.full((4, 3), value, np.float32), np.zeros(4, int), keys=keys, method=method)
    assert rank.tolist() == [2, 1, 3, 0]


def marginal_loop(x, weight):
    """Next = argmax of lambda * cosine to the centre - (1 - lambda) * largest cosine to those taken."""
    x = unit_rows(x).astype(np.float64)
    center, taken = x.mean(axis=0) / np.linalg.norm(x.mean(axis=0)), []
    while len(taken) < len(x):
        nearest = np.max([x @ x[j] for j in taken], axis=0) if taken else 0
        score = weight * (x @ center) - (1 - weight) * nearest
        score[taken] = -np.inf
        taken.append(int(score.argmax()))
    return taken


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
def test_mmr_is_the_formula(weight):
    x, _, keys = pool(60)
    rank = rank_within(x, np.zeros(60, int), keys=keys, method="mmr", mmr_lambda=weight)
    sorted_rows = np.argsort(keys)
    assert sorted_rows[marginal_loop(x[sorted_rows], weight)].tolist() == np.argsort(rank).tolist()


def test_mmr_by_hand():
    # The centre points to 29 degrees. By halves: 20 first; then cos 71 - cos 80 of 100 beats cos 19 - cos 10 of 10,
    # which beats cos 29 - cos 20 of 0.
    angle = np.radians([0, 10, 20, 100])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    order = [
        np.argsort(
            rank_within(x, np.zeros(4, int), keys=np.arange(4, dtype=np.uint64), method="mmr", mmr_lambda=w)
        )
        for w in (1.0, 0.5)
    ]
    assert order[0].tolist() == [2, 1, 0, 3]
    assert order[1].tolist() == [2, 3, 1, 0]


def test_random_goes_by_key():
    x, labels, keys = pool(50)
    rank = rank_within(x, labels, keys=keys, method="random")
    for k in range(4):
        members = np.flatnonzero(labels == k)
        np.testing.assert_array_equal(np.argsort(rank[members]), np.argsort(keys[members]))


def test_half_precision_and_empty_input():
    x, labels, keys = pool(40)
    assert sorted(rank_within(x.astype(np.float16), labels, keys=keys)[labels == 0])[0] == 0
    assert rank_within(x[:0], labels[:0], keys=keys[:0]).tolist() == []


def test_an_unknown_method_is_refused():
    x, labels, keys = pool(3)
    with pytest.raises(ValueError, match="herding, closest, mmr, random, got 'best'"):
        rank_within(x, labels, keys=keys, method="best")


def test_rank_by_value_ties_by_key():
    keys = np.array([4, 3, 2, 1], np.uint64)
    got = rank_by(np.array([1.0, 0.5, 1.0, 9.0]), np.array([0, 0, 0, -1]), keys=keys)
    assert got.tolist() == [2, 0, 1, -1]


def test_spread_is_the_mean_distance_to_the_mean():
    x = np.array([[0.0, 0], [4, 0], [5, 5], [7, 7]])
    got = spreads(x, np.array([0, 0, 2, -1]), 3, keys=np.arange(4, dtype=np.uint64))
    np.testing.assert_allclose(got, [2, 0, 0])
