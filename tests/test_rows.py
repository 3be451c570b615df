"""Contents as numbers and keys, and work on groups of rows in threads."""

import numpy as np
import pyarrow as pa
import pytest

from rsprune.rows import Contents, content_key, content_numbers, groups, in_threads

HASHES = ["a", None, "b", "a", "", "c", None, "b"]


@pytest.mark.parametrize(
    "given",
    [HASHES, np.array(HASHES, dtype=object), pa.array(HASHES), pa.chunked_array([HASHES[:3], HASHES[3:]])],
    ids=["list", "array", "Arrow", "column"],
)
@pytest.mark.parametrize("collide", [False, True])
def test_equal_contents_have_equal_numbers(monkeypatch, given, collide):
    if collide:  # of 10^9 contents two may have one key, which must not make them one
        monkeypatch.setattr("rsprune.rows.content_key", lambda hashes, seed: np.zeros(8, np.uint64))
    number = content_numbers(given)
    assert number.dtype == np.int64
    np.testing.assert_array_equal(number < 0, [h is None for h in HASHES])
    same = number[:, None] == number[None]
    np.testing.assert_array_equal(same, [[a == b for b in HASHES] for a in HASHES])


def test_contents_carry_their_seeded_keys():
    contents = Contents.of(HASHES, 7)
    np.testing.assert_array_equal(contents.key, content_key(HASHES, 7))
    assert (contents.key != content_key(HASHES, 8)).all()
    assert len(contents) == 8
    assert content_numbers(contents) is contents.number
    assert content_numbers(contents.number) is contents.number
    assert Contents.of([], 0).number.tolist() == []
    assert Contents.of([None, None], 0).number.tolist() == [-1, -1]


def test_keys_of_a_long_column_are_made_piece_by_piece(monkeypatch):
    monkeypatch.setattr("rsprune.rows._PIECE", 3)
    column = pa.chunked_array([HASHES[:5], HASHES[5:]])
    np.testing.assert_array_equal(content_key(column, 3), content_key(HASHES, 3))


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_do_every_group_and_pass_errors_on(workers):
    labels = np.arange(50) % 7 - 1
    seen = np.full(50, -1)

    def note(label, rows):
        if label == 9:
            raise ValueError("nine")
        seen[rows] = label

    in_threads(note, groups(labels, np.arange(50, dtype=np.uint64)), workers)
    np.testing.assert_array_equal(seen, labels)
    with pytest.raises(ValueError, match="nine"):
        in_threads(note, iter([(1, np.arange(2)), (9, np.arange(2))]), workers)
