"""Keeps passwords and tokens out of settings, and so out of a run's files, and out of messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

SHORTEST: Final = 8
"""The fewest characters of a secret: shorter texts occur everywhere by chance."""

_SECRET_VARIABLE: Final = re.compile(
    r"(^|_|PG|SSH)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|API_?KEY|ACCESS_KEY|ACCOUNT_KEY|STORAGE_KEY|"
    r"PRIVATE_KEY|CREDENTIALS?|CONNECTION_STRING)(_ID)?$|_PWD$"
)

_USER_AND_PASSWORD = re.compile(
    # The last of several @ ends a password; digits after a colon are a port.
    r"""(?P<before>[A-Za-z][\w+.-]*://)[^\s/?#@:'"]*:(?!\d{1,5}(?:[/?#\s'"]|$))[^\s'"]*@"""
)
_TOKEN_AS_USER = re.compile(r"""(?P<before>\bhttps?://)[^\s/?#@'"]+@""")
_PARAMETER = re.compile(
    r"""(?P<before>[?&;](?:\w*(?:password|passwd|pwd|token|secret|signature|credential|api_?key|access_?key)"""
    r"""\w*|sig|x-amz-[\w-]+)=)[^&;\s'"]+""",
    re.IGNORECASE,
)

PLACES: Final = {
    "logging.mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or in ~/.pgpass of a database",
    "logging.wandb": "WANDB_API_KEY",
    "storage": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws/credentials",
    "model": "HF_TOKEN",
    "data": "HF_TOKEN",
}
"""Where a credential belongs, by key or section."""


def is_secret(variable: str) -> bool:
    """Say whether an environment variable, by its name, holds a secret."""
    return _SECRET_VARIABLE.search(variable.upper()) is not None


def redact(text: str) -> str:
    """Replace credentials in addresses, and values of secret environment variables, with ``***``."""
    for pattern in (_USER_AND_PASSWORD, _TOKEN_AS_USER):
        text = pattern.sub(r"\g<before>***@", text)
    text = _PARAMETER.sub(r"\g<before>***", text)
    for value in _environment().values():
        text = text.replace(value, "***")
    return text


def credentials_in(settings: Mapping[str, Any]) -> list[str]:
    """Return a problem for every setting that has a credential, which the run's files would show."""
    return [
        f"{key}: has a password or token, which the run's files would show; expected it in "
        f"{PLACES.get(key) or PLACES.get(key.partition('.')[0]) or 'the environment'}"
        for key, text in _texts(settings)
        if redact(text) != text
    ]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if len(value) >= SHORTEST and is_secret(name)}


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of settings, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
