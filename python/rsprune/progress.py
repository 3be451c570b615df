"""How long work is followed: whoever shows it is handed the counts of images as they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable

# Counts of images as they are done, what is done with them, and how many there are; passes the counts on.
Progress = Callable[[Iterable[int], str, int], Iterable[int]]


def silent(done: Iterable[int], description: str, images: int) -> Iterable[int]:
    """Shows nothing."""
    return done
