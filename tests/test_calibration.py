import json
from dataclasses import replace

import numpy as np
import pytest

from rsprune.calibration import calibrate, pool_clusters
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
