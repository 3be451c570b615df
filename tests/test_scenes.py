from dataclasses import replace

import numpy as np
import pytest

from rsprune.errors import ConfigError
from rsprune.rows import content_key, row_hashes, unit_rows
from rsprune.scenes import (
    Prototypes,
    Reference,
    fit_prototypes,
    pseudo_scenes,
    stratified_sample,
    tag,
)


def blobs(per_class=30, classes=3, d=8, spread=0.1, seed=0, modes=1):
    """Labelled rows around orthogonal directions, `modes` of them to a class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    mode = np.tile(np.arange(modes), len(labels))[: len(labels)]
    x = np.eye(d)[labels * modes + mode] + spread * rng.normal(size=(len(labels), d))
    return Reference("ref", tuple("abcdefgh"[:classes]), labels.astype(np.int32), x.astype(np.float32))


def keys_of(x, seed=0):
    return content_key(row_hashes(x), seed)


def test_prototypes_are_unit_rows_sorted_by_class_and_find_their_class():
    reference = blobs(modes=2)
    found = fit_prototypes(reference, per_class=4, seed=0)
    assert found.scene.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.names == ("a", "b", "c")
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-5)
    tags = tag(reference.embeddings, found)
    known = tags.scene >= 0
    np.testing.assert_array_equal(tags.scene[known], reference.labels[known])
    # The threshold is the 1st percentile of what the reference reaches: one of 90 images is below it.
    assert (~known).sum() == 1
    assert tags.similarity[~known] < found.threshold <= tags.similarity[known].min()


def test_an_image_unlike_any_class_is_unknown():
    prototypes = fit_prototypes(blobs(), seed=0)
    far = np.eye(8)[[5, 0]]
    tags = tag(far, prototypes)
    assert tags.scene.tolist() == [-1, 0]
    assert tags.similarity[0] < 0.5 < prototypes.threshold


def test_tags_by_hand():
    prototypes = Prototypes(
        vectors=np.float32([[1, 0], [0.8, 0.6], [0, 1]]),
        scene=np.int32([0, 0, 2]),
        names=("a", "empty", "b"),
        threshold=0.5,
    )
    x = np.array([[2.0, 0], [0.6, 0.8], [0, 3], [-1, -1], [0, 0], [np.nan, 1]])
    tags = tag(x, prototypes)
    assert tags.scene.tolist() == [0, 0, 2, -1, -1, -1]
    np.testing.assert_allclose(tags.similarity[:5], [1, 0.96, 1, -(0.5**0.5), 0], atol=1e-6)
    np.testing.assert_allclose(tags.margin[:3], [1, 0.16, 0.4], atol=1e-6)
    assert np.isnan(tags.similarity[5])
    assert np.isnan(tags.margin[5])


def test_tags_do_not_depend_on_blocks(monkeypatch):
    reference = blobs()
    prototypes = fit_prototypes(reference, seed=0)
    whole = tag(reference.embeddings, prototypes)
    monkeypatch.setattr("rsprune.scenes.BLOCK_BYTES", 400)
    parts = tag(reference.embeddings, prototypes)
    np.testing.assert_array_equal(whole.scene, parts.scene)
    np.testing.assert_allclose(whole.margin, parts.margin, atol=1e-6)


def test_prototypes_do_not_depend_on_row_order_or_copies():
    reference = blobs(spread=0.4)
    expected = fit_prototypes(reference, seed=3)
    shuffle = np.random.default_rng(1).permutation(np.tile(np.arange(90), 2))
    again = replace(reference, labels=reference.labels[shuffle], embeddings=reference.embeddings[shuffle])
    np.testing.assert_array_equal(fit_prototypes(again, seed=3).vectors, expected.vectors)


def test_classes_with_one_image_or_none_are_accepted():
    x = np.eye(4, dtype=np.float32)[[0, 1, 2, 2, 3]]
    reference = Reference("few", ("a", "b", "c", "none"), np.int32([0, 1, 2, 2, -1]), x)
    found = fit_prototypes(reference, seed=0)
    assert found.scene.tolist() == [0, 1, 2]
    assert found.threshold == 0
    assert tag(x, found).scene.tolist() == [0, 1, 2, 2, 0]


def test_no_image_is_its_own_prototype():
    x = unit_rows(np.float32([[1, 0], [1, 1]]))
    found = fit_prototypes(Reference("pair", ("a",), np.int32([0, 0]), x), seed=0)
    assert found.threshold == pytest.approx(np.cos(np.radians(22.5)))


def test_an_image_without_a_direction_is_unknown_however_low_the_threshold():
    prototypes = Prototypes(np.float32([[1, 0]]), np.int32([0]), ("a",), -1.0)
    assert tag(np.float32([[0, 0], [-1, 0]]), prototypes).scene.tolist() == [-1, 0]


def test_a_class_of_opposite_images_still_has_a_direction():
    x = np.float32([[1, 0], [-1, 0]])
    found = fit_prototypes(Reference("r", ("a",), np.int32([0, 0]), x), seed=0)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1)


def test_several_references_keep_their_classes_apart():
    one, two = blobs(seed=0), replace(blobs(seed=1), name="other", classes=("c", "d", "e"))
    found = fit_prototypes([one, two], seed=0)
    assert found.names == ("a", "b", "ref/c", "other/c", "d", "e")
    assert set(found.scene) == set(range(6))
    with pytest.raises(ConfigError, match="two references"):
        fit_prototypes([one, one], seed=0)


def test_references_that_cannot_be_used_are_refused():
    one = blobs()
    with pytest.raises(ConfigError, match="ref has 8 features and thin has 5"):
        fit_prototypes([one, replace(blobs(d=5), name="thin")], seed=0)
    with pytest.raises(ConfigError, match="no labelled image"):
        fit_prototypes(replace(one, embeddings=np.full_like(one.embeddings, np.nan)), seed=0)
    with pytest.raises(ValueError, match="3 labels for 2 embeddings"):
        Reference("r", ("a",), np.zeros(3, np.int32), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="label 1 but 1 classes"):
        Reference("r", ("a",), np.ones(2, np.int32), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="x has 5 features, the prototypes have 8"):
        tag(np.zeros((1, 5)), fit_prototypes(one, seed=0))


def test_pseudo_scenes_cover_the_pool_and_ignore_order_and_copies():
    x = blobs(per_class=40, classes=4).embeddings
    found = pseudo_scenes(x, 4, keys_of(x), 0)
    scene = tag(x, found).scene
    assert sorted(np.bincount(scene)) == [40] * 4
    shuffle = np.random.default_rng(0).permutation(np.tile(np.arange(160), 3))
    again = pseudo_scenes(x[shuffle], 4, keys_of(x[shuffle]), 0)
    np.testing.assert_array_equal(again.vectors, found.vectors)


@pytest.mark.parametrize("n", [0, 1, 2, 9, 16])
def test_pseudo_scenes_of_a_small_pool(n):
    x = blobs(per_class=16, classes=1).embeddings[:n]
    found = pseudo_scenes(x, 32, keys_of(x), 0)
    assert len(found.vectors) == len(found.names) == min(n, max(1, n // 8))
    assert (tag(x, found).scene >= 0).all()


def test_pseudo_scenes_of_images_with_one_embedding():
    x = np.ones((100, 3), np.float16)
    found = pseudo_scenes(x, 8, np.arange(100, dtype=np.uint64), 0)
    assert len(found.vectors) == len(found.names) == 1
    assert (tag(x, found).scene == 0).all()


def test_pseudo_scenes_leave_rows_without_an_embedding_unknown():
    x = blobs().embeddings.copy()
    x[3] = np.nan
    found = pseudo_scenes(x, 3, keys_of(x), 0)
    assert np.isfinite(found.vectors).all()
    assert np.flatnonzero(tag(x, found).scene < 0).tolist() == [3]


def sampled(sizes, n_fit):
    scene = np.repeat(np.arange(len(sizes)) - 1, sizes).astype(np.int32)
    keys = np.random.default_rng(0).integers(0, 2**63, len(scene)).astype(np.uint64)
    rows = stratified_sample(scene, n_fit, keys)
    assert len(set(rows)) == len(rows) == min(n_fit, len(scene))
    assert (np.diff(keys[rows].astype(float)) > 0).all()
    for s in range(-1, len(sizes) - 1):
        taken = rows[scene[rows] == s]
        if len(taken):
            assert set(taken) == set(np.flatnonzero(scene == s)[np.argsort(keys[scene == s])][: len(taken)])
    return np.bincount(scene[rows] + 1, minlength=len(sizes)).tolist()


def test_seats_follow_the_root_of_the_scene_size():
    assert sampled([100, 400, 900], 60) == [10, 20, 30]
    assert sampled([4, 400, 900], 60) == [4, 22, 34]


def test_a_rare_scene_has_a_quarter_of_an_equal_share():
    # By the root alone, 30 of 10,000 images would get 13 of 200 seats; the floor is 200 / (4 * 2).
    assert sampled([30, 10_000], 200) == [25, 175]
    assert sampled([7, 10_000], 200) == [7, 193]


def test_samples_are_exact_at_the_edges():
    assert sampled([3, 2, 1], 100) == [3, 2, 1]
    assert sum(sampled([5, 5, 5, 5], 2)) == 2
    assert sampled([5, 5], 0) == [0, 0]
    assert sampled([1], 1) == [1]


def test_copies_and_excluded_rows_are_not_sampled():
    scene, keys = np.int32([0, 0, 1, 1, 1]), np.array([5, 5, 7, 1, 2], np.uint64)
    allowed = np.array([True, True, True, True, False])
    assert stratified_sample(scene, 9, keys, allowed).tolist() == [3, 0, 2]


def test_huge_and_tiny_rows_have_directions():
    x = np.float32([[3e38, 3e38], [1e-38, 0], [0, 0]])
    np.testing.assert_allclose(unit_rows(x), [[0.5**0.5] * 2, [1, 0], [0, 0]], rtol=1e-6)
