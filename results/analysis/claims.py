"""The founding study's claims, each checked against a result set.

The study fine-tuned GPT-2 on SST-2 with LoRA, DoRA, QLoRA and full fine-tuning, once each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd

from results.analysis.bootstrap import LEVEL, Estimate, Sample, estimate
from results.analysis.metrics import (
    OF_VALIDATION,
    ON_THIS_SPLIT,
    amount,
    confirmed,
    failed_confirms,
    level,
    why_costs_mislead,
)

if TYPE_CHECKING:
    from results.loading import ResultSet

HOLDS, FAILS, UNDECIDED, UNKNOWN = "holds", "does not hold", "no difference shown", "cannot be said"

REDUCTION: Final = 0.84
"""What the study found: from 2.88 GB to 0.46 GB."""

Answer = tuple[str, str]
"""A verdict, and its evidence in words."""


def claims(results: ResultSet) -> pd.DataFrame:
    """Check the founding study's claims against each experiment's confirm phase.

    The first method of each kind represents it. Differences are paired by seed and tested by Student's t.
    Only seeds count as chance, not which validation examples there are, and the evidence says so: predictions
    on them are not kept, and adding their variance as if methods were judged on different examples would hide
    what judging them on the same ones shows.

    Returns:
        Columns experiment, claim, verdict (holds, does not hold, no difference shown, cannot be said) and
        evidence (in words).
    """
    rows = []
    for experiment in results.trials.experiment.unique():
        trials = _confirmed_with_gap(results, experiment)
        failed = failed_confirms(results, experiment).items()
        failures = "".join(
            f"; {name}: {count} of {tried} confirm trials failed" for name, (count, tried) in failed
        )
        for claim, answer in {
            f"QLoRA makes the model {REDUCTION:.0%} smaller": _smaller(trials),
            "LoRA validates better than full fine-tuning": _validates_better(trials),
            "full fine-tuning has the lowest training loss": _lowest_training_loss(trials),
            "full fine-tuning overfits more than LoRA": _overfits(trials),
            "LoRA trains faster than full fine-tuning": _faster(trials),
        }.items():
            verdict, evidence = answer
            evidence += failures if verdict != UNKNOWN else ""
            rows.append({"experiment": experiment, "claim": claim, "verdict": verdict, "evidence": evidence})
    return pd.DataFrame(rows, columns=["experiment", "claim", "verdict", "evidence"])


def _smaller(trials: pd.DataFrame) -> Answer:
    if missing := _missing(trials, "full", "qlora"):
        return missing
    before, after = (trials[trials.kind == kind].model_bytes.mean() for kind in ("full", "qlora"))
    if pd.isna(before) or pd.isna(after):
        return UNKNOWN, "not recorded"
    evidence = (
        f"{amount(before, 'model_bytes')} to {amount(after, 'model_bytes')}: {1 - after / before:.0%} less"
    )
    return HOLDS if round(1 - after / before, 2) >= REDUCTION else FAILS, evidence


def _validates_better(trials: pd.DataFrame) -> Answer:
    return _missing(trials, "lora", "full") or _differ(trials, "lora", "full", "validation_accuracy", sign=1)


def _lowest_training_loss(trials: pd.DataFrame) -> Answer:
    if missing := _missing(trials, "full"):
        return missing
    means = trials.groupby("kind").final_train_loss.mean().sort_values()
    listed = ", ".join(f"{kind} {value:.3f}" for kind, value in means.items())
    others = means.drop("full")
    if others.empty:
        return UNKNOWN, "no other method was confirmed"
    verdict, _ = _differ(trials, "full", str(others.index[0]), "final_train_loss", sign=-1)
    return verdict, f"mean loss in the last part of training: {listed}"


def _overfits(trials: pd.DataFrame) -> Answer:
    if missing := _missing(trials, "full", "lora"):
        return missing
    verdict, evidence = _differ(trials, "full", "lora", "gap", sign=1)
    return verdict, f"validation loss minus training loss at the end: {evidence}"


def _faster(trials: pd.DataFrame) -> Answer:
    if missing := _missing(trials, "lora", "full"):
        return missing
    if reason := why_costs_mislead(trials):
        return UNKNOWN, reason
    verdict, _ = _differ(trials, "lora", "full", "train_seconds", sign=-1)
    means = trials.groupby("kind", sort=False).train_seconds.mean()
    return verdict, "training time of one trial: " + ", ".join(
        f"{kind} {value:.1f} s" for kind, value in means.items()
    )


def _missing(trials: pd.DataFrame, *kinds: str) -> Answer | None:
    absent = [kind for kind in kinds if kind not in set(trials.kind)]
    return (UNKNOWN, f"no confirmed trial of {' or '.join(absent)}") if absent else None


def _differ(trials: pd.DataFrame, a: str, b: str, column: str, sign: int) -> Answer:
    """Test whether a - b has the claimed sign."""
    by_seed = trials.pivot_table(index="seed", columns="kind", values=column).reindex(columns=[a, b]).dropna()
    if by_seed.empty:
        return UNKNOWN, f"not recorded for {a} and {b} on the same seeds"
    found = estimate(Sample((by_seed[a] - by_seed[b]).to_numpy(float)))
    evidence = f"{a} {level(by_seed[a].mean(), column)}, {b} {level(by_seed[b].mean(), column)}"
    if found.seeds < 2:
        return UNKNOWN, f"{evidence}; a single seed cannot tell"
    evidence += f"; difference {_interval(found, column)}"
    evidence += f", {ON_THIS_SPLIT}" if column in (*OF_VALIDATION, "gap") else ""
    if found.p_value >= 1 - LEVEL:
        return UNDECIDED, evidence
    return HOLDS if found.mean * sign > 0 else FAILS, evidence


def _interval(found: Estimate, column: str) -> str:
    low, high = (amount(bound, column).split()[0] for bound in (found.low, found.high))
    return f"{amount(found.mean, column)} [{low}, {high}]"


def _confirmed_with_gap(results: ResultSet, experiment: str) -> pd.DataFrame:
    """Return the confirmed trials of the first method of each kind, with their generalization gap."""
    trials = confirmed(results, experiment)
    first = trials.drop_duplicates("kind").method
    trials = trials[trials.method.isin(first)]
    curves = results.metrics[results.metrics.experiment == experiment].sort_values("evaluation")
    last = curves.groupby("trial_id").validation_loss.last().reindex(trials.trial_id).to_numpy(float)
    return trials.assign(gap=last - trials.final_train_loss)
