"""Strata: every kind of image is pruned by the same share."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from decided import pool
from rsprune.config import SelectConfig
from rsprune.rows import content_key
from rsprune.selection import decide
from rsprune.strata import strata, stratified_order


def test_strata_are_named():
    table = pa.table(
        {
            "gsd": pa.array([10, 9.7, 30, None, 0.3], pa.float32()),
            "source": pa.array([0, 0, 1, 1, 0], pa.int16()),
            "timestamp": ["2020-01-31T00:00:00", "2021-12-01", None, "no date", "2020-07-01T10:00:00Z"],
        }
    )
    code, names = strata([table], ["gsd"], ["s2", "l8"])
    assert [names[i] for i in code] == ["about 8 m", "about 8 m", "about 32 m", "unknown", "about 0.25 m"]
    code, names = strata([table], ["date", "sensor"], ["s2", "l8"])
    assert [names[i] for i in code] == [
        "December to February, s2", "December to February, s2", "unknown, l8", "unknown, l8",
        "June to August, s2",
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["rsprune", "random", "density", "kcenter"])
@pytest.mark.parametrize("budget", [1, 7, 20, 59, 60, 90])
def test_every_stratum_is_pruned_by_the_same_share(strategy, budget):
    kind = np.where(np.arange(60) % 10 < 7, 0, np.where(np.arange(60) % 10 < 9, 1, 2))
    select = SelectConfig(strategy=strategy, near_duplicate=2)
    result = decide(**pool(), budget=budget, strata=kind, select=select)
    n = min(budget, 60)
    assert result.kept.sum() == n
    counts = np.bincount(kind[result.kept], minlength=3)
    assert (np.abs(counts - n * np.array([0.7, 0.2, 0.1])) < 1).all()


def test_strata_leave_subsets_nested():
    kind = np.arange(60) % 3
    previous = set()
    for budget in range(0, 60, 7):
        result = decide(**pool(), budget=budget, strata=kind, select=SelectConfig(near_duplicate=2))
        now = set(np.flatnonzero(result.kept))
        assert previous <= now
        previous = now


def test_one_stratum_changes_nothing():
    keys = content_key([str(i) for i in range(10)], 0)
    rows = np.array([4, 2, 9])
    got = stratified_order(rows, np.zeros(10, int), 2, keys, lambda rows, seats: rows[:seats])
    assert got.tolist() == [4, 2]
