"""The report: one self-contained HTML page on one or several runs, for people."""

from apd.report.build import report

__all__ = ["report"]
