import json
from dataclasses import replace

import numpy as np
import pytest

from rsprune.calibration import benchmark, calibrate, explain, pool_clusters, spaces
from rsprune.scenes import Reference
from test_scenes import blobs


def test_calibration_of_a_clean_reference():
    result = calibrate(blobs(), seed=0)
    assert result["granularity"] == 1
    assert result["reached"] is True
    assert result["classes"] == ["a", "b", "c"]
    assert result["knn_accuracy"] == 1
    for name in ("nmi", "ami", "ari", "purity"):
        assert result["at_classes"][name] == pytest.approx(1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_granularity_grows_where_classes_have_several_modes():
    # Three modes to a class: as many clusters as classes cannot be pure, three times as many are.
    reference = blobs(per_class=60, classes=2, modes=3, spread=0.05)
    result = calibrate(reference, seed=0)
    assert result["at_classes"]["purity"] < 0.9 <= result["at_granularity"]["purity"]
    assert 2 <= result["granularity"] <= 4
    assert result["at_granularity"]["clusters"] == 2 * result["granularity"]


def test_granularity_is_capped_where_labels_are_noise():
    rng = np.random.default_rng(0)
    reference = replace(blobs(), labels=rng.integers(0, 3, 90).astype(np.int32))
    result = calibrate(reference, seed=0)
    assert result["reached"] is False
    assert result["granularity"] == 90 // (8 * 3)
    assert result["knn_accuracy"] < 0.6


@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("classes", [1, 3])
def test_tiny_references_are_calibrated(per_class, classes):
    result = calibrate(blobs(per_class=per_class, classes=classes), seed=0)
    assert result["granularity"] == 1
    assert (result["knn_accuracy"] is None) == (per_class * classes == 1)


def test_calibration_does_not_depend_on_row_order():
    reference = blobs(spread=0.5)
    shuffle = np.random.default_rng(1).permutation(90)
    again = replace(reference, labels=reference.labels[shuffle], embeddings=reference.embeddings[shuffle])
    assert calibrate(again, seed=0) == calibrate(reference, seed=0)


def test_nearest_neighbours_vote():
    # Leave-one-out with one neighbour each: the two of a are each other's, b's only image is not.
    angle = np.radians([0, 5, 20])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert calibrate(Reference("r", ("a", "b"), np.int32([0, 0, 1]), x), seed=0)["knn_accuracy"] <= 2 / 3


@pytest.mark.parametrize(
    ("granularity", "present", "n", "expected"),
    [(4, 10, 10_000, 40), (1, 3, 10_000, 16), (4, 10, 80, 10), (4, 10, 9, 1), (4, 10, 1, 1), (4, 0, 400, 16)],
)
def test_pool_clusters(granularity, present, n, expected):
    assert pool_clusters(granularity, present, n) == expected


def test_spaces_by_hand():
    # Four directions at two scales: standardised they are alike, whitened as well; unit length keeps the raw ones.
    x = np.float32([[3, 0], [-3, 0], [0, 0.1], [0, -0.1], [np.nan, 0]])
    found = spaces([x[:2], x[2:]])
    assert set(found) == {"raw", "standardised", "whitened"}
    assert [[len(part) for part in parts] for parts in found.values()] == [[2, 3]] * 3
    for name, parts in found.items():
        y = np.concatenate(parts)
        assert np.isnan(y[4]).any(), name
        np.testing.assert_allclose(np.linalg.norm(y[:4], axis=1)[[0, 1]], 1, atol=1e-3)
    np.testing.assert_allclose(found["standardised"][1][:2], [[0, 1], [0, -1]], atol=1e-3)


def test_whitening_gives_components_one_scale_and_drops_the_least():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)) * (5, 4, 0.01) + 7
    (y,) = spaces([x])["whitened"]
    assert y.shape == (500, 2)
    np.testing.assert_allclose(np.cov(y.T), np.eye(2) / 2, atol=0.06)


@pytest.mark.parametrize("x", [np.ones((5, 3)), np.full((2, 3), np.nan), np.zeros((1, 4))])
def test_spaces_of_features_that_say_nothing(x):
    for parts in spaces([x]).values():
        assert [len(part) for part in parts] == [len(x)]


def test_candidates_are_compared_on_each_reference_and_on_all():
    clean, other = blobs(seed=0), replace(blobs(seed=1), name="other", classes=("d", "e", "f"))
    noise = [np.random.default_rng(i).normal(size=(90, 8)) for i in range(2)]
    candidates = {("good", "raw"): [clean.embeddings, other.embeddings], ("bad", "raw"): noise}
    rows = benchmark([clean, other], candidates, granularities=(1, 2, 100), seed=0)
    assert [(r["reference"], r["encoder"], r["granularity"]) for r in rows] == [
        (reference, encoder, g)
        for reference in ("ref", "other", None)
        for encoder in ("good", "bad")
        for g in (1, 2)
    ]  # 100 clusters per class would hold no 8 images each
    by_name = {(r["reference"], r["encoder"], r["granularity"]): r for r in rows}
    good, bad = by_name["ref", "good", 1], by_name["ref", "bad", 1]
    assert good["nmi"] == good["ari"] == good["purity"] == good["knn_accuracy"] == pytest.approx(1)
    assert good["clusters"] == 3
    assert bad["nmi"] < 0.2
    assert bad["knn_accuracy"] < 0.6
    # Both sets lie in the same three directions under different names, so together two classes share each.
    assert by_name[None, "good", 1]["purity"] == pytest.approx(0.5, abs=0.1)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_the_row_of_the_run_is_what_calibration_says():
    reference = blobs(spread=0.4)
    found = calibrate(reference, seed=2)
    (row,) = benchmark([reference], {("e", "run"): [reference.embeddings]}, granularities=(1,), seed=2)
    assert {k: row[k] for k in found["at_classes"]} == found["at_classes"]
    assert row["knn_accuracy"] == found["knn_accuracy"]


def calibrated(granularity, purity, reached):
    at = {"clusters": 3 * granularity, "purity": purity}
    return {"granularity": granularity, "reached": reached, "at_granularity": at}


@pytest.mark.parametrize(
    ("k", "found", "asked", "parts"),
    [
        (40, calibrated(8, 0.91, True), False, ["40 clusters: 24 clusters", "8 per class, are 91 % pure, and fewer",
                                                "8 x 5 scenes of the pool = 40."]),
        (40, calibrated(8, 0.8999, False), False, ["89.9 % pure, short of 90 %", "fewer than 8 images"]),
        (160, calibrated(32, 0.5, False), False, ["50 % pure, short of 90 %, and the search goes no further"]),
        (16, calibrated(1, 0.95, True), False, ["1 x 5 scenes of the pool = 5, but the pool has at least 16"]),
        (7, calibrated(8, 0.91, True), True, ["7 clusters, as asked for", "so 40 would have been chosen"]),
        (20, None, False, ["20 clusters: without a reference there are 4", "4 x 5 scenes of the pool = 20."]),
    ],
)  # fmt: skip
def test_the_number_of_clusters_is_explained(k, found, asked, parts):
    sentence = explain(k, 1000, 5, calibrated=found, asked=asked)
    assert all(part in sentence for part in parts), sentence
    assert sentence.endswith(".")
