"""What stands above an experiment's sections, in words: its verdict, a notice, and its budget rule."""

from __future__ import annotations

from typing import Any

from results.analysis import verdict
from results.analysis.metrics import confirmed, why_costs_mislead
from results.report.view import View
from results.schema import FAILED


def verdict_of(view: View) -> str:
    """Say which method to use, or that no trial has finished."""
    if view.best.empty:
        ended = view.search[view.search.status.isin(FAILED)]
        return (
            f"No trial has finished: all {len(ended)} failed."
            if len(ended) == len(view.search) and len(ended)
            else "No trial has finished yet."
        )
    return verdict(view.results, view.name)


def notice_of(view: View) -> str:
    """Say what to keep in mind: trials that are unfinished, and costs that mislead; else nothing."""
    trials = view.results.trials
    running = int((trials.status == "running").sum())
    interrupted = int((trials.status == "interrupted").sum())
    said = []
    if running:
        said.append(
            f"This experiment is still running: {_count(running)} in progress. All of this may change."
        )
    elif interrupted:
        said.append(f"This experiment was interrupted: {_count(interrupted)} unfinished.")
    said.append(why_costs_mislead(trials))
    return " ".join(filter(None, said))


def _count(trials: int) -> str:
    return "1 trial is" if trials == 1 else f"{trials} trials are"


def budget_rule_of(view: View) -> str:
    """Say what each method was given for its search, and on how many seeds its best was confirmed."""
    settings = view.settings
    if (seconds := _number_in(settings, "budget", "train_seconds")) is not None:
        rule = f"about {seconds:g} seconds of training {_used(view, 'train_seconds', '.1f')}"
    elif (examples := _number_in(settings, "budget", "examples")) is not None:
        rule = f"about {examples:,} training examples {_used(view, 'examples', ',.0f')}"
    elif (trials := _number_in(settings, "search", "trials")) is not None:
        rule = f"{trials} trials"
    else:
        return "Budget rule: not recorded."
    return (
        f"Budget rule: each method had {rule} to find its hyperparameters on validation; {_confirmed(view)}."
    )


def _used(view: View, unit: str, form: str) -> str:
    """Say what the methods' searches have used of a budget, and why that is not the budget."""
    used = view.search.groupby("method")[unit].sum()
    fewest, most = (f"{amount:{form}}" for amount in (used.min(), used.max()))
    amounts = fewest if fewest == most else f"{fewest} to {most}"
    return f"(used: {amounts}; it is checked only when a trial evaluates)"


def _number_in(settings: dict[str, Any], section: str, name: str) -> int | float | None:
    """Return a number from a section of the experiment file, if it is one."""
    found = settings.get(section)
    number = found.get(name) if isinstance(found, dict) else None
    return number if isinstance(number, int | float) else None


def _confirmed(view: View) -> str:
    seeds = confirmed(view.results, view.name).groupby("method").seed.nunique()
    if seeds.empty:
        return "no configuration has been confirmed on test yet"
    if len(seeds) == len(view.methods) and seeds.nunique() == 1:
        fresh = "1 fresh seed" if seeds.iloc[0] == 1 else f"{seeds.iloc[0]} fresh seeds"
    else:
        fresh = f"fresh seeds ({', '.join(f'{method} {count}' for method, count in seeds.items())})"
    return f"its best configuration was then retrained on {fresh} and judged once on the test split"
