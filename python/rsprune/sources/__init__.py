"""Image collections: `open_source` gives items with stable ids, their headers and their pixels."""

from __future__ import annotations

from rsprune.config import SourceConfig
from rsprune.sources.bands import harmonise
from rsprune.sources.base import Source

__all__ = ["harmonise", "open_source"]


def open_source(config: SourceConfig, *, prefix: str = "") -> Source:
    """The collection at `config.path`.

    Args:
        config: where the collection lies, how it is cut into windows, which bands it gives.
        prefix: put before every id, as in "s2/"; for runs with several sources.

    Raises:
        ConfigError: nothing is there.
    """
    from rsprune.sources.folder import FolderSource

    return FolderSource(config, prefix=prefix)
