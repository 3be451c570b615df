"""What installed packages add: encoders, sources and strategies, found by entry point."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any


def find(group: str, name: str) -> Any | None:
    """The object that an installed package offers under `name` in the entry-point `group`, or None."""
    for entry in entry_points(group=group, name=name):
        return entry.load()
    return None
