"""Whole runs of the command, as a user starts it: a real Ray, small models."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import assert_undisturbed, run, settings

from orchestrator.resume import read_run
from orchestrator.run import main
from orchestrator.studies import make_studies
from results import load
from results.analysis import compare, summary


def test_a_comparison_leaves_a_whole_result_set(
    experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run(experiment)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / "small"
    results = load(directory)
    trials = results.trials
    assert trials.method.value_counts().to_dict() == dict.fromkeys(
        ["head", "full", "lora", "dora", "qlora"], 3
    )
    assert set(trials.status) <= {"completed", "stopped"}
    assert (
        trials[["train_seconds", "evaluation_seconds", "setup_seconds", "model_bytes"]].notna().all(axis=None)
    )
    assert trials.hp_rank.isna().equals(trials.method.isin(["head", "full"]))
    # Each method's first trial is its published default, or what is nearest to it in the search space.
    first = trials[trials.trial_number == 0].set_index("method")
    assert first.hp_learning_rate.to_dict() == {
        "head": 1e-3,
        "full": 6.25e-5,
        "lora": 5e-4,
        "dora": 2e-4,
        "qlora": 2e-4,
    }
    assert first.hp_rank["lora"] == 4
    # One checkpoint a method stays, that of its best trial.
    kept = results.checkpoints.set_index("method")
    assert set(kept.index) == set(trials.method)
    assert sorted(kept.trial_id) == sorted(path.name for path in (directory / "checkpoints").iterdir())
    for method, group in trials.groupby("method"):
        best = group.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True]).iloc[0]
        assert kept.trial_id[method] == best.trial_id
    curve = results.metrics[results.metrics.trial_id == trials.trial_id[0]]
    assert len(curve) == trials.evaluations[0]
    assert "Not confirmed" in done.stdout
    assert (directory / "report" / "index.html").is_file()
    assert f'pandas.read_parquet("{directory}/trials.parquet")' in done.stdout
    assert not done.stderr
    # The search is given the validation split alone.
    assert trials.test_accuracy.isna().all()

    # One trial again, from its row.
    assert main(["--reproduce", str(directory), "qlora-000"]) == 0
    assert "the same numbers in all" in capfd.readouterr().out


def test_random_search_without_early_stopping_is_the_same_with_two_trials_at_once(
    experiment: Path, tmp_path: Path
) -> None:
    done = run(
        experiment,
        *settings("search.sampler=random", "search.early_stopping=none", "search.trials=2"),
        *("--methods", "full,lora", *settings("resources.max_concurrent=2")),
    )
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / "small"
    assert_undisturbed(directory)
    trials = load(directory).trials.set_index("trial_id")
    assert (trials.status == "completed").all()
    one_by_one = make_studies(read_run(str(directory)), None)
    for count in range(4):
        asked = one_by_one.suggest(f"{count}")
        assert asked is not None
        row = trials.loc[f"{asked.method}-{asked.number:03}"]
        assert {name: row[f"hp_{name}"] for name in asked.hyperparameters} == asked.hyperparameters


def test_one_kind_under_two_names_and_a_method_that_diverges(experiment: Path, tmp_path: Path) -> None:
    done = run(
        experiment,
        *("--set", "methods.attention={kind: lora, target_modules: [c_attn], rank: 2}"),
        *("--set", 'methods.wild={"kind": "full", "learning_rate": 1e30}'),
        *("--methods", "wild,lora,attention", "--set", "search.trials=1"),
        *("--set", "resources.max_concurrent=1"),
    )
    assert done.returncode == 0, done.stderr
    trials = load(tmp_path / "runs" / "small").trials.set_index("method")
    assert trials.kind.to_dict() == {"wild": "full", "lora": "lora", "attention": "lora"}
    assert trials.trainable_parameters["attention"] < trials.trainable_parameters["lora"]
    assert trials.status.wild == "diverged"
    assert "loss became nan" in trials.error.wild
    assert trials.validation_accuracy[["lora", "attention"]].notna().all(), "the others go on"
    assert "1 failed" in done.stdout


def test_the_best_configurations_are_confirmed_on_test_and_a_copy_of_a_method_is_no_better(
    experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """LoRA twice under two names: two searches, so two configurations or the same, and no difference."""
    done = run(
        experiment,
        *("--set", "methods.again={kind: lora, rank: [2, 4]}", "--methods", "head,lora,again"),
        *settings("confirm.seeds=3", "search.trials=2", "resources.max_concurrent=1"),
    )
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / "small"
    results = load(directory)
    trials = results.trials
    confirmed = trials[trials.phase == "confirm"]
    assert confirmed.groupby("method").seed.apply(sorted).map(tuple).nunique() == 1
    assert len(confirmed) == 9
    assert not set(confirmed.seed) & set(trials[trials.phase == "search"].seed)
    hyperparameters = [name for name in trials if name.startswith("hp_")]
    table = summary(results).set_index("method")
    for method, group in confirmed.groupby("method"):
        best = trials.set_index("trial_id").loc[table.best_trial[method]]
        for _, row in group.iterrows():
            assert row[hyperparameters].dropna().to_dict() == best[hyperparameters].dropna().to_dict()
    predictions = results.predictions
    assert len(predictions) == 9 * 24
    right = (predictions.label == predictions.prediction).groupby(predictions.trial_id).mean()
    assert confirmed.set_index("trial_id").test_accuracy.to_dict() == pytest.approx(right.to_dict())
    assert (predictions.logits.str.len() == 2).all()
    differences = compare(results).set_index(["method_a", "method_b"])
    assert "no difference shown" in differences.verdict["lora", "again"]
    assert "highest test accuracy" in done.stdout
    assert main(["--reproduce", str(directory), "again-seed1"]) == 0
    assert "the same numbers in all" in capfd.readouterr().out
    rows = pq.read_table(directory / "trials.parquet", partitioning=None)
    place = rows.column_names.index("test_loss")
    changed = rows.set_column(place, rows.schema.field(place), pa.array([9.0] * len(rows)))
    pq.write_table(changed, directory / "trials.parquet")
    assert main(["--reproduce", str(directory), "again-seed1"]) == 1
    assert "test: loss was 9.0, is 0." in capfd.readouterr().out
    assert (directory / "report" / "index.html").is_file()
    assert len(list((directory / "report" / "figures").glob("*.png"))) == 4


def test_methods_get_the_same_budget(experiment: Path, tmp_path: Path) -> None:
    """Of examples; tests/orchestrator/test_budget.py has budgets of seconds, too."""
    done = run(
        experiment,
        *("--methods", "head,full", "--set", "budget.examples=300", "--set", "search.early_stopping=none"),
    )
    assert done.returncode == 0, done.stderr
    results = load(tmp_path / "runs" / "small")
    spent = results.trials.groupby("method").examples.sum()
    assert (spent >= 300).all()
    # Spending ends with the evaluation at which the budget is spent; two trials run at once.
    steps = results.metrics.groupby("trial_id").examples.diff().fillna(results.metrics.examples)
    assert (spent < 300 + 2 * steps.max()).all()
    # A trial may start while another of its method spends the rest of the budget.
    counts = results.trials.method.value_counts()
    assert abs(counts["head"] - counts["full"]) <= 1
    page = (tmp_path / "runs" / "small" / "report" / "index.html").read_text()
    assert "each method had about 300 training examples" in page
