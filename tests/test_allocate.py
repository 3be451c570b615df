import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsprune.allocate import order, priorities, seats, weights

sizes_st = st.lists(st.integers(0, 12), min_size=1, max_size=8)
exponents = st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0])


def highest_averages(weight, sizes, budget):
    """The rule as the books have it: one seat at a time to the largest w / (m + 1/2)."""
    taken = [0] * len(sizes)
    heap = [(-w / 0.5, -n, k) for k, (w, n) in enumerate(zip(weight, sizes, strict=True)) if n]
    heapq.heapify(heap)
    while heap and sum(taken) < budget:
        _, _, k = heapq.heappop(heap)
        taken[k] += 1
        if taken[k] < sizes[k]:
            heapq.heappush(heap, (-weight[k] / (taken[k] + 0.5), -sizes[k], k))
    return taken


def water_fill(sizes, budget):
    taken = [0] * len(sizes)
    while sum(taken) < min(budget, sum(sizes)):
        open_ = [k for k in range(len(sizes)) if taken[k] < sizes[k]]
        least = min(taken[k] for k in open_)
        best = max((k for k in open_ if taken[k] == least), key=lambda k: (sizes[k], -k))
        taken[best] += 1
    return taken


def test_by_hand():
    np.testing.assert_array_equal(seats([1, 10, 3], budget=9), [1, 5, 3])
    np.testing.assert_array_equal(seats([100, 300, 600], budget=10, alpha=1), [1, 3, 6])
    np.testing.assert_array_equal(seats([10, 10], [3.0, 1.0], budget=8, beta=1), [6, 2])
    # 400, 133.3, 80 against 100, 33.3.
    np.testing.assert_array_equal(seats([200, 50], budget=3, alpha=1), [2, 1])


@given(sizes_st, st.integers(0, 60))
def test_uniform_is_water_filling(sizes, budget):
    np.testing.assert_array_equal(seats(sizes, budget=budget), water_fill(sizes, budget))


@given(sizes_st, st.integers(0, 60), exponents, exponents, st.integers(0, 2**32))
def test_is_the_highest_averages_rule(sizes, budget, alpha, beta, seed):
    spread = np.random.default_rng(seed).choice([0.0, 0.5, 1.0, 1.7], len(sizes))
    got = seats(sizes, spread, budget=budget, alpha=alpha, beta=beta)
    assert got.tolist() == highest_averages(weights(sizes, spread, alpha, beta), sizes, budget)
    assert got.sum() == min(budget, sum(sizes))
    assert (got <= sizes).all()


@given(sizes_st, exponents, exponents)
def test_a_larger_budget_takes_no_seat_away(sizes, alpha, beta):
    spread = np.linspace(0, 1, len(sizes))
    before = np.zeros(len(sizes), int)
    for budget in range(sum(sizes) + 2):
        now = seats(sizes, spread, budget=budget, alpha=alpha, beta=beta)
        assert (now >= before).all()
        before = now


def test_clusters_without_spread_take_turns_at_the_end():
    np.testing.assert_array_equal(seats([3, 3, 4], [0.0, 0.0, 1.0], budget=8, beta=1), [2, 2, 4])
    np.testing.assert_array_equal(seats([3, 3], [np.nan, 1.0], budget=3, beta=1), [0, 3])
    np.testing.assert_array_equal(seats([3, 3], [0.0, 1.0], budget=4, beta=-1), [3, 1])


def test_the_order_gives_the_seats_of_every_budget_and_respects_ranks():
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 5, 40)
    rank = np.array([(cluster[:i] == c).sum() for i, c in enumerate(cluster)])
    sizes, spread = np.bincount(cluster), rng.random(5)
    keys = rng.integers(0, 2**63, 40).astype(np.uint64)
    got = order(rank, cluster, sizes, spread, 0.5, 1.0, keys=keys)
    assert sorted(got) == list(range(40))
    for budget in range(41):
        taken = np.bincount(cluster[got[:budget]], minlength=5)
        np.testing.assert_array_equal(taken, seats(sizes, spread, budget=budget, alpha=0.5, beta=1.0))
        for c in range(5):
            assert set(rank[got[:budget]][cluster[got[:budget]] == c]) == set(range(taken[c]))


def test_ties_go_to_the_larger_cluster_then_to_the_smaller_key_whatever_the_numbering():
    cluster = np.array([0, 1, 1, 2])
    rank = np.array([0, 0, 1, 0])
    keys = np.array([9, 5, 1, 3], np.uint64)
    expected = [1, 3, 0, 2]
    for renamed in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        new = np.array(renamed)[cluster]
        assert order(rank, new, np.bincount(new), keys=keys).tolist() == expected


def test_priority_is_weight_over_rank_and_a_half():
    got = priorities(np.array([0, 1, 0]), np.array([0, 0, 1]), [4, 9], [2.0, 1.0], alpha=0.5, beta=1.0)
    np.testing.assert_allclose(got, [4 / 0.5, 4 / 1.5, 3 / 0.5])


def test_different_numbers_of_clusters_are_refused():
    with pytest.raises(ValueError, match="spreads has 2 clusters, sizes has 3"):
        seats([1, 2, 3], [1.0, 2.0], budget=1)
