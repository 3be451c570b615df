"""A short, always equal part of what `fuzz_readers.py` does for minutes."""

from __future__ import annotations

import pytest

import fuzz_readers


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_files_are_refused_in_words(tmp_path, seed):
    outcomes = fuzz_readers.fuzz(tmp_path, seed=seed, cases=300)
    assert outcomes.total() == 300
    assert outcomes[".png unreadable"] > 20
    assert outcomes[".parquet unreadable"] > 5
    assert outcomes[".tar unreadable"] > 5


def test_the_seeds_themselves_are_read():
    said = {path.name: fuzz_readers.read_all(path) for path in fuzz_readers.CORPUS.iterdir()}
    bad = {"list.txt", "table.parquet"}  # with a line and a row that cannot be used
    assert {name for name, word in said.items() if word != "read"} == bad
