"""Items found in any order, given back in the order of their ids, on disk where there are many."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice, pairwise
from typing import Any

from rsprune.errors import NoSpace
from rsprune.sources.base import Item, Window

_AT_ONCE = 4096
_CACHE = 2**16  # KB that the sort may hold in memory


def in_order(items: Iterable[Item]) -> Iterator[Item]:
    """`items` sorted by id. Where an id comes again, the first has it; the others become unusable items."""
    rows = ((i.id, i.uri, *(i.window or (None,) * 4), i.member, i.stamp) for i in items)
    found = _sorted(("id", "uri", "x", "y", "w", "h", "member", "stamp"), rows)
    return _told_apart(
        Item(id, uri, None if w is None else Window(x, y, w, h), member, stamp)
        for id, uri, x, y, w, h, member, stamp in found
    )


def has_repeats(texts: Iterable[str]) -> bool:
    """Whether a text comes twice, for any number of them."""
    return any(a == b for a, b in pairwise(_sorted(("text",), ((text,) for text in texts))))


def _sorted(columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """`rows` sorted by their first column, equal ones as they came."""
    # An empty name is a temporary file that SQLite removes; it sorts what does not fit into memory there.
    with closing(sqlite3.connect("", isolation_level=None)) as table, _in_words():
        table.execute(f"PRAGMA cache_size = -{_CACHE}")
        table.execute("PRAGMA journal_mode = OFF")
        table.execute(
            f"CREATE TABLE items ({', '.join(columns)})"
        )  # no type: as it is given, it is given back
        table.execute("BEGIN")
        while chunk := list(islice(rows, _AT_ONCE)):
            table.executemany(f"INSERT INTO items VALUES ({', '.join('?' * len(columns))})", chunk)
        table.execute("COMMIT")
        yield from table.execute(f"SELECT {', '.join(columns)} FROM items ORDER BY {columns[0]}, rowid")


@contextmanager
def _in_words() -> Iterator[None]:
    """Raises `NoSpace` where the temporary file cannot grow."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise NoSpace(
            f"what was listed does not fit into the folder for temporary files ({error}): "
            "name a larger one in the environment variable SQLITE_TMPDIR"
        ) from None


def _told_apart(items: Iterator[Item]) -> Iterator[Item]:
    """Items with ids of their own: one that comes again gets a number behind it, and sorts later by that."""
    again: list[tuple[str, int, Item]] = []
    last, count = None, 0

    def merged() -> Iterator[Item]:
        for item in items:
            while again and again[0][0] < item.id:
                yield heapq.heappop(again)[-1]
            yield item
        while again:
            yield heapq.heappop(again)[-1]

    for item in merged():
        if item.id != last:
            last, count = item.id, 1
            yield item
            continue
        count += 1
        id = f"{last}%23{count}"
        reason = item.why_unusable or "has the id of an image that was listed before it"
        heapq.heappush(again, (id, count, Item.unusable(id, item.uri, reason, item.stamp)))
