"""`PatchEntropy`: scikit-learn's conventions, and the numbers of the kernel."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from rsprune import KMeans, PatchEntropy, patch_entropy, transformer


@parametrize_with_checks([PatchEntropy(patch=2)])
def test_follows_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("shape", [(32, 48), (16, 16, 3)])
def test_equals_the_kernel_and_names_its_columns(shape):
    images = np.random.default_rng(0).integers(0, 40, (5, *shape), dtype=np.uint8)
    step = PatchEntropy(shape, patch=16, scale=(0, 256)).fit(images.reshape(5, -1))
    found = step.transform(images.reshape(5, -1))
    np.testing.assert_array_equal(found, patch_entropy(images, 16).reshape(5, -1))
    names = step.get_feature_names_out()
    assert len(names) == found.shape[1]
    assert names[-1] == ("entropy_1_2" if len(shape) == 2 else "entropy_0_0_2")


def test_blocks_of_rows_are_put_together(monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (23, 64)).astype(np.uint8)
    whole = PatchEntropy((8, 8), patch=4, scale=(0, 256)).fit_transform(x)
    monkeypatch.setattr(transformer, "_VALUES", 5 * 64)
    np.testing.assert_array_equal(PatchEntropy((8, 8), patch=4, scale=(0, 256)).fit_transform(x), whole)


def test_the_learnt_scale_fills_all_bins():
    ramp = np.linspace(-3, 5, 256)[None]
    assert PatchEntropy(patch=256).fit_transform(ramp)[0, 0] == pytest.approx(8 - 2 / 256, abs=0.02)


def test_stands_in_a_pipeline_before_kmeans():
    rng = np.random.default_rng(1)
    flat, rich = np.zeros((6, 64)), rng.uniform(0, 255, (6, 64))
    labels = make_pipeline(PatchEntropy((8, 8), patch=4), KMeans(2, random_state=0)).fit_predict(
        np.concatenate([flat, rich])
    )
    assert len(set(labels[:6])) == len(set(labels[6:])) == 1
    assert labels[0] != labels[6]


def test_a_search_over_both_steps_finds_the_clusters_that_are_there():
    rng = np.random.default_rng(2)
    images = np.concatenate([np.zeros((12, 64)), rng.uniform(0, 255, (12, 64))])
    images = images[rng.permutation(len(images))]
    pipeline = make_pipeline(PatchEntropy((8, 8)), KMeans(random_state=0)).set_output(transform="pandas")
    search = GridSearchCV(pipeline, {"patchentropy__patch": [4, 8], "kmeans__n_clusters": [1, 2]}, cv=2)
    best = search.fit(images).best_estimator_
    assert best[-1].n_clusters == 2
    assert list(clone(best).fit_transform(images).columns) == ["kmeans0", "kmeans1"]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (PatchEntropy((3, 3)), "64 values"),
        (PatchEntropy(patch=0), "at least 1 pixel"),
        (PatchEntropy(scale=(5, 5)), "lo < hi"),
        (PatchEntropy(scale=(5,)), "lo < hi, got"),
        (PatchEntropy(scale="auto"), "lo < hi, got 'auto'"),
        (PatchEntropy(8), r"must be \(H, W\) or \(H, W, C\), got 8"),
    ],
)
def test_says_what_is_wrong_with_a_setting(step, words):
    with pytest.raises(ValueError, match=words):
        step.fit(np.zeros((2, 64)))
