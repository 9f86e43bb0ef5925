"""Methods across several experiments, such as different datasets or models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from results.analysis.bootstrap import LEVEL
from results.analysis.metrics import LOWER_IS_BETTER, check_metric, confirmed

if TYPE_CHECKING:
    from results.loading import ResultSet

COLUMNS = [
    "method",
    "average_rank",
    "experiments",
    "critical_difference",
    "largest_lead",
    "friedman_p",
    "not_shown_worse",
]


def ranks(results: ResultSet, metric: str = "test_accuracy") -> pd.DataFrame:
    """Rank methods in each experiment and average the ranks (Demšar 2006, section 3.2).

    Arguments:
        results: two or more experiments; methods that are not confirmed in all of them are left out.
        metric: any metric of the confirm phase.

    Returns:
        One row per method: its ``average_rank`` (1 is best), Nemenyi's ``critical_difference`` of average
        ranks at the 5% level, the p-value of Friedman's test that all methods perform alike, and
        ``not_shown_worse``: whether the best method's lead is smaller than the critical difference. That does
        not make it as good as the best: with so few experiments that the critical difference exceeds the
        largest possible lead, ``largest_lead``, no method can be shown to be worse. Empty for fewer than two
        experiments, or fewer than two methods in common.

    Raises:
        ValueError: if the metric is unknown.
    """
    check_metric(metric)
    experiments = results.trials.experiment.unique()
    means = [confirmed(results, name).groupby("method")[metric].mean() for name in experiments]
    table = pd.concat(means, axis=1, keys=experiments).dropna() if means else pd.DataFrame()
    methods, count = table.shape if not table.empty else (0, 0)
    if methods < 2 or count < 2:
        return pd.DataFrame(columns=COLUMNS)
    from scipy import stats  # as long to import as everything else here, and one experiment has no ranks

    places = table.rank(ascending=metric in LOWER_IS_BETTER)
    # Friedman's test needs three methods; for two, its equivalent is the sign test, which ignores ties.
    first, second = places.iloc[0], places.iloc[1]
    differ = int((first != second).sum())
    if methods > 2:
        p_value = stats.friedmanchisquare(*table.to_numpy()).pvalue if places.nunique().max() > 1 else 1.0
    else:
        p_value = stats.binomtest(int((first < second).sum()), differ).pvalue if differ else 1.0
    quantile = stats.studentized_range.ppf(LEVEL, methods, np.inf) / np.sqrt(2)
    critical = quantile * np.sqrt(methods * (methods + 1) / (6 * count))
    average = places.mean(axis=1).sort_values()
    return pd.DataFrame(
        {
            "method": average.index,
            "average_rank": average.to_numpy(),
            "experiments": count,
            "critical_difference": critical,
            "largest_lead": methods - 1,
            "friedman_p": p_value,
            "not_shown_worse": (average - average.iloc[0] < critical).to_numpy(),
        }
    )
