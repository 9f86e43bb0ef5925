"""What the page's sections say, without a browser."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import MadeUp, make_up

from results.report.parts import Figure, Section
from results.report.sections import write_sections
from results.report.view import View


def section_of(made: MadeUp, title: str) -> Section:
    sections = write_sections(View(made.results(), "made-up", "made-up"))
    [found] = [section for section in sections if section.title == title]
    return found


def figures_of(made: MadeUp, title: str) -> dict[str, Figure]:
    return {figure.title.split(":")[0]: figure for figure in section_of(made, title).charts}


def test_losses_that_are_cut_off_are_told_where_they_are_cut() -> None:
    made = make_up(accuracy={"full": 0.8, "lora": 0.7}, trials=20, seeds=0)
    for row in made.metrics:
        if row["trial_id"] == "lora-003":
            row["train_loss"] = 90.0
    figures = figures_of(made, "Training loss")
    assert "Values above 0.7" in figures["lora"].description
    assert "cut off" not in figures["full"].description
    [domain] = domains(figures["lora"].spec, "y")
    assert '"nice": true' not in figures["lora"].spec, "the axis would go on to a round number"
    assert '"nice": false' in figures["lora"].spec
    assert f"Values above {domain[1]:.2f} are cut off." in figures["lora"].description


def test_ticks_of_accuracies_that_are_close_do_not_read_alike() -> None:
    sections = write_sections(View(make_up().results(), "made-up", "made-up"))
    specs = [figure.spec for section in sections for figure in section.charts]
    assert not [spec for spec in specs if '".0%"' in spec]
    assert len([spec for spec in specs if '".1~%"' in spec]) == 4 + 3 + 1 + 3


def test_bands_are_told_where_they_are_drawn() -> None:
    assert "Bands" not in section_of(make_up(trials=5), "Tuning").charts[0].description
    many = section_of(make_up(trials=6), "Tuning").charts[0]
    assert "Bands are rough, and end at a third of the trials." in many.description
    assert '"area"' in many.spec
    assert '"area"' not in section_of(make_up(trials=5), "Tuning").charts[0].spec


def domains(spec: str, channel: str) -> list[Any]:
    """Return the different domains that the layers of a chart have for a channel."""
    layers = json.loads(spec).get("layer", [json.loads(spec)])
    found = [layer["encoding"][channel]["scale"]["domain"] for layer in layers]
    return [domain for place, domain in enumerate(found) if domain not in found[:place]]


def test_trials_are_charted_one_by_one_on_the_scale_of_all_methods() -> None:
    made = make_up(accuracy={"lora": 0.8, "lora_again": 0.9, "full": 0.7, "full_again": 0.6})
    figures = figures_of(made, "Hyperparameters")
    search = pd.DataFrame(made.trials).query("phase == 'search'")
    for kind, channel in (("lora", "color"), ("full", "y")):
        found = [search[search.method == method].validation_accuracy for method in (kind, f"{kind}_again")]
        ends = pytest.approx([pd.concat(found).min(), pd.concat(found).max()])
        assert (
            domains(figures[kind].spec, channel) == domains(figures[f"{kind}_again"].spec, channel) == [ends]
        )
    for method, figure in figures.items():
        spec = json.loads(figure.spec)
        assert spec["encoding"]["x"]["scale"]["type"] == "log"
        assert spec["encoding"]["x"]["scale"]["nice"] is False, "points would leave most of the axis empty"
        [rows] = spec["datasets"].values()
        mine = search[search.method == method]
        assert [row["learning_rate"] for row in rows] == pytest.approx(list(mine.hp_learning_rate))
        if "lora" in method:
            assert [row["rank"] for row in rows] == list(mine.hp_rank)


def test_trials_that_are_all_alike_have_a_scale() -> None:
    made = make_up()
    for row in made.trials:
        row["validation_accuracy"] = 0.5
    assert domains(figures_of(made, "Hyperparameters")["lora"].spec, "color") == [[0.49, 0.51]]


def test_what_cannot_be_told_of_hyperparameters_is_one_sentence() -> None:
    section = section_of(make_up(), "Hyperparameters")
    assert not section.tables
    assert section.note == (
        "How much each hyperparameter matters cannot be told for head, full, lora: that takes 10 trials for "
        "each hyperparameter that varied."
    )


def test_only_methods_of_which_importances_are_told_are_in_their_table() -> None:
    made = make_up(accuracy={"head": 0.7, "full": 0.8, "lora": 0.8}, trials=15, seeds=0)
    generator = np.random.default_rng(0)
    for row in made.trials:  # only of 'head' does the learning rate decide, and lora varies its rank, too
        decides = row["method"] == "head"
        row["validation_accuracy"] = (
            0.9 + 0.1 * float(np.log10(row["hp_learning_rate"])) if decides else float(generator.uniform())
        )
    section = section_of(made, "Hyperparameters")
    [table] = section.tables
    assert [row.cells for row in table.rows] == [("head", "learning_rate", "100%", "15")]
    assert section.note == (
        "How much each hyperparameter matters cannot be told for lora: that takes 10 trials for each "
        "hyperparameter that varied. For full, no hyperparameter is seen to matter more than by chance."
    )


def test_provenance_is_in_words() -> None:
    made = make_up()
    facts = dict(section_of(made, "Provenance").facts)
    assert facts["program"] == "abc"
    assert facts["peak memory"] == "of the whole worker process, Python and its libraries included"
    for row in made.trials:
        row |= {"git_revision": None, "peak_memory_source": "cuda_allocator"}
    made.trials[0]["peak_memory_source"] = "another"
    facts = dict(section_of(made, "Provenance").facts)
    assert facts["program"] == "of unknown revision: there was no git checkout, or no git to read it"
    assert facts["peak memory"] == "another; what PyTorch's allocator gave out on the GPU"
