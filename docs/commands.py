"""Writes the command line's own help into the page that asks for it, when the site is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from rsprune.cli import app

HERE = "<!-- every verb and its options -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Hook of mkdocs."""
    return markdown.replace(HERE, "\n".join(_verbs())) if HERE in markdown else markdown


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb with its name; one that has verbs of its own stands for these."""
    for name in group.list_commands(None):
        verb = group.commands[name]
        if hasattr(verb, "commands"):
            yield from _commands(verb, f"{prefix}{name} ")
        elif not verb.hidden:
            yield f"{prefix}{name}", verb


def _verbs() -> Iterator[str]:
    for name, verb in _commands(typer.main.get_command(app)):
        arguments = [p for p in verb.params if p.param_type_name == "argument"]
        options = [p for p in verb.params if p.param_type_name == "option" and not p.hidden]
        wanted = " ".join(_word(p) for p in arguments)
        yield from (
            f"## {name}",
            "",
            _plain(verb.help or ""),
            "",
            "```text",
            f"rsprune {name} {wanted}".rstrip(),
        )
        yield from ("```", "")
        yield from _table("argument", [(_word(p), p.help) for p in arguments])
        panels: dict[str, list[tuple[str, str | None]]] = {}
        for p in options:
            flags = ", ".join((*p.opts, *p.secondary_opts))
            shown = p.default if p.show_default and p.default not in (None, False, ()) else None
            said = p.help if shown is None else f"{p.help} \\[{shown}]"
            said = f"{said} Required." if p.required else said
            panels.setdefault(p.rich_help_panel or "Options", []).append((flags, said))
        for panel, rows in panels.items():
            yield from _table(panel.lower(), rows)


def _word(argument: Any) -> str:
    word = argument.metavar or argument.name.upper()
    word += "..." if argument.nargs == -1 and not word.endswith("...") else ""
    return word if argument.required or word.startswith("[") else f"[{word}]"


def _table(head: str, rows: list[tuple[str, str | None]]) -> Iterator[str]:
    if rows:
        yield from (f"| {head} | |", "|---|---|")
        yield from (f"| `{flags}` | {_plain(help or '')} |" for flags, help in rows)
        yield ""


def _plain(text: str) -> str:
    """Markdown of a help text: its markup is Rich's, where `\\[` is a bracket."""
    text = re.sub(r"(?<!\\)\[/?[a-z ]+\]", "", text).replace("\\[", "[")
    return re.sub(r"([|<*_])", r"\\\1", " ".join(text.split()))
