"""Image collections: `open_source` gives items with stable ids, their headers and their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rsprune import plugins
from rsprune.config import SourceConfig
from rsprune.errors import ConfigError
from rsprune.locations import source_scheme
from rsprune.sources.bands import harmonise
from rsprune.sources.base import Header, Image, Item, Source

__all__ = ["harmonise", "open_source"]


def open_source(config: SourceConfig, *, prefix: str = "") -> Source:
    """The collection at `config.path`, or what an installed package reads as ``SCHEME:REST``.

    Args:
        config: where the collection lies, how it is cut into windows, which bands it gives.
        prefix: put before every id, as in "s2/"; for runs with several sources.

    Raises:
        ConfigError: nothing is there.
    """
    if scheme := source_scheme(config.path):
        plugin = plugins.find(plugins.SOURCES, scheme)
        if plugin is None:
            added = ", ".join(f"{name}:" for name in plugins.names(plugins.SOURCES)) or "none"
            raise ConfigError(
                f"there is no file or folder {config.path}, and no installed package reads '{scheme}:' "
                f"(those that are read: {added})"
            )
        source = plugin(config, prefix=prefix)
        return source if hasattr(source, "originals") else _WithoutOriginals(source)
    from rsprune.sources.collection import Collection
    from rsprune.sources.naming import files_of

    return Collection(config, files_of(config.path), prefix=prefix)


class _WithoutOriginals(Source):
    """A plug-in's source that says nothing about original files."""

    def __init__(self, source: Source):
        self._source = source

    def items(self) -> Iterator[Item]:
        return self._source.items()

    def header(self, item: Item) -> Header:
        return self._source.header(item)

    def read(self, item: Item) -> Image:
        return self._source.read(item)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)
