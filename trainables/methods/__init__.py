"""The methods. Adding one: write a file like ``lora.py`` and name it in METHODS."""

from collections.abc import Mapping
from typing import Final

from trainables.methods.dora import DORA
from trainables.methods.full import FULL
from trainables.methods.head import HEAD
from trainables.methods.lora import LORA
from trainables.methods.method import Method, MethodSettings
from trainables.methods.qlora import QLORA

METHODS: Final[Mapping[str, Method]] = {
    "head": HEAD,
    "full": FULL,
    "lora": LORA,
    "dora": DORA,
    "qlora": QLORA,
}

__all__ = ["METHODS", "Method", "MethodSettings"]
