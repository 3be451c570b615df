"""What is concluded from a few seeds, against SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from rsprune.experiment.statistics import holm, interval, paired, steps_to_reach
from rsprune.experiment.summary import convergence

RNG = np.random.default_rng(0)


def test_paired_agrees_with_scipy():
    a, b = RNG.normal(size=(2, 5))
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    expected = stats.ttest_rel(a, b)
    low, high = expected.confidence_interval(0.95)
    np.testing.assert_allclose(
        [found.difference, found.p, found.low, found.high], [(a - b).mean(), expected.pvalue, low, high]
    )
    assert found.seeds == 5


def test_only_seeds_that_both_have_are_paired():
    found = paired({0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.5, 0: 0.5, 7: 0.0})
    assert (found.difference, found.seeds) == (0.5, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_gives_a_difference_and_no_p_value():
    found = paired({3: 1.0}, {3: 4.0})
    assert found.difference == -3
    assert math.isnan(found.p)
    assert math.isnan(found.low)


def test_equal_differences_are_certain_and_equal_values_are_not():
    assert paired({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0}).p == 0
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1


def test_interval_is_that_of_student():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t of 97.5 % with 2 degrees
    assert math.isnan(interval([1.0])[1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.8, 0.9]) == [1.0, 1.0]
    found = holm([math.nan, 0.02])
    assert math.isnan(found[0])
    assert found[1] == pytest.approx(0.04)


def test_steps_are_interpolated_between_checkpoints():
    curve = {100: 4.0, 400: 1.0}
    assert steps_to_reach(curve, 2.0) == pytest.approx(200)  # halfway in both logarithms
    assert steps_to_reach(curve, 1.0) == pytest.approx(400)
    assert steps_to_reach(curve, 5.0) == 100
    assert steps_to_reach(curve, 0.9) is None


def test_speed_up_needs_every_seed_to_arrive():
    full = {0: {100: 4.0, 400: 2.0}, 1: {100: 4.0, 400: 2.0}}
    fast = {0: {100: 4.0, 400: 1.0}, 1: {100: 4.0, 400: 1.0}}
    slow = {0: {100: 4.0, 400: 1.0}, 1: {100: 4.0, 400: 3.0}}
    found = {c["arm"]: c for c in convergence({"full": full, "fast": fast, "slow": slow}, 400)}
    assert found["fast"]["speed_up"] == pytest.approx(2)
    assert found["slow"]["speed_up"] is None
    assert found["slow"]["steps"][1] is None
    assert "full" not in found
