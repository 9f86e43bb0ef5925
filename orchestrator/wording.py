"""How messages write numbers of things."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """Write a number of things, such as ``1 CPU``, ``0.25 CPUs`` and ``5,000 examples``."""
    return f"{number:,.12g} {noun}{'' if number == 1 else 's'}"
