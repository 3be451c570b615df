"""What is concluded from a few seeds, against SciPy and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from rsprune.experiment import pictures
from rsprune.experiment.config import ArmConfig, DataConfig, ExperimentConfig, MeasureConfig, SceneConfig
from rsprune.experiment.statistics import first_reached, holm, interval, paired
from rsprune.experiment.summary import comparisons, convergence, enough
from rsprune.experiment.text import enough_share

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
    assert first_reached(curve, 2.0) == pytest.approx(200)  # halfway in both logarithms
    assert first_reached(curve, 1.0) == pytest.approx(400)
    assert first_reached(curve, 5.0) == 100
    assert first_reached(curve, 0.9) is None


def test_speed_up_needs_every_seed_to_arrive():
    full = {0: {100: 4.0, 400: 2.0}, 1: {100: 4.0, 400: 2.0}}
    fast = {0: {100: 4.0, 400: 1.0}, 1: {100: 4.0, 400: 1.0}}
    slow = {0: {100: 4.0, 400: 1.0}, 1: {100: 4.0, 400: 3.0}}
    found = {c["arm"]: c for c in convergence({"full": full, "fast": fast, "slow": slow}, 400)}
    assert found["fast"]["speed_up"] == pytest.approx(2)
    assert found["slow"]["speed_up"] is None
    assert found["slow"]["steps"][1] is None
    assert "full" not in found


def experiment_of(*arms: ArmConfig, steps=(10, 20)) -> ExperimentConfig:
    scene = SceneConfig("bluemarble", stride=16, block=64)
    return ExperimentConfig("x", DataConfig((scene,)), MeasureConfig(steps), tuple(arms))


def test_comparisons_that_are_not_run_yet_count_for_holm():
    arms = (ArmConfig("rsprune", keep=0.1), ArmConfig("full"), ArmConfig("random", keep=0.1))
    settings = replace(experiment_of(*arms), primary=("rsprune 10 %", "full", "random 10 %"))
    curves = {"rsprune 10 %": [1.0, 1.1, 0.9], "full": [2.0, 2.2, 2.1], "random 10 %": [1.2, 1.4, 1.1]}
    curves = {arm: {s: {20: v} for s, v in enumerate(values)} for arm, values in curves.items()}
    whole = {c["second"]: c for c in comparisons(settings, curves, 20, "balanced")}
    assert whole["full"]["p_holm"] == pytest.approx(2 * whole["full"]["p"])
    del curves["random 10 %"]
    (alone,) = comparisons(settings, curves, 20, "balanced")
    assert alone["p_holm"] == whole["full"]["p_holm"]
    (other,) = comparisons(settings, curves, 20, "natural")
    assert other["p_holm"] is None


def test_the_share_that_is_enough_lies_between_those_that_were_run():
    settings = experiment_of(
        ArmConfig("full"), ArmConfig("reweighted"),
        *(ArmConfig("random", keep=share) for share in (0.04, 0.01, 0.16)),
        ArmConfig("rsprune", keep=0.01), ArmConfig("rsprune", name="rsprune with other settings", keep=0.16),
    )  # fmt: skip
    losses = {
        "full": 1.0,
        "reweighted": 0.4,
        "random 1 %": 4.08,
        "random 4 %": 2.04,
        "random 16 %": 0.51,
        "rsprune 1 %": 0.3,
        "rsprune with other settings": 0.2,
    }
    curves = {arm: {seed: {10: loss, 20: 2 * loss} for seed in (0, 1)} for arm, loss in losses.items()}
    curves["random 4 %"][1][10] = 1.019
    del curves["reweighted"][1], curves["random 16 %"][1]
    found = enough(settings, curves)
    assert {(line["strategy"], line["against"], line["step"]) for line in found} == {
        ("random", against, step) for against in ("full", "reweighted") for step in (10, 20)
    }
    by = {(line["against"], line["step"]): line for line in found}
    # 1.02 is halfway, in logarithms, between 2.04 at 4 % and 0.51 at 16 %.
    assert by["full", 10]["shares"] == pytest.approx({0: 0.08, 1: 0.04}, rel=1e-2)
    assert by["full", 20]["shares"] == {0: pytest.approx(0.08), 1: None}
    assert by["reweighted", 10]["shares"] == {0: None}
    assert [enough_share(by["full", 10], seed) for seed in (0, 1, 2)] == ["8 %", "4 %", ""]
    assert enough_share(by["reweighted", 10], 0) == "more than 16 %"
    assert enough_share(by["full", 20], 1) == "more than 4 %"
    curves["full"][0][10] = 4.0
    most = next(line for line in enough(settings, curves) if line["against"] == "full")
    assert enough_share(most, 0) == "at most 1 %"


def test_the_picture_of_shares_shows_differences_of_the_same_seed(tmp_path):
    arms = [("full", "full", 1.0), ("reweighted", "reweighted", 0.5)]
    arms += [(f"random {100 * share:g} %", "random", share) for share in (0.1, 0.5)]
    losses = {"full": {0: 2.0, 1: 4.0}, "random 10 %": {0: 3.0, 1: 5.0, 2: 1.0}, "random 50 %": {1: 3.0}}
    losses["other"] = {0: 9.0}  # an arm of random with settings of its own
    curves = {arm: {seed: {10: loss} for seed, loss in seeds.items()} for arm, seeds in losses.items()}
    named = {"label": "other", "name": "other", "strategy": "random", "keep": 0.1}
    facts = {
        "arms": [
            named,
            *({"name": "", **dict(zip(("label", "strategy", "keep"), a, strict=True))} for a in arms),
        ],
        "curves": {"natural": curves, "balanced": curves},
        "steps": [10],
    }
    assert pictures.differences(facts, "natural", 10, "random") == {0.1: [50, 25], 0.5: [-25]}
    assert "keep.png" in pictures.draw(facts, tmp_path)
    with Image.open(tmp_path / "keep.png") as drawn:
        assert len(drawn.convert("RGB").getcolors(1 << 20)) > 100
    facts["arms"].pop()
    assert "keep.png" not in pictures.draw(facts, tmp_path)
