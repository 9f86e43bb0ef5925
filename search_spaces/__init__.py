"""Search spaces: default Optuna distributions per kind of method, and distributions from YAML values."""

from search_spaces.defaults import DEFAULT_SPACES, default_space
from search_spaces.parsing import between, extremes, nearest, parse_distribution

__all__ = ["DEFAULT_SPACES", "between", "default_space", "extremes", "nearest", "parse_distribution"]
