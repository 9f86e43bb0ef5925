"""What the page's charts show, without a browser."""

from __future__ import annotations

import pandas as pd

from results.report.charts import curve_domain


def test_losses_that_explode_are_cut_off_and_the_best_trials_never_are() -> None:
    ids = [f"lora-{number:03d}" for number in range(50)]
    curves = pd.DataFrame({"trial_id": ids, "train_loss": [0.5] * 48 + [1.2, 900.0]})
    assert curve_domain(curves, "train_loss", ["lora-000"])[1] < 0.6
    assert 1.2 < curve_domain(curves, "train_loss", ["lora-000", "lora-048"])[1] < 1.3
    assert curve_domain(curves, "train_loss", [])[1] < 0.6
