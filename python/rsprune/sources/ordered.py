"""Items found in any order, given back in the order of their ids, on disk where there are many."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice

from rsprune.sources.base import Item, Window

_AT_ONCE = 4096
_CACHE = 2**15  # KB that the sort may hold in memory


def in_order(items: Iterable[Item]) -> Iterator[Item]:
    """`items` sorted by id. Where an id comes again, the first has it; the others become unreadable items."""
    # An empty name is a temporary file that SQLite removes; it sorts what does not fit into memory there.
    with closing(sqlite3.connect("", isolation_level=None)) as table:
        rows = ((i.id, i.uri, *(i.window or (None,) * 4), i.member, i.stamp) for i in items)
        _fill(table, ("id", "uri", "x", "y", "w", "h", "member", "stamp"), rows)
        table.execute("CREATE INDEX by_id ON items (id)")
        _tell_apart(table)
        found = table.execute("SELECT id, uri, x, y, w, h, member, stamp FROM items ORDER BY id")
        for id, uri, x, y, w, h, member, stamp in found:
            yield Item(id, uri, None if w is None else Window(x, y, w, h), member, stamp)


def has_repeats(texts: Iterable[str]) -> bool:
    """Whether a text comes twice, for any number of them."""
    with closing(sqlite3.connect("", isolation_level=None)) as table:
        _fill(table, ("text",), ((text,) for text in texts))
        again = "SELECT 1 FROM items GROUP BY text HAVING COUNT(*) > 1 LIMIT 1"
        return table.execute(again).fetchone() is not None


def _fill(table: sqlite3.Connection, columns: Sequence[str], rows: Iterator[tuple]) -> None:
    table.execute(f"PRAGMA cache_size = -{_CACHE}")
    table.execute("PRAGMA journal_mode = OFF")
    table.execute(f"CREATE TABLE items ({', '.join(columns)})")  # no type: as it is given, it is given back
    table.execute("BEGIN")
    while chunk := list(islice(rows, _AT_ONCE)):
        table.executemany(f"INSERT INTO items VALUES ({', '.join('?' * len(columns))})", chunk)
    table.execute("COMMIT")


def _tell_apart(table: sqlite3.Connection) -> None:
    again = "SELECT id FROM items GROUP BY id HAVING COUNT(*) > 1"
    while repeated := table.execute(again).fetchmany(_AT_ONCE):
        for (id,) in repeated:
            rows = table.execute("SELECT rowid FROM items WHERE id = ? ORDER BY rowid", (id,)).fetchall()
            reason = "!has the id of an image that was listed before it"
            for n, (row,) in enumerate(rows[1:], 2):
                table.execute(
                    "UPDATE items SET id = ?, member = CASE WHEN member LIKE '!%' THEN member ELSE ? END, "
                    "x = NULL, y = NULL, w = NULL, h = NULL WHERE rowid = ?",
                    (f"{id}%23{n}", reason, row),
                )
