"""The report: one page that works offline, and figures."""

from results.report.page import write_report

__all__ = ["write_report"]
