"""A report as the tests read it: its tags, texts and tables."""

from __future__ import annotations

from html.parser import HTMLParser

from rsprune.report import write_report
from rsprune.run import Run

VOID = {
    "meta",
    "img",
    "br",
    "wbr",
    "input",
    "path",
    "use",
    "rect",
    "image",
}  # the last four close themselves in SVG


class Page(HTMLParser):
    """Tags, texts and table rows of a page; fails on tags that are not closed in turn."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.html, self.open, self.tags, self.texts, self.tables = html, [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def table(self, first_head):
        """Rows below the head of the table whose first column has that title."""
        (found,) = [t for t in self.tables if t[0][0].strip() == first_head]
        return [[cell.strip() for cell in row] for row in found[1:]]

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(run: Run) -> Page:
    return Page(write_report(run).read_text("utf-8"))
