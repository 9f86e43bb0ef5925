"""Analysis of a result set: pandas in, pandas out.

results.analysis.compare(results.load("runs/demo"))
"""

from results.analysis.claims import claims
from results.analysis.compare import compare
from results.analysis.metrics import best_trials
from results.analysis.ranks import ranks
from results.analysis.summary import summary
from results.analysis.tradeoffs import hypervolume, pareto
from results.analysis.tuning import budget_curve, importance
from results.analysis.verdict import verdict

__all__ = [
    "best_trials",
    "budget_curve",
    "claims",
    "compare",
    "hypervolume",
    "importance",
    "pareto",
    "ranks",
    "summary",
    "verdict",
]
