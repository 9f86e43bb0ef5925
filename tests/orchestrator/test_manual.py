"""The page of settings is what the code says."""

from __future__ import annotations

from pathlib import Path

from orchestrator.experiment import Experiment
from orchestrator.manual import manual

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date_and_has_every_section() -> None:
    written = PAGE.read_text()
    assert written == manual(), "stale: python -m orchestrator.manual > docs/settings.md"
    for name in Experiment.model_fields:
        assert f"## {name}\n" in written or f"| `{name}` |" in written
