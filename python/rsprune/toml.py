"""Settings as TOML, such as ``config.toml`` of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tomli_w

from rsprune.config import Settings, settings
from rsprune.errors import ConfigError
from rsprune.locations import source_values


def load(path: str | Path) -> Settings:
    """Settings from a TOML file, for example a run's ``config.toml``. Raises `ConfigError`."""
    return settings(sections(load_values(path)))


def load_values(path: str | Path) -> dict[str, Any]:
    """The plain values of a TOML file, without its ``[provenance]``. Raises `ConfigError`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot read settings from {path}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not valid TOML: {e}") from None
    values.pop("provenance", None)
    return values


def sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings values as a file or a caller gives them, copied; a source may be just its path.

    Raises:
        ConfigError: A section is no table, or a source is neither a path nor a table.
    """
    found = dict(values)
    for name in (f.name for f in fields(Settings) if f.name in found and f.name != "seed"):
        found[name] = _table(found, name)
    sources = found.get("scan", {}).get("sources")
    if sources is not None:
        if not isinstance(sources, (list, tuple)):
            raise ConfigError(f"scan.sources is {sources!r}: give a list of paths or tables")
        found["scan"]["sources"] = [_source(source) for source in sources]
    return found


def table(path: str | Path, name: str) -> dict[str, Any]:
    """The section `name` of a TOML file, empty where it has none. Raises `ConfigError`."""
    return _table(load_values(path), name)


def _table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"[{name}] is {found!r}: give a table of settings")
    return dict(found)


def _source(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return source_values(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"scan.sources has {value!r}: give a path, or a table with one")


def dumps(value: Settings, *, provenance: dict[str, Any]) -> str:
    """TOML text that `load` reads back; None means absent."""
    return tomli_w.dumps(_without_none({**asdict(value), "provenance": provenance}))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(v) for v in value]
    return value
