"""The result set: what users read. ``results.load("runs/*")`` gives its tables as data frames."""

from results.loading import ResultSet, load

__all__ = ["ResultSet", "load"]
