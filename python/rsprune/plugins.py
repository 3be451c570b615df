"""What installed packages add: encoders, sources and strategies, found by entry point."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rsprune.errors import RspruneError

ENCODERS = "rsprune.encoders"  # (argument: str, *, device: str) -> Encoder
SOURCES = "rsprune.sources"  # (config: SourceConfig, *, prefix: str) -> Source
STRATEGIES = "rsprune.strategies"  # a Strategy, or its function


def find(group: str, name: str) -> Any | None:
    """The object that an installed package offers under `name` in the entry-point `group`, or None.

    Raises:
        RspruneError: the package cannot be imported, or two packages offer that name.
    """
    entries = list(entry_points(group=group, name=name))
    if not entries:
        return None
    if len(entries) > 1:
        packages = " and ".join(sorted(map(_package, entries)))
        raise RspruneError(f"{packages} both offer {name!r} in {group}: uninstall one of them")
    try:
        return entries[0].load()
    except Exception as e:  # whatever a stranger's package does when it is imported
        raise RspruneError(
            f"{name!r} of the package {_package(entries[0])} cannot be loaded ({type(e).__name__}: {e}): "
            "reinstall or uninstall that package"
        ) from e


def names(group: str) -> list[str]:
    """What installed packages offer in the entry-point `group`, sorted; nothing is imported."""
    return sorted({entry.name for entry in entry_points(group=group)})


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown package"
