"""Reads an experiment from a YAML file and the command line, and gathers every problem."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.secrets import credentials_in
from orchestrator.storage import is_taken
from trainables.errors import NOT_UTF8
from trainables.methods import METHODS

DEMO: Mapping[str, Any] = {
    "name": "demo",
    "data": {"test": "test", "max_train_examples": 800, "max_validation_examples": 400},
    "training": {"epochs": 3},
    "search": {"trials": 4},
    "confirm": {"seeds": 3},
}
"""The built-in comparison: the embedded model on the embedded dataset."""


MOST_VALUES, MOST_LEVELS = 100_000, 30
"""The most that a YAML text may hold, with its aliases expanded."""


EXPECTED_MAPPING = ("dict_type", "model_type")
"""Pydantic's types of errors for a value where there should be keys."""


MERGE = "tag:yaml.org,2002:merge"
"""The tag of the key ``<<``."""


class _Loader(yaml.SafeLoader):
    """Reads YAML whose keys are text, each of them given once; what ``<<`` merges in may be overridden."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    given: set[str] = set()
    for key_node, _ in node.value:
        if key_node.tag == MERGE:
            continue
        if (key := _key(loader, key_node)) in given:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} appears twice", key_node.start_mark
            )
        given.add(key)
    loader.flatten_mapping(node)  # puts what is merged in first
    return {
        _key(loader, key_node): loader.construct_object(value_node, deep=True)
        for key_node, value_node in node.value
    }


def _key(loader: _Loader, node: yaml.Node) -> str:
    key = loader.construct_object(node, deep=True)
    if not isinstance(key, str):
        raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", node.start_mark)
    return key


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def load_experiment(
    file: Path | None,
    overrides: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    name: str | None = None,
) -> Experiment:
    """Read an experiment.

    Arguments:
        file: YAML file; None is the built-in comparison.
        overrides: ``dotted.key=value`` with a YAML value, in order.
        methods: keep only these of the experiment's methods.
        name: replaces the experiment's name.

    Raises:
        ExperimentError: with all problems found.
    """
    return _make(_read(file) if file else _copy(DEMO), overrides, methods, name, place_of(file))


def place_of(file: Path | None) -> str:
    """Return how messages name the source of an experiment's settings."""
    return str(file or "built-in experiment")


def load_continued(
    recorded: Experiment, file: Path | None, overrides: Sequence[str], methods: Sequence[str] | None
) -> Experiment:
    """Return the experiment that a continued run becomes: the recorded one or a file's, with overrides.

    Arguments:
        recorded: what the run was.
        file: YAML file; None is the recorded experiment.
        overrides: ``dotted.key=value`` with a YAML value, in order.
        methods: keep only these of the experiment's methods.

    Raises:
        ExperimentError: with all problems found.
    """
    values = _read(file) if file else recorded.model_dump(mode="json")
    wanted = _make(values, overrides, methods, recorded.name, str(file or recorded.location))
    return wanted.model_copy(update={"storage": recorded.storage})


def _make(
    values: dict[str, Any],
    overrides: Sequence[str],
    methods: Sequence[str] | None,
    name: str | None,
    where: str,
) -> Experiment:
    for override in overrides:
        _apply(values, override)
    if name is not None:
        values["name"] = name
    if methods is not None:
        _select(values, methods, where)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise ExperimentError(*_lines(error), where=where) from None
    if problems := credentials_in(experiment.model_dump(mode="json")):
        raise ExperimentError(*problems, where=where)
    return experiment


def with_free_name(experiment: Experiment) -> Experiment:
    """Return the experiment under the first of NAME, NAME-2, NAME-3, ... that has no run directory.

    Raises:
        InputError: if its storage cannot be read or is not a directory.
    """
    names = chain([experiment.name], (f"{experiment.name}-{number}" for number in count(2)))
    named = (experiment.model_copy(update={"name": name}) for name in names)
    return next(one for one in named if not is_taken(one))


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ExperimentError(f"{file}: {NOT_UTF8}") from None
    except OSError as error:
        raise ExperimentError(f"{file}: could not be read as a YAML file: {error}") from None
    values = _parse_yaml(text, str(file))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ExperimentError(f"{file}: expected keys such as name and methods, got {type(values).__name__}")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_extent(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise ExperimentError(f"{where}:{line} not valid YAML: {error.problem}") from None
    except Exception as error:  # for a bad value of a tag such as !!int, PyYAML lets any error through
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExperimentError(f"{where}: not valid YAML: {reason}") from None


def _check_extent(node: yaml.Node) -> None:
    """Refuse nesting and aliases that no experiment needs, before they are expanded.

    Raises:
        ValueError: if there are too many levels or values.
    """
    sizes: dict[int, int] = {}  # values in each node, aliases expanded, by id of the node

    def size(node: yaml.Node, depth: int) -> int:
        if depth > MOST_LEVELS:
            raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
        if isinstance(node, yaml.ScalarNode):
            node.value.encode()  # fails for half a character, such as "\\uD800"
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES + 1  # in case it contains itself
            parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else [pair])]
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
        return sizes[id(node)]

    if size(node, 1) > MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")


def _copy(values: Any) -> Any:
    return {key: _copy(value) for key, value in values.items()} if isinstance(values, Mapping) else values


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key in place."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ExperimentError(f"--set {override}: expected KEY=VALUE, such as search.trials=20")
    target = values
    if parts[0] == "methods" and "methods" not in values:
        values["methods"] = {method: {} for method in METHODS}
    for part in parts[:-1]:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise ExperimentError(f"--set {override}: {part} is a value and has no keys below it")
    target[parts[-1]] = _parse_yaml(text, f"--set {key}")


def _select(values: dict[str, Any], methods: Sequence[str], where: str) -> None:
    entries = values.get("methods")
    if not isinstance(entries, Mapping):
        entries = dict.fromkeys(METHODS)
    unknown = [method for method in methods if method not in entries]
    if unknown:
        raise ExperimentError(
            *[
                f"--methods: {where} has no method {method!r}; it has {', '.join(entries)}"
                for method in unknown
            ]
        )
    values["methods"] = {method: entries[method] for method in methods}


def _lines(error: ValidationError) -> list[str]:
    """Write ``key: expected ..., got ...`` for each problem."""
    lines = []
    for detail in error.errors():
        location = [str(part) for part in detail["loc"]]
        key, kind, message = ".".join(location), detail["type"], detail["msg"]
        if kind == "extra_forbidden":
            lines.append(f"{key}: unknown key{_hint(location)}")
        elif kind == "value_error":
            problems = message.removeprefix("Value error, ").splitlines()
            lines += [f"{key}.{problem}" if key else problem for problem in problems]
        elif kind in EXPECTED_MAPPING:
            lines.append(f"{key}: expected {_example(location)}, got {detail['input']!r:.80}")
        elif kind == "string_pattern_mismatch":  # of the experiment's name, which is a directory's
            lines.append(
                f"{key}: expected letters, digits, '.', '_' and '-', beginning with a letter or a digit, got"
                f" {detail['input'][:80]!r}"
            )
        else:
            found = repr(detail["input"]) if kind != "missing" else "nothing"
            lines.append(f"{key}: {message.replace('Input should be', 'expected', 1)}, got {found[:80]}")
    return lines


def _example(location: Sequence[str]) -> str:
    """Give an example of what belongs where there was a value without keys."""
    if location[0] != "methods":
        return f"settings such as {{{next(iter(_settings_at(location).model_fields))}: ...}}"
    if len(location) == 1:
        return "an entry for each method, such as {full: {}, lora: {rank: 8}}"
    return "hyperparameters such as {learning_rate: 1e-4}, or {} for the defaults"


def _settings_at(location: Sequence[str]) -> type[BaseModel]:
    settings: type[BaseModel] = Experiment
    for part in location:
        annotation = settings.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        settings = annotation
    return settings


def _hint(location: Sequence[str]) -> str:
    """List the keys that an unknown one could have been, and suggest the one probably meant."""
    known = list(_settings_at(location[:-1]).model_fields)
    close = difflib.get_close_matches(location[-1], known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{meant}; known: {', '.join(known)}"
