"""The report: one page that opens without a network, and figures."""

from results.report.page import write_report

__all__ = ["write_report"]
