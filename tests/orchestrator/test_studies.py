"""Per-method studies: turns, equal budgets, first trials, independence, continuing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray.tune.result import TIME_TOTAL_S

from orchestrator.budget import MethodBudgets
from orchestrator.experiment import Assignment, derive_seed
from orchestrator.reports import OBJECTIVE, POINT, STATUS, WORST
from orchestrator.settings import BudgetSettings
from orchestrator.studies import (
    MethodStudies,
    SamplerName,
    make_sampler,
    make_study,
)
from results.evaluation import Evaluation

TRIALS = 6
SPACES = {
    "full": {"learning_rate": FloatDistribution(1e-5, 1e-3, log=True)},
    "lora": {
        "rank": CategoricalDistribution((2, 4, 8, 16)),
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    },
}
FIRST = {"full": {"learning_rate": 6.25e-5}, "lora": {"rank": 8, "learning_rate": 5e-4}}


@pytest.fixture(params=get_args(SamplerName))
def sampler(request: pytest.FixtureRequest) -> SamplerName:
    name: SamplerName = request.param
    return name


def make_studies(sampler: SamplerName, seed: int = 0) -> MethodStudies:
    return MethodStudies(
        {
            method: make_study(
                space, FIRST[method], make_sampler(sampler, derive_seed(seed, method) % 2**32, TRIALS)
            )
            for method, space in SPACES.items()
        },
        TRIALS,
    )


def score(method: str, hyperparameters: dict[str, Any]) -> float:
    return float(hyperparameters["learning_rate"] ** 0.1 + hyperparameters.get("rank", 0) / 100)


def run(studies: MethodStudies, shift: dict[str, float] | None = None) -> list[Assignment]:
    """Run trials one after another to the end, and return them."""
    trials = []
    while trial := studies.suggest(f"tune{len(trials)}"):
        value = score(trial.method, dict(trial.hyperparameters)) + (shift or {}).get(trial.method, 0.0)
        studies.on_trial_complete(f"tune{len(trials)}", {OBJECTIVE: value})
        trials.append(trial)
    return trials


def test_methods_take_turns_and_get_as_many_trials(sampler: SamplerName) -> None:
    trials = run(make_studies(sampler))
    expected = [(method, number) for number in range(TRIALS) for method in SPACES]
    assert [(trial.method, trial.number) for trial in trials] == expected


def test_of_a_turn_the_slowest_method_is_first() -> None:
    studies = make_studies("random")
    trials = []
    while trial := studies.suggest("tune"):
        seconds = {"full": 1.0, "lora": 2.0}[trial.method]
        studies.on_trial_complete("tune", {OBJECTIVE: 0.5, TIME_TOTAL_S: seconds})
        trials.append((trial.number, trial.method))
    later = [(number, method) for number in range(1, TRIALS) for method in ("lora", "full")]
    assert trials == [(0, "full"), (0, "lora"), *later]


def test_a_methods_first_trial_is_its_published_default(sampler: SamplerName) -> None:
    first = run(make_studies(sampler))[: len(SPACES)]
    assert {trial.method: trial.hyperparameters for trial in first} == FIRST


def test_suggestions_stay_in_the_search_space(sampler: SamplerName) -> None:
    for trial in run(make_studies(sampler)):
        for name, value in trial.hyperparameters.items():
            distribution = SPACES[trial.method][name]
            assert distribution._contains(distribution.to_internal_repr(value))


def test_the_seed_decides_the_search(sampler: SamplerName) -> None:
    assert run(make_studies(sampler)) == run(make_studies(sampler))
    assert run(make_studies(sampler)) != run(make_studies(sampler, seed=1))


def test_a_method_learns_from_its_own_trials_only(sampler: SamplerName) -> None:
    alone = [trial for trial in run(make_studies(sampler)) if trial.method == "lora"]
    beside = [trial for trial in run(make_studies(sampler), shift={"full": 5.0}) if trial.method == "lora"]
    assert alone == beside


def run_with_budgets(does_fail: Callable[[Assignment], bool]) -> Counter[str]:
    """Run trials of a hundred examples, of which each method may see a thousand; count a method's trials."""
    budgets = MethodBudgets(BudgetSettings(examples=1000))
    studies = MethodStudies(make_studies("random")._studies, 3, budgets)
    counts: Counter[str] = Counter()
    while trial := studies.suggest("t"):
        counts[trial.method] += 1
        if does_fail(trial):
            studies.on_trial_complete("t", None, error=True)
        else:
            values = dict.fromkeys(Evaluation.__dataclass_fields__) | {"examples": 100}
            budgets.note(trial.method, trial.trial_id, {POINT: Evaluation(**values)})  # type: ignore[arg-type]
            studies.on_trial_complete("t", {OBJECTIVE: 0.5})
    return counts


def test_a_budget_is_spent_whatever_fails_now_and_then() -> None:
    def is_third(trial: Assignment) -> bool:
        return trial.method == "lora" and trial.number % 3 == 2

    assert run_with_budgets(is_third) == {"full": 10, "lora": 10 + 4}


def test_a_method_that_does_nothing_but_fail_ends_with_its_budget_unspent() -> None:
    assert run_with_budgets(lambda trial: trial.method == "lora") == {"full": 10, "lora": 3}


@pytest.mark.parametrize("done", [1, 5, 8, 12])
def test_a_search_continued_is_the_search_that_was_cut(sampler: SamplerName, done: int) -> None:
    whole = run(make_studies(sampler))
    continued = make_studies(sampler)
    continued.replay((trial, score(trial.method, dict(trial.hyperparameters))) for trial in whole[:done])
    assert run(continued) == whole[done:]


@pytest.mark.parametrize("done", [1, 5, 8, 12])
def test_a_trial_that_had_begun_goes_on_in_its_turn(sampler: SamplerName, done: int) -> None:
    whole = run(make_studies(sampler))
    continued = make_studies(sampler)
    told = [(trial, score(trial.method, dict(trial.hyperparameters))) for trial in whole[:done]]
    continued.replay(told, whole[done : done + 1])
    assert run(continued) == whole[done:]


def test_a_trial_goes_on_with_the_hyperparameters_it_had_begun_with() -> None:
    studies = make_studies("tpe")
    begun = Assignment("full", 0, {"learning_rate": 3.3e-4})
    studies.replay([], [begun])
    assert studies.suggest("t") == begun
    studies.on_trial_result("t", {OBJECTIVE: 0.4, "training_iteration": 1})
    studies.on_trial_complete("t", {OBJECTIVE: 0.9})
    learned = studies._studies["full"]._ot_study
    assert learned.best_params == {"learning_rate": 3.3e-4}
    assert [trial.state.name for trial in learned.trials].count("COMPLETE") == 1


def test_a_trial_that_had_not_ended_is_suggested_again_as_it_was() -> None:
    whole = run(make_studies("random"))
    continued = make_studies("random")
    ended = [trial for trial in whole[:8] if trial.trial_id not in ("full-001", "lora-003")]
    continued.replay((trial, 0.5) for trial in ended)
    assert run(continued) == [trial for trial in whole if trial not in ended]


def test_a_recorded_point_that_is_not_suggested_again_is_learned_all_the_same() -> None:
    studies = make_studies("tpe")
    other = Assignment("full", 0, {"learning_rate": 3.3e-4})
    failed = Assignment("full", 1, {"learning_rate": 9.9e-4})
    studies.replay([(other, 0.9), (failed, None)])
    learned = studies._studies["full"]._ot_study
    assert learned.best_params == {"learning_rate": 3.3e-4}
    assert learned.best_value == 0.9
    states = [trial.state.name for trial in learned.trials if trial.params == {"learning_rate": 9.9e-4}]
    assert states == ["FAIL"]
    # What only stood in for them taught nothing.
    assert [trial.state.name for trial in learned.trials].count("COMPLETE") == 1


def test_failed_trials_are_no_results() -> None:
    studies = make_studies("tpe")
    for number in range(4):
        studies.suggest(str(number))
    studies.on_trial_complete("0", error=True)
    studies.on_trial_complete("2", {STATUS: "failed"})
    assert [trial.state.name for trial in studies._studies["full"]._ot_study.trials] == ["FAIL", "FAIL"]


def test_what_diverges_is_not_suggested_again_and_again() -> None:
    """Learning rates above 2.5e-4 diverge, a third of the range; the best one is not far below."""
    diverged = 0
    for seed in range(10):
        study = make_study(SPACES["full"], FIRST["full"], make_sampler("tpe", seed, 20))
        studies = MethodStudies({"full": study}, 20)
        late = []
        while trial := studies.suggest("t"):
            rate = trial.hyperparameters["learning_rate"]
            late = [*late, rate > 2.5e-4][-10:]
            good = {OBJECTIVE: 1 - abs(math.log10(rate / 1.6e-4)) / 4}
            studies.on_trial_complete("t", {STATUS: "diverged"} if late[-1] else good)
        diverged += sum(late)
    assert diverged <= 40, "of a hundred; where nothing is learned of them, seventy diverge"


def test_a_search_that_is_continued_knows_what_diverged() -> None:
    whole, continued = make_studies("tpe"), make_studies("tpe")
    trials, told = [], []
    while trial := whole.suggest("t"):
        trials.append(trial)
        failed = trial.number % 2
        whole.on_trial_complete("t", {STATUS: "diverged"} if failed else {OBJECTIVE: 0.5})
        told.append((trial, WORST if failed else 0.5))
    continued.replay(told[:8])
    assert run(continued)[0] == trials[8]


@pytest.mark.parametrize("trials", [1, 2, 8, 50])
def test_tpe_and_gp_have_a_model_for_at_least_half_of_the_trials(trials: int) -> None:
    assert make_sampler("tpe", 0, trials)._n_startup_trials <= max(1, trials // 2)
    assert make_sampler("gp", 0, trials)._n_startup_trials <= max(1, trials // 2)
