import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsprune.config import FilterConfig
from rsprune.filters import REASONS, eligibility, entropy_threshold, otsu


def table(entropy, nodata=0.0, autocorrelation=1.0):
    n = len(entropy)
    return {
        "entropy": np.array(entropy, np.float32),
        "nodata_fraction": np.broadcast_to(np.array(nodata, np.float32), n),
        "autocorrelation": np.broadcast_to(np.array(autocorrelation, np.float32), n),
    }


def names(result):
    return [REASONS[code] for code in result.reason]


def test_the_first_reason_that_applies_is_given():
    nan = np.nan
    scores = table(
        [nan, 1, 1, 1, 5, 5], nodata=[nan, 0.6, 0.6, 0, 0, 0.5], autocorrelation=[nan, 0, 0.9, 0.05, 0.1, 1]
    )
    result = eligibility(scores, FilterConfig(entropy_min=2))
    assert names(result) == ["unreadable", "nodata", "nodata", "noise", "kept", "kept"]
    np.testing.assert_array_equal(result.threshold_used, np.float32([nan, 0.5, 0.5, 0.1, 2, 2]))
    assert result.thresholds == {
        "entropy": 2.0, "nodata_fraction": 0.5, "saturated_fraction": 0.5, "autocorrelation": 0.1,
        "sharpness": 0.0,
    }  # fmt: skip
    np.testing.assert_array_equal(result.eligible, [0, 0, 0, 0, 1, 1])


def test_each_guard_has_its_own_threshold_and_reason():
    scores = table([5, 5, 5, 5, 5, 1], autocorrelation=[1, 0.3, 1, 0.3, 1, 1]) | {
        "saturated_fraction": np.float32([0.7, 0.7, 0.6, 0, 0, 0]),
        "sharpness": np.float32([1, 0.2, 0.2, 0.2, 0.2, 0]),
    }
    strict = FilterConfig(entropy_min=2, saturated_max=0.6, autocorrelation_min=0.5, sharpness_min=0.3)
    result = eligibility(scores, strict)
    # What is constant is not blurred.
    assert names(result) == ["saturated", "saturated", "blurred", "noise", "blurred", "low_entropy"]
    np.testing.assert_array_equal(result.threshold_used, np.float32([0.6, 0.6, 0.3, 0.5, 0.3, 2]))
    assert names(eligibility(scores, FilterConfig(entropy_min=2, saturated_max=1))) == ["kept"] * 5 + [
        "low_entropy"
    ]


def test_without_a_hash_an_image_is_unreadable():
    assert names(eligibility(table([3, 4]), hashes=["a", None])) == ["kept", "unreadable"]


def test_guards_that_were_not_computed_drop_nothing():
    assert names(eligibility({"entropy": np.float32([1, 2])}, FilterConfig(entropy_drop=0))) == ["kept"] * 2


def test_an_image_without_a_valid_patch_has_no_data_whatever_is_allowed():
    scores = table([np.nan, 4], nodata=[1, 0], autocorrelation=[np.nan, 1])
    assert names(eligibility(scores, FilterConfig(nodata_max=1))) == ["nodata", "kept"]


@pytest.mark.parametrize(("n", "dropped"), [(1, 0), (2, 0), (4, 0), (5, 1), (9, 1), (10, 2), (100, 20)])
def test_the_lowest_fifth_is_dropped(n, dropped):
    entropy = np.random.default_rng(0).permutation(n).astype(np.float32)
    result = eligibility(table(entropy), FilterConfig(entropy_drop=0.2))
    assert set(entropy[~result.eligible]) == set(range(dropped))


def test_rounding_does_not_shrink_the_quantile():
    assert entropy_threshold(np.arange(100), FilterConfig(entropy_drop=0.29)) == 29


def test_equal_entropies_are_not_all_dropped():
    assert eligibility(table([3.3] * 7)).eligible.all()
    fifth = FilterConfig(entropy_drop=0.2)
    half = eligibility(table([1] * 5 + [2] * 5), fifth)
    np.testing.assert_array_equal(half.eligible, [True] * 10)
    np.testing.assert_array_equal(eligibility(table([1] + [2] * 9), fifth).eligible, [False] + [True] * 9)


def test_the_quantile_is_taken_over_distinct_readable_content():
    entropy = list(range(10))
    scores = table([*entropy, *[0] * 50, 0, 0], nodata=[0] * 61 + [0.9])
    hashes = [f"{e}" for e in entropy] + ["0"] * 50 + [None, "x"]
    result = eligibility(scores, FilterConfig(entropy_drop=0.2), hashes=hashes)
    assert result.thresholds["entropy"] == 2
    assert names(result) == ["low_entropy"] * 2 + ["kept"] * 8 + ["low_entropy"] * 50 + [
        "unreadable",
        "nodata",
    ]


def test_otsu_splits_two_modes():
    rng = np.random.default_rng(1)
    low, high = rng.normal(1, 0.1, 30), rng.normal(5, 0.3, 90)
    assert otsu(np.concatenate([high, low])) == high.min()
    scores = table(np.concatenate([low, high]))
    assert eligibility(scores, FilterConfig(entropy_otsu=True)).eligible.sum() == 90


def test_otsu_by_hand():
    # 0 0 | 4 6 has 2 * 2 * 5^2 = 100, 0 0 4 | 6 has 3 * 1 * (14/3)^2 = 65; equal values are not split.
    assert otsu(np.array([4.0, 0, 6, 0])) == 4
    assert otsu(np.array([2.0, 2, 2])) == 2
    assert otsu(np.array([2.0])) == 2


def test_two_rules_for_the_threshold_are_refused():
    with pytest.raises(ValueError, match="exclude each other"):
        FilterConfig(entropy_min=1, entropy_otsu=True)


def test_columns_of_different_lengths_are_refused():
    scores = table([1, 2]) | {"autocorrelation": np.ones(3)}
    with pytest.raises(ValueError, match="autocorrelation has 3 rows, entropy has 2"):
        eligibility(scores)


def test_a_pool_without_a_usable_image_has_no_threshold():
    for scores in (table([]), table([np.nan], nodata=[np.nan]), table([1, 2], nodata=1)):
        result = eligibility(scores)
        assert result.thresholds["entropy"] is None
        assert not result.eligible.any()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.floats(0, 0.99))
def test_never_more_than_the_asked_share_is_dropped(values, drop):
    result = eligibility(table(values), FilterConfig(entropy_drop=drop))
    assert (~result.eligible).sum() <= drop * len(values) + 1e-6
    order = np.argsort(values, kind="stable")
    assert (np.diff(result.eligible[order].astype(int)) >= 0).all()
