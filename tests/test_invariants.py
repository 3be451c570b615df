"""What must hold of every selection, whatever the pool."""

from typing import NamedTuple

import numpy as np
import pytest

from rsprune.config import FilterConfig, SelectConfig
from rsprune.filters import REASONS
from rsprune.rows import content_key
from rsprune.selection import decide, select

RANKS = ("herding", "closest")


class Pool(NamedTuple):
    """A pool with every kind of image; all columns [N]."""

    id: np.ndarray
    content: np.ndarray
    entropy: np.ndarray
    nodata: np.ndarray
    autocorrelation: np.ndarray
    x: np.ndarray
    labels: np.ndarray
    distance: np.ndarray


def make_pool(n=400, d=12, k=12, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, d)).astype(np.float32)
    labels = rng.choice(k, n, p=np.arange(k, 0, -1) / (k * (k + 1) / 2)).astype(np.int32)
    x = centers[labels] + 0.5 * rng.normal(size=(n, d))
    near = rng.choice(n, n // 10, replace=False)
    x[near[1::2]], labels[near[1::2]] = x[near[::2]] * 1.01, labels[near[::2]]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    columns = [
        rng.gamma(4, 1, n).astype(np.float32),
        np.where(rng.random(n) < 0.05, 0.8, 0).astype(np.float32),
        np.where(rng.random(n) < 0.05, 0.05, 0.9).astype(np.float32),
    ]
    distance = np.square(x.astype(np.float32) - centers[labels]).sum(axis=1)
    content = np.array([f"content {i}" for i in range(n)], dtype=object)
    bad = rng.random(n) < 0.03
    for column in (*columns, x, distance):
        column[bad] = np.nan
    content[bad] = None
    labels[bad] = -1
    pool = Pool(np.arange(n), content, *columns, x, labels, distance)
    copies = rng.choice(n, n // 10)
    return rows_of(pool, np.r_[np.arange(n), copies])._replace(id=np.arange(n + len(copies))), centers


def rows_of(pool, rows):
    return Pool(*(column[rows] for column in pool))


def decided(pool, centers, budget, seed=0, **settings):
    return decide(
        scores={
            "entropy": pool.entropy,
            "nodata_fraction": pool.nodata,
            "autocorrelation": pool.autocorrelation,
        },
        hashes=pool.content,
        x=pool.x,
        labels=pool.labels,
        distance=pool.distance,
        centers=centers,
        filters=FilterConfig(),
        select=SelectConfig(**settings),
        budget=budget,
        seed=seed,
    )


def kept_content(pool, decisions):
    """Contents kept, best first."""
    kept = np.flatnonzero(decisions.kept)
    return pool.content[kept[np.argsort(decisions.rank[kept])]].tolist()


@pytest.fixture(scope="module", params=[*RANKS, "herding in cells"])
def rank(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param not in RANKS:  # most clusters of the pool are larger
            patch.setattr("rsprune.cells.LARGEST", 16)
        yield request.param.split()[0]


@pytest.fixture(scope="module")
def pool():
    return make_pool()


@pytest.mark.parametrize("budget", [0, 1, 7, 60, 150])
@pytest.mark.parametrize(("alpha", "beta"), [(0, 0), (1, 0), (0.5, 1)])
def test_the_budget_is_met_exactly(pool, rank, budget, alpha, beta):
    result = decided(*pool, budget, rank=rank, alpha=alpha, beta=beta)
    assert result.kept.sum() == budget
    assert sorted(result.rank[result.kept]) == list(range(budget))


def test_every_image_has_one_decision_that_agrees_with_itself(pool, rank):
    images, centers = pool
    result = decided(images, centers, 60, rank=rank)
    reason = np.array(REASONS)[result.reason]
    assert all(len(column) == len(images.id) for column in list(vars(result).values())[:-1])
    assert set(reason) == set(REASONS) - {"saturated", "blurred", "spatial_duplicate", "reference_leak"}
    np.testing.assert_array_equal(result.kept, reason == "kept")
    np.testing.assert_array_equal(result.rank >= 0, np.isin(reason, ["kept", "over_budget"]))
    np.testing.assert_array_equal(
        result.duplicate_of >= 0, np.isin(reason, ["exact_duplicate", "near_duplicate"])
    )
    np.testing.assert_array_equal(result.nearest_kept >= 0, ~result.kept & (reason != "unreadable"))
    assert result.kept[result.nearest_kept[result.nearest_kept >= 0]].all()
    np.testing.assert_array_equal(np.isnan(result.nearest_kept_similarity), result.nearest_kept < 0)
    exact = reason == "exact_duplicate"
    np.testing.assert_array_equal(images.content[exact], images.content[result.duplicate_of[exact]])
    near = reason == "near_duplicate"
    x = images.x.astype(np.float32)
    assert ((x[near] * x[result.duplicate_of[near]]).sum(axis=1) > 0.94).all()
    low = reason == "low_entropy"
    assert (result.score[low] < result.threshold[low]).all()
    assert (result.score[result.kept] >= result.threshold[result.kept]).all()


def test_subsets_are_nested(pool, rank):
    previous = []
    for budget in (1, 5, 30, 31, 100, 10_000):
        now = kept_content(pool[0], decided(*pool, budget, rank=rank))
        assert now[: len(previous)] == previous
        previous = now


def test_a_budget_above_the_survivors_keeps_all_of_them(pool, rank):
    result = decided(*pool, 10_000, rank=rank)
    np.testing.assert_array_equal(result.kept, result.rank >= 0)
    assert 0 < result.kept.sum() < len(pool[0].id)
    assert "over_budget" not in np.array(REASONS)[result.reason]


def test_the_same_seed_gives_the_same_set(pool, rank):
    first, again = decided(*pool, 60, rank=rank), decided(*pool, 60, rank=rank)
    for name, column in vars(first).items():
        np.testing.assert_array_equal(column, vars(again)[name])


def test_row_order_does_not_matter(pool, rank):
    images, centers = pool
    expected = kept_content(images, decided(images, centers, 60, rank=rank))
    for seed in range(3):
        shuffled = rows_of(images, np.random.default_rng(seed).permutation(len(images.id)))
        assert kept_content(shuffled, decided(shuffled, centers, 60, rank=rank)) == expected


def test_cluster_numbers_do_not_matter(pool, rank):
    images, centers = pool
    expected = kept_content(images, decided(images, centers, 60, rank=rank))
    new = np.random.default_rng(0).permutation(len(centers))
    labels = np.where(images.labels >= 0, new[images.labels], -1)
    renamed = decided(images._replace(labels=labels), centers[np.argsort(new)], 60, rank=rank)
    assert kept_content(images, renamed) == expected


@pytest.mark.parametrize("times", [2, 3])
def test_a_duplicated_pool_keeps_the_same_set(pool, rank, times):
    images, centers = pool
    expected = kept_content(images, decided(images, centers, 60, rank=rank))
    repeated = np.random.default_rng(0).permutation(np.tile(np.arange(len(images.id)), times))
    more = rows_of(images, repeated)
    assert kept_content(more, decided(more, centers, 60, rank=rank)) == expected


def test_one_image_repeated_a_thousand_times_changes_nothing(pool, rank):
    images, centers = pool
    expected = kept_content(images, decided(images, centers, 60, rank=rank))
    more = rows_of(
        images, np.r_[np.zeros(1000, int) + np.nanargmin(images.entropy), np.arange(len(images.id))]
    )
    assert kept_content(more, decided(more, centers, 60, rank=rank)) == expected


def test_the_closest_ranked_image_is_closest(pool):
    images, centers = pool
    result = decided(images, centers, 10_000, rank="closest")
    for k in range(len(centers)):
        members = np.flatnonzero((images.labels == k) & (result.rank >= 0))
        by_rank = members[np.argsort(result.rank[members])]
        assert (np.diff(images.distance[by_rank]) >= 0).all()


def test_clusters_get_equal_shares_until_they_are_used_up(pool, rank):
    images, centers = pool
    result = decided(images, centers, 100, rank=rank, alpha=0, beta=0)
    seats = np.bincount(images.labels[result.kept], minlength=len(centers))
    left = np.bincount(images.labels[result.rank >= 0], minlength=len(centers)) - seats
    assert seats[left > 0].max() - seats.min(where=left > 0, initial=1000) <= 1
    assert seats[left == 0].max(initial=0) <= seats[left > 0].max()


def identical(n, value):
    x = np.full((n, 6), value, np.float32)
    return Pool(
        np.arange(n),
        np.array([f"{i}" for i in range(n)], dtype=object),
        np.full(n, 3, np.float32),
        np.zeros(n, np.float32),
        np.ones(n, np.float32),
        x,
        np.zeros(n, np.int32),
        np.zeros(n, np.float32),
    )


def test_all_images_identical(rank):
    images = identical(50, 0.4)
    one = decided(images._replace(content=np.array(["same"] * 50, dtype=object)), images.x[:1], 10, rank=rank)
    assert one.kept.tolist() == [True] + [False] * 49
    alike = decided(images, images.x[:1], 10, rank=rank)
    assert alike.kept.sum() == 1
    assert (alike.reason == REASONS.index("near_duplicate")).sum() == 49
    loose = decided(images, images.x[:1], 10, rank=rank, near_duplicate=1.1)
    assert loose.kept.sum() == 10


def test_zero_embeddings(rank):
    images = identical(50, 0.0)
    result = decided(images, images.x[:1], 10, rank=rank)
    assert result.kept.sum() == 10
    assert np.flatnonzero(result.kept).tolist() == sorted(np.argsort(content_key(images.content, 0))[:10])


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_a_small_pool_works(rank, n):
    images, centers = make_pool(n=60)
    readable = np.flatnonzero(images.entropy > 0)
    small = rows_of(images, readable[:n])
    result = decided(small, centers, 3, rank=rank)
    assert len(result.kept) == n
    assert 1 <= result.kept.sum() <= 3 if n else not result.kept.any()


def test_a_pool_of_unreadable_images_keeps_none(rank):
    images, centers = make_pool(n=60)
    nothing = rows_of(images, np.flatnonzero(np.isnan(images.entropy)))
    result = decided(nothing, centers, 3, rank=rank)
    assert (result.reason == REASONS.index("unreadable")).all()
    assert (result.nearest_kept == -1).all()


def test_the_seed_decides_between_equal_images():
    images = identical(50, 0.0)
    sets = {tuple(np.flatnonzero(decided(images, images.x[:1], 5, seed=s).kept)) for s in range(5)}
    assert len(sets) > 1


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(4)
    return (rng.normal(size=(8, 10))[rng.integers(0, 8, 300)] + 0.4 * rng.normal(size=(300, 10))).astype(
        np.float32
    )


def chosen(x, n, **settings):
    return [x[i].tobytes() for i in select(x, n, **settings)]


def test_select_is_exact_nested_and_seeded(embeddings):
    whole = select(embeddings, 300, near_duplicate=2)
    assert sorted(whole) == list(range(300))
    for n in (1, 40, 200):
        np.testing.assert_array_equal(select(embeddings, n, near_duplicate=2), whole[:n])
    assert set(select(embeddings, 40, seed=1)) != set(select(embeddings, 40, seed=2))


def test_select_ignores_row_order_and_copies(embeddings):
    expected = chosen(embeddings, 40)
    shuffled = embeddings[np.random.default_rng(0).permutation(300)]
    assert chosen(shuffled, 40) == expected
    assert chosen(np.tile(shuffled, (3, 1)), 40) == expected


def test_select_leaves_out_rows_without_an_embedding(embeddings):
    expected = chosen(embeddings, 40)
    broken = np.insert(embeddings, [0, 5, 300], np.nan, axis=0)
    assert chosen(broken, 40) == expected
    assert len(select(np.full((4, 3), np.nan), 2)) == 0


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_select_from_a_small_pool(embeddings, n):
    assert sorted(select(embeddings[:n], 20, near_duplicate=2)) == list(range(n))


def test_select_with_more_clusters_than_images(embeddings):
    got = select(embeddings[:5], 3, labels=[100, 7, 3000, 0, 12])
    assert len(set(got)) == 3


def test_select_from_identical_rows():
    assert len(select(np.ones((40, 4)), 10)) == 1
    assert len(select(np.zeros((40, 4)), 10)) == 1
