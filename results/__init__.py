"""The result set, which users read: ``results.load("runs/*")`` returns its tables as data frames."""

from results.loading import ResultSet, load

__all__ = ["ResultSet", "load"]
