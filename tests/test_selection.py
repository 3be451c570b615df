import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsprune.config import FilterConfig, SelectConfig
from rsprune.filters import REASONS
from rsprune.rows import most_similar, unit_rows
from rsprune.selection import decide, select
from rsprune.similar import exact_duplicates, near_duplicates

KEYS = np.arange(100, dtype=np.uint64)


def circle(*degrees):
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_the_best_copy_stays_then_the_smaller_key_then_the_first():
    hashes = ["a", "b", "a", "a", "c", "c", None, None, "d", "d"]
    quality = np.float32([1, 1, 3, 2, 5, 5, 0, 0, np.nan, 0])
    keys = np.array([0, 0, 0, 0, 7, 6, 0, 0, 3, 4], np.uint64)
    assert exact_duplicates(hashes, quality, keys).tolist() == [2, -1, -1, 2, 5, -1, -1, -1, 9, -1]
    allowed = np.arange(10) != 2
    assert exact_duplicates(hashes, quality, keys, allowed).tolist() == [3, -1, -1, -1, 5, -1, -1, -1, 9, -1]


def test_near_duplicates_follow_the_most_similar_accepted_image():
    x = circle(0, 20, 12, 5, 90)
    threshold = float(np.cos(np.radians(15)))
    quality = np.float32([5, 4, 3, 2, 1])
    # 12 is nearer to 20 than to 0, 5 nearer to 0; 12 was not accepted, so 5 may not follow it.
    found = near_duplicates(x, np.zeros(5, int), quality, KEYS[:5], threshold)
    assert found.tolist() == [-1, -1, 1, 0, -1]
    # Taken the other way round, 5 is accepted first and stands for all its neighbours but itself.
    found = near_duplicates(x, np.zeros(5, int), -quality, KEYS[:5], threshold)
    assert found.tolist() == [3, 3, 3, -1, -1]
    assert near_duplicates(x, np.arange(5), quality, KEYS[:5], threshold).tolist() == [-1] * 5
    assert near_duplicates(x, np.zeros(5, int), quality, KEYS[:5], 1.01).tolist() == [-1] * 5


def leader_loop(x, order, threshold):
    x, found, accepted = unit_rows(x), np.full(len(x), -1), []
    for i in order:
        similar = [(float(x[i] @ x[j]), -n, j) for n, j in enumerate(accepted)]
        best = max(similar, default=(-2, 0, -1))
        if best[0] >= threshold:
            found[i] = best[2]
        else:
            accepted.append(i)
    return found


@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.97])
def test_blocks_give_what_one_image_after_the_other_gives(monkeypatch, threshold):
    monkeypatch.setattr("rsprune.similar._LEADER_BLOCK", 16)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3))
    quality = rng.permutation(150).astype(np.float32)
    found = near_duplicates(x, np.zeros(150, int), quality, KEYS[:1].repeat(150), threshold)
    np.testing.assert_array_equal(found, leader_loop(x, np.argsort(-quality), threshold))
    assert 0 < (found >= 0).sum() < 150


def test_equal_embeddings_are_duplicates_at_cosine_one():
    x = np.random.default_rng(0).normal(size=(1, 112)).repeat(5, axis=0).astype(np.float16)
    found = near_duplicates(x, np.zeros(5, int), np.zeros(5), KEYS[:5], 1.0)
    assert found.tolist() == [-1, 0, 0, 0, 0]


def test_images_without_a_direction_are_no_near_duplicates():
    found = near_duplicates(np.zeros((3, 4)), np.zeros(3, int), np.zeros(3), KEYS[:3], 0.98)
    assert found.tolist() == [-1] * 3


def test_most_similar_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x, others = unit_rows(rng.normal(size=(30, 4))), unit_rows(rng.normal(size=(25, 4)))
    monkeypatch.setattr("rsprune.rows.BLOCK_BYTES", 4 * 1024 * 7)
    index, cosine = most_similar(x, others)
    np.testing.assert_array_equal(index, (x @ others.T).argmax(axis=1))
    np.testing.assert_allclose(cosine, (x @ others.T).max(axis=1), rtol=1e-6)


def test_decisions_by_hand():
    nan = np.nan
    #            0: kept  1: copy of 0  2: near 0  3: poor  4: noise  5: over  6: kept  7: bad  8: lone poor
    x = np.concatenate([circle(0, 0, 2, 8, 30, 40, 90), [[nan, nan]], circle(180)])
    labels = np.int32([0, 0, 0, 0, 0, 0, 1, -1, 2])
    centers = np.concatenate([circle(10, 90, 180)])
    scores = {
        "entropy": np.float32([5, 5, 4, 1, 6, 4, 5, nan, 1]),
        "nodata_fraction": np.float32([0, 0, 0, 0, 0, 0, 0, nan, 0]),
        "autocorrelation": np.float32([1, 1, 1, 1, 0, 1, 1, nan, 1]),
    }
    hashes = ["a", "a", "c", "d", "e", "f", "g", None, "h"]
    got = decide(
        scores=scores,
        hashes=hashes,
        x=x,
        labels=labels,
        distance=np.float32([1, 1, 0.9, 0.8, 0.7, 2, 0.1, nan, 0.1]),
        centers=centers,
        filters=FilterConfig(entropy_min=2, autocorrelation_min=0.2),
        select=SelectConfig(near_duplicate=0.99, rank="closest", alpha=0, beta=0),
        budget=2,
        seed=0,
    )
    reasons = [REASONS[code] for code in got.reason]
    copy = 0 if reasons[0] == "exact_duplicate" else 1
    stays = 1 - copy
    assert reasons[copy] == "exact_duplicate"
    assert reasons[2:] == [
        "near_duplicate",
        "low_entropy",
        "noise",
        "over_budget",
        "kept",
        "unreadable",
        "low_entropy",
    ]
    np.testing.assert_array_equal(np.flatnonzero(got.kept), sorted([stays, 6]))
    assert got.rank[[stays, 6, 5]].tolist() == [0, 1, 2]
    assert (np.delete(got.rank, [stays, 5, 6]) == -1).all()
    assert got.duplicate_of[[copy, 2]].tolist() == [stays, stays]
    # Cluster 2 keeps none: its image looks into cluster 1, whose centre is the nearer one.
    assert got.nearest_kept[[copy, 2, 3, 4, 5, 8]].tolist() == [stays] * 5 + [6]
    assert got.nearest_kept[[stays, 6, 7]].tolist() == [-1] * 3
    cosines = np.cos(np.radians([0, 2, 8, 30, 40, 90]))
    np.testing.assert_allclose(got.nearest_kept_similarity[[copy, 2, 3, 4, 5, 8]], cosines, atol=1e-6)
    np.testing.assert_array_equal(got.threshold, np.float32([2, 2, 0.99, 2, 0.2, 2, 2, nan, 2]))
    np.testing.assert_array_equal(got.score, scores["entropy"])
    assert got.thresholds["entropy"] == 2


def test_a_copy_of_a_dropped_image_is_stood_for_by_the_nearest_kept_one():
    x = circle(0, 1, 1, 40)
    got = decide(
        scores={"entropy": np.float32([3, 2, 2, 1])},
        hashes=["a", "b", "b", "c"],
        x=x,
        labels=np.zeros(4, np.int32),
        distance=np.zeros(4, np.float32),
        centers=circle(0),
        filters=FilterConfig(entropy_drop=0),
        budget=1,
    )
    kept = int(np.flatnonzero(got.kept)[0])
    copy = int(np.flatnonzero(got.reason == REASONS.index("exact_duplicate"))[0])
    assert not got.kept[got.duplicate_of[copy]]
    assert got.nearest_kept[copy] == kept


@pytest.mark.parametrize("label", [-1, 0])
def test_a_readable_image_without_an_embedding_is_not_kept(label):
    got = decide(
        scores={"entropy": np.float32([3, 3])},
        hashes=["a", "b"],
        x=np.array([[1, 0], [np.nan, 0]]),
        labels=np.int32([0, label]),
        distance=np.float32([0, np.nan]),
        centers=circle(0),
        budget=5,
    )
    assert [REASONS[code] for code in got.reason] == ["kept", "unreadable"]


def test_alpha_and_beta_reach_the_allocation():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [80, 20])
    x = rng.normal(size=(100, 5)) * np.where(labels == 0, 1, 0.1)[:, None] + 3 * np.eye(5)[labels]
    count = {}
    for alpha, beta in ((0, 0), (1, 0), (0, 1)):
        chosen = select(x, 20, labels=labels, alpha=alpha, beta=beta, near_duplicate=2)
        count[alpha, beta] = np.bincount(labels[chosen]).tolist()
    assert count[0, 0] == [10, 10]
    assert count[1, 0] == [16, 4]
    assert count[0, 1][0] > 16


def test_the_better_of_two_duplicates_is_chosen():
    x = circle(0, 1, 90)
    assert set(select(x, 3, labels=[0, 0, 0], scores=[1, 2, 1])) == {1, 2}
    assert set(select(x, 3, labels=[0, 0, 0], scores=[2, 1, 1])) == {0, 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_in_torch_out(dtype):
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(60) % 3
    got = select(x, 10, labels=labels, scores=torch.ones(60))
    assert isinstance(got, torch.Tensor)
    assert got.dtype == torch.int64
    values = x.float().numpy() if dtype == torch.bfloat16 else x.numpy()
    np.testing.assert_array_equal(got.numpy(), select(values, 10, labels=labels.numpy()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least 1, got 0"),
        ({"labels": [0] * 4}, "labels has 4 rows, x has 5"),
        ({"scores": [0.0] * 6}, "scores has 6 rows, x has 5"),
        ({"x": np.zeros(5)}, "2 dimensions .* got 1"),
        ({"labels": [0] * 5, "rank": "best"}, "got 'best'"),
    ],
)
def test_wrong_arguments_are_refused_with_the_numbers(arguments, message):
    arguments = {"x": np.eye(5), "n": 2} | arguments
    with pytest.raises(ValueError, match=message):
        select(arguments.pop("x"), arguments.pop("n"), **arguments)


def test_decide_refuses_arrays_of_different_lengths():
    good = {
        "scores": {"entropy": np.ones(2, np.float32)},
        "hashes": ["a", "b"],
        "x": np.eye(2),
        "labels": np.int32([0, 0]),
        "distance": np.zeros(2, np.float32),
        "centers": np.eye(2),
        "budget": 1,
    }
    for wrong, message in (
        ({"hashes": ["a"]}, "hashes has 1 rows, x has 2"),
        ({"distance": np.zeros(3)}, "distance has 3 rows, x has 2"),
        ({"labels": np.int32([0, 2])}, "labels go up to 2 but there are 2 centers"),
    ):
        with pytest.raises(ValueError, match=message):
            decide(**good | wrong)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 50), st.integers(0, 2**32))
def test_select_returns_distinct_rows_and_at_most_n(size, n, clusters, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 4))
    got = select(x, n, labels=rng.integers(0, clusters, size), near_duplicate=2, seed=seed)
    assert len(set(got.tolist())) == len(got) == min(n, size)


def test_defaults_are_those_of_the_command():
    """They are written out in the signature, so that they can be read in the reference."""
    parameters = inspect.signature(select).parameters
    for name in ("alpha", "beta", "rank", "near_duplicate"):
        assert parameters[name].default == getattr(SelectConfig, name), name
