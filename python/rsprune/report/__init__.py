"""The page about a run: one HTML file that needs no network, and no script for its tables and pictures."""

from rsprune.report.page import write_report

__all__ = ["write_report"]
