"""What the page says about several experiments together."""

from __future__ import annotations

import pandas as pd

from results.report.parts import PageTable, Row, p_value


def ranks_table(across: pd.DataFrame) -> PageTable:
    """Tabulate the methods' average ranks across experiments."""
    rows = [
        Row((row.method, f"{row.average_rank:.2f}", "no" if row.not_shown_worse else "yes"))
        for row in across.itertuples()
    ]
    caption = f"Average rank by test accuracy over {across.experiments.iloc[0]} experiments; 1 is best."
    return PageTable(caption, ("method", "average rank", "shown to be worse than the best"), rows)


def ranks_note(across: pd.DataFrame) -> str:
    """Say how significant the ranks are."""
    first = across.iloc[0]
    test = "the sign test" if len(across) == 2 else "Friedman's test"
    few = first.critical_difference > first.largest_lead
    cannot = (
        f" Which is worse than the best cannot be told with {first.experiments} experiments." if few else ""
    )
    return (
        f"Critical difference {first.critical_difference:.2f} (Nemenyi, 5%);"
        f" {test} that all methods perform alike: p {p_value(first.friedman_p)}.{cannot}"
    )
