"""Output that a person reads."""

from __future__ import annotations

import io

from results.terminal import PLAIN_WIDTH, console


def test_texts_are_printed_as_they_are() -> None:
    """Rich would take brackets for its markup, and ``:name:`` for an emoji."""
    shown = io.StringIO()
    text = "--resume '/data/old [v2]/[/b]/:cat:/small'"
    console(shown).print(text)
    assert shown.getvalue() == f"{text}\n"
    assert len(text) < PLAIN_WIDTH
