"""What the page's charts show, without a browser."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from made_up import MadeUp, make_up

from results.analysis import summary
from results.analysis.metrics import guessing
from results.report import charts
from results.report.charts import curve_domain
from results.report.page import study_figures
from results.report.view import View


def tables_of(chart: charts.Chart | None) -> list[pd.DataFrame]:
    """Return the data of a chart's layers."""
    assert chart is not None
    return [pd.DataFrame(rows) for rows in charts.to_spec(chart)["datasets"].values()]


def marks_of(chart: charts.Chart | None) -> pd.DataFrame:
    """Return the data of what is no line."""
    [found] = [table for table in tables_of(chart) if "line" not in table]
    return found


def lines_of(chart: charts.Chart | None) -> list[str]:
    """Return the lines that a chart's legend names."""
    assert chart is not None
    dashes: list[Any] = [
        layer["encoding"]["strokeDash"]["scale"]["domain"]
        for layer in charts.to_spec(chart)["layer"]
        if "strokeDash" in layer["encoding"]
    ]
    assert all(domain == dashes[0] for domain in dashes)
    return list(dashes[0])


def cost_chart(made: MadeUp) -> charts.Chart | None:
    return View(made.results(), "made-up", "made-up").cost_chart("train_seconds", "train time, s", 1.0)


def test_confirmed_methods_are_charted_by_their_means_on_test_with_intervals() -> None:
    made = make_up()
    made.trials[0] |= {"status": "stopped", "train_seconds": 0.1}  # the search does not matter
    drawn = marks_of(cost_chart(made)).set_index("method")
    table = summary(made.results()).set_index("method")
    assert list(drawn.index) == list(table.index)
    for column, source in (("accuracy", ""), ("low", "_low"), ("high", "_high")):
        assert drawn[column].tolist() == pytest.approx(table[f"test_accuracy{source}"].tolist(), abs=1e-4)
    assert (drawn.low < drawn.accuracy).all()
    assert drawn.cost.to_dict() == pytest.approx({"head": 10.1, "full": 11.1, "lora": 12.1})
    assert drawn.efficient.all()


def test_the_pareto_figure_is_the_pages_chart_of_memory() -> None:
    view = View(make_up().results(), "made-up", "made-up")
    page = view.cost_chart("peak_memory_bytes", "peak memory, MB", 1e6)
    drawn, expected = marks_of(study_figures(view)["pareto"]), marks_of(page)
    assert drawn.cost.tolist() == pytest.approx([100, 200, 300], abs=0.1)
    pd.testing.assert_frame_equal(drawn, expected)


def test_the_most_frequent_label_is_that_of_the_test_split() -> None:
    made = make_up(examples=8)
    for row in made.predictions:
        row["label"] = "rare" if row["example_id"] in (0, 5) else "common"
    assert guessing(made.results(), "made-up") == ("common", 0.75)
    assert guessing(made.results(), "another") is None


def test_a_method_that_is_not_confirmed_is_not_among_those_that_are() -> None:
    made = make_up()
    made.fail_confirm("lora", [0, 1, 2])
    assert set(marks_of(cost_chart(made)).method) == {"head", "full"}


def test_always_answering_the_guessing_is_a_line_unless_it_is_far_below() -> None:
    assert lines_of(cost_chart(make_up())) == ["Pareto front", "always the most frequent label"]
    far = make_up(accuracy={"full": 0.9, "lora": 0.92})
    assert lines_of(cost_chart(far)) == ["Pareto front"]


def test_without_a_confirm_phase_trials_are_charted_and_those_stopped_are_not_on_the_front() -> None:
    made = make_up(accuracy={"lora": 0.8}, seeds=0)
    made.trials[0] |= {"status": "stopped", "validation_accuracy": 0.99, "train_seconds": 0.1}
    drawn = cost_chart(made)
    assert lines_of(drawn) == ["Pareto front"]
    [front] = [table for table in tables_of(drawn) if "line" in table]
    assert "lora-000" in set(marks_of(drawn).trial)
    assert "lora-000" not in set(front.trial)
    assert len(front)


def test_losses_that_explode_are_cut_off_and_the_best_trials_never_are() -> None:
    ids = [f"lora-{number:03d}" for number in range(50)]
    curves = pd.DataFrame({"trial_id": ids, "train_loss": [0.5] * 48 + [1.2, 900.0]})
    assert curve_domain(curves, "train_loss", ["lora-000"])[1] < 0.6
    assert 1.2 < curve_domain(curves, "train_loss", ["lora-000", "lora-048"])[1] < 1.3
    assert curve_domain(curves, "train_loss", [])[1] < 0.6
