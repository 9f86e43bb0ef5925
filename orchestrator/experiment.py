"""The experiment: every setting, its unit, its default, its check."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from optuna.distributions import BaseDistribution
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.assignment import Assignment as Assignment
from orchestrator.assignment import Phase as Phase
from orchestrator.settings import (
    BudgetSettings,
    ConfirmSettings,
    LoggingSettings,
    ResourceSettings,
    SearchSettings,
)
from results.remote import StorageError, below, check_uri, is_uri, name_and_parent
from search_spaces import between, default_space, extremes, nearest, parse_distribution
from search_spaces.parsing import parse_names, split_names
from trainables.embedded import cache_directory
from trainables.methods import METHODS
from trainables.settings import (
    DataSettings,
    ModelSettings,
    PathText,
    Settings,
    TrainingDefaults,
    TrainingSettings,
)
from trainables.setup import TrialSpec

METHOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""What a method's name may be: file names begin with it."""

ALIKE = ("evaluations_per_epoch",)
"""Settings that no method may override: more evaluations are more chances to be the best by luck."""

LARGEST = 2**63 - 1
"""The largest integer that a column of the result set holds."""

DEFAULT_METHODS = ("head", "full", "lora", "dora", "qlora")


class MethodEntry(BaseModel):
    """One entry of ``methods``: its kind, and what replaces parts of the default search space."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = Field(description="a kind of method; the entry's own name unless given")

    @property
    def overrides(self) -> Mapping[str, object]:
        """Hyperparameters as written in the file."""
        return self.__pydantic_extra__ or {}

    @cached_property
    def space(self) -> dict[str, BaseDistribution]:
        """The distributions of all hyperparameters, searched or fixed."""
        return {
            **default_space(self.kind),
            **{name: _parse_hyperparameter(name, value) for name, value in self.overrides.items()},
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind not in METHODS:
            raise ValueError(f"kind: unknown method {self.kind!r}; known: {', '.join(METHODS)}")
        own, training = METHODS[self.kind].settings.model_fields, TrainingSettings.model_fields
        problems = []
        for name, value in self.overrides.items():
            if name not in own and name not in training:
                known = ", ".join(one for one in (*own, *training) if one not in ALIKE)
                problems.append(f"{name}: not a hyperparameter of {self.kind}; known: {known}")
                continue
            if name in ALIKE:
                problems.append(f"{name}: is the same for all methods; expected it as training.{name}")
                continue
            try:
                _check_values(self.kind, name, value)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Experiment(Settings):
    """One comparison, as read from a YAML file; it owns the directory ``storage/name``."""

    name: str = Field(
        "demo",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="of the run, whose directory is storage/name",
    )
    seed: int = Field(
        0,
        ge=0,
        description="decides all that is random in a trial, and with one at a time, which trials there are",
    )
    model: ModelSettings = Field(ModelSettings(), description="the base model")
    data: DataSettings = Field(DataSettings(), description="the examples")
    training: TrainingDefaults = Field(TrainingDefaults(), description="training settings that methods share")
    search: SearchSettings = Field(SearchSettings(), description="the search phase")
    budget: BudgetSettings = Field(
        BudgetSettings(), description="what each method may spend in the search, instead of search.trials"
    )
    confirm: ConfirmSettings = Field(ConfirmSettings(), description="the confirm phase")
    methods: dict[str, MethodEntry] = Field(
        {name: MethodEntry(kind=name) for name in DEFAULT_METHODS},
        min_length=1,
        description="what is compared",
    )
    resources: ResourceSettings = Field(ResourceSettings(), description="what one trial gets")
    logging: LoggingSettings = Field(LoggingSettings(), description="other programs that show the trials")
    storage: PathText = Field(
        "runs",
        min_length=1,
        description="directory of run directories: a path, or a URI such as s3://bucket/runs",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_kinds(cls, values: Any) -> Any:
        """Take an entry's name as its kind if it gives none; an empty entry takes all defaults."""
        if not isinstance(values, Mapping) or not isinstance(values.get("methods"), Mapping):
            return values
        entries = {
            name: {"kind": name, **entry}
            if isinstance(entry, Mapping)
            else {"kind": name}
            if entry is None
            else entry
            for name, entry in values["methods"].items()
        }
        return {**values, "methods": entries}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.methods:
            if not METHOD_NAME.fullmatch(name):
                raise ValueError(
                    f"methods.{name[:100]}: expected a name of at most 100 letters, digits, '_' and '-' that"
                    " begins with a letter or a digit"
                )
        known: dict[str, str] = {}
        for name in self.methods:
            if (other := known.setdefault(name.lower(), name)) != name:
                raise ValueError(
                    f"methods.{name}: differs from {other} by case only, and both begin file names;"
                    " expected names that differ in more"
                )
        return self

    @model_validator(mode="after")
    def _check_shardable(self) -> Self:
        quantized = [name for name, entry in self.methods.items() if METHODS[entry.kind].quantized]
        if self.resources.parallelism == "fsdp" and quantized:
            raise ValueError(
                f"resources.parallelism: fsdp cannot split the 4-bit weights of {', '.join(quantized)}; "
                "expected ddp, or --methods without it"
            )
        return self

    @model_validator(mode="after")
    def _check_storage(self) -> Self:
        if is_uri(self.storage):
            try:
                check_uri(self.storage)
            except StorageError as error:
                raise ValueError(f"storage: {error}") from None
        return self

    @property
    def uri(self) -> str | None:
        """The run's URI; None if its storage is a path."""
        return below(self.storage, self.name) if is_uri(self.storage) else None

    @property
    def run_directory(self) -> Path:
        """The absolute path of the experiment's own directory; for a run at a URI, of the driver's copy."""
        if self.uri:
            return local_copy(self.uri)
        return (Path(self.storage).expanduser() / self.name).absolute()

    @property
    def location(self) -> str:
        """Where users find the run: its URI or absolute path."""
        return self.uri or str(self.run_directory)

    def space(self, method: str) -> dict[str, BaseDistribution]:
        """Return a method's search space."""
        return self.methods[method].space

    def first_trial(self, method: str) -> dict[str, Any]:
        """Return a method's published default, moved to the nearest member of its search space."""
        entry = self.methods[method]
        known = {**self.training.model_dump(), **METHODS[entry.kind].published_default}
        own = METHODS[entry.kind].settings.model_fields
        defaults = {name: field.default for name, field in own.items()} | known
        return {name: nearest(distribution, defaults.get(name)) for name, distribution in entry.space.items()}

    def values_of(self, method: str, name: str) -> tuple[Any, ...]:
        """Return the choices of a method's hyperparameter, or both ends of its range.

        If it is not in the search space, return the value that methods share, or nothing if they share none.
        """
        space = self.space(method)
        if name in space:
            return extremes(space[name])
        return (getattr(self.training, name),) if name in TrainingDefaults.model_fields else ()

    def most_evaluations(self, method: str) -> int:
        """Return the number of evaluations of a method's longest trial."""
        return int(max(self.values_of(method, "epochs"))) * self.training.evaluations_per_epoch

    def trial_spec(self, assignment: Assignment) -> TrialSpec:
        """Return the specification of a trial.

        Its seed comes from its identity alone. In the confirm phase all methods have the same seeds.
        """
        method, number, phase = assignment.method, assignment.number, assignment.phase
        kind = self.methods[method].kind
        own = METHODS[kind].settings.model_fields
        values: dict[str, Any] = {
            name: split_names(value) if name == "target_modules" else value
            for name, value in assignment.hyperparameters.items()
        }
        identity = ("search", method, number) if phase == "search" else ("confirm", number)
        return TrialSpec(
            trial_id=assignment.trial_id,
            method=method,
            kind=kind,
            seed=derive_seed(self.seed, *identity),
            settings=METHODS[kind].settings(**{name: value for name, value in values.items() if name in own}),
            training=TrainingSettings(
                **{
                    **self.training.model_dump(),
                    **{name: value for name, value in values.items() if name not in own},
                }
            ),
            threads=max(1, int(self.resources.cpus_per_trial)),
            cuda_graphs=self.resources.cuda_graphs,
        )


def local_copy(uri: str) -> Path:
    """Return where a driver on this machine keeps its copy of a run at a URI."""
    digest = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()
    return cache_directory() / "runs" / digest[:16] / name_and_parent(uri)[0]


def derive_seed(*parts: object) -> int:
    """Hash an identity to a 32-bit seed, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _parse_hyperparameter(name: str, value: object) -> BaseDistribution:
    return parse_names(value) if name == "target_modules" else parse_distribution(value)


def _check_values(kind: str, name: str, value: object) -> None:
    """Check every choice, or a range's ends and a value between, as the trial's settings do."""
    distribution = _parse_hyperparameter(name, value)
    for choice in (*extremes(distribution), *between(distribution)):
        if isinstance(choice, int) and abs(choice) > LARGEST:
            raise ValueError(f"expected a number of at most {LARGEST}, got {choice}")
        given = {name: split_names(choice) if name == "target_modules" else choice}
        try:
            if name in METHODS[kind].settings.model_fields:
                METHODS[kind].settings(**given)
            else:
                TrainingSettings(**{"learning_rate": 1.0, **given})
        except ValidationError as error:
            detail = error.errors()[0]
            raise ValueError(f"{_lower(detail['msg'])}, got {choice!r}") from None


def _lower(message: str) -> str:
    """Turn pydantic's "Input should be ..." into "expected ..."."""
    return message.replace("Input should be", "expected", 1)
