"""``python -m orchestrator.manual``: print ``docs/settings.md``, the list of an experiment's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from optuna.distributions import BaseDistribution
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from orchestrator.experiment import Experiment
from search_spaces import default_space, extremes
from trainables.methods import METHODS
from trainables.settings import Settings, TrainingSettings

INTRODUCTION = """\
# Settings

Generated from the code by `python -m orchestrator.manual > docs/settings.md`.

An experiment is a YAML file of these settings; what it leaves out has its default. On the command line,
`--set search.trials=20` sets one of them, and `--set resources=auto` replaces a whole section. Relative paths
start where the command runs.
"""

METHODS_TEXT = """\
## methods

Each entry of `methods` is compared. Its name is its kind, unless `kind` says otherwise, so one kind can be
compared with itself under several names: `lora_attention: {kind: lora, target_modules: [c_attn]}`. The
remaining keys replace or extend the kind's default search space. A plain value is fixed; a list is a choice;
`{low: 1e-5, high: 1e-3}` is a range, on a logarithmic scale with `log: true`, in steps with `step: 2`, of
whole numbers if both ends are written as such. Only in `target_modules` a list of names is one value:
`[c_attn, c_proj]` is fixed, `[[c_attn], [c_attn, c_proj]]` is a choice of two.

A method's first trial is its published default, or what its search space has nearest to it.
"""

HYPERPARAMETERS_TEXT = """\
All of them can be given these hyperparameters, and those of [training](#training) except for
`evaluations_per_epoch`, which must be the same for all; `rank` and what follows it are for adapters alone.
"""


def manual() -> str:
    """Write the page."""
    plain, sections = {}, {}
    for name, field in Experiment.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            sections[name] = kind
        elif name != "methods":
            plain[name] = field
    parts = [INTRODUCTION, *_table(plain)]
    for name, kind in sections.items():
        parts += [f"## {name}\n", *_table(kind.model_fields)]
        if name == "training":
            parts += _methods()
    return "\n".join(parts)


def _table(fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield "| setting | default | meaning |"
    yield "|---|---|---|"
    for name, field in fields.items():
        yield f"| `{name}` | {_value(field.default)} | {_meaning(field)} |"
    yield ""


def _value(value: Any) -> str:
    return "" if value is PydanticUndefined else f"`{json.dumps(value).strip(chr(34))}`"


def _meaning(field: FieldInfo) -> str:
    text = str(field.description)
    choices = (
        [str(one) for one in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
    )
    unnamed = not all(one in text for one in choices)
    return f"{text}: {', '.join(choices)}".replace("|", "\\|") if unnamed else text.replace("|", "\\|")


def _methods() -> Iterator[str]:
    yield METHODS_TEXT
    yield "| kind | what it is | first trial | default search space |"
    yield "|---|---|---|---|"
    hyperparameters: dict[str, FieldInfo] = {}
    for kind, method in METHODS.items():
        hyperparameters |= method.settings.model_fields
        first = ", ".join(f"{name} {value:g}" for name, value in method.published_default.items())
        space = "; ".join(f"{name} {_words(one)}" for name, one in default_space(kind).items())
        about = (import_module(f"trainables.methods.{kind}").__doc__ or "").splitlines()[0]
        yield f"| `{kind}` | {about} | {first} | {space} |"
    yield f"\n{HYPERPARAMETERS_TEXT}"
    learning_rate = TrainingSettings.model_fields["learning_rate"]
    yield from _table({"learning_rate": learning_rate, **hyperparameters})


def _words(distribution: BaseDistribution) -> str:
    values = extremes(distribution)
    if hasattr(distribution, "choices"):
        return ", ".join(map(str, values))
    return f"{values[0]:g} to {values[1]:g}" + (" (log)" if getattr(distribution, "log", False) else "")


if __name__ == "__main__":
    print(manual(), end="")
