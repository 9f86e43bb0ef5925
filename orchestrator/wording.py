"""How messages write numbers of things and long lists."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: float, noun: str) -> str:
    """Write a number of things, such as ``1 CPU``, ``0.25 CPUs`` and ``5,000 examples``."""
    return f"{number:,.12g} {noun}{'' if number == 1 else 's'}"


def first_of(texts: Sequence[str], most: int) -> str:
    """Write the first of many texts, and how many more there are."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return f"{', '.join(texts[:most])}{more}"
