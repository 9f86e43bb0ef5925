"""The page in a real browser: it draws every chart, fetches nothing, and shows text as text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import make_up
from playwright.sync_api import Browser, Page, sync_playwright

from results import load
from results.report import write_report

FIGURES = ["execution_time.png", "model_size.png", "pareto.png", "training_and_validation.png"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page that is open, and what it asked for or complained of."""

    def __init__(self, browser: Browser, file: Path, width: int = 1280, scheme: Any = "light") -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_function("document.body.dataset.drawn", timeout=60_000)

    def check(self) -> None:
        """It is quiet, fetches nothing, draws all charts and is no wider than the window."""
        assert self.complaints == []
        fetched = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]
        assert fetched == []
        charts = self.page.locator(".chart")
        for place in range(charts.count()):
            chart = charts.nth(place)
            assert chart.get_attribute("aria-label")
            box = chart.locator("svg, canvas").first.bounding_box()
            assert box is not None
            assert box["width"] > 150
            assert box["height"] > 50
        viewport = self.page.viewport_size
        assert viewport is not None
        assert self.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]

    def headings(self) -> list[str]:
        return list(self.page.locator("h2").all_inner_texts())


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    made = make_up()
    for row in made.trials:
        if row["method"] == "head" and row["phase"] == "confirm":
            row["test_seconds"] = 1.0 + row["seed"]  # 200 examples in 1, 2 and 3 seconds
    made.fail([1], "<script>document.title = 'owned'</script> & more")
    run = made.save(tmp_path / "run")
    return write_report(load(run), run / "report")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_finished_experiment(browser: Browser, finished: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, finished, width, scheme)
    opened.check()
    assert opened.headings() == [
        *("Methods", "What accuracy costs", "Training loss", "Validation accuracy", "Tuning"),
        *("Hyperparameters", "Differences"),
        *("Claims", "Failures", "Provenance"),
    ]
    page = opened.page
    assert page.locator(".verdict").inner_text().startswith("lora has the highest test accuracy: 86.")
    methods = page.locator("#made-up-methods tr").all_inner_texts()
    assert [row.split("\t")[7:] for row in methods] == [
        ["model MB", "disk MB", "peak MB", "train s", "search s", "test/s"],
        ["10.0", "1.0", "100", "10.1", "39.0", "100"],
        ["10.0", "1.0", "200", "11.1", "43.0", "–"],
        ["10.0", "1.0", "300", "12.1", "47.0", "–"],
    ]
    assert page.locator("h1").count() == 1
    assert page.locator("table caption").count() == page.locator("table").count() == 4
    page.locator("summary").click()
    assert "path: gpt2" in page.locator("pre").inner_text()
    assert finished.stat().st_size < 6e6
    assert sorted(file.name for file in (finished.parent / "figures").iterdir()) == FIGURES
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (finished.parent / "figures").iterdir())


def test_hovering_shows_the_configuration(browser: Browser, finished: Path) -> None:
    page = Opened(browser, finished).page
    points = page.locator(".chart").first.locator("[aria-roledescription=point]")
    assert points.count() == 3, "every method"
    points.last.hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for(timeout=5000)
    assert "lr " in tip.inner_text()
    assert "test accuracy" in tip.inner_text()
    costs = page.locator("#made-up-costs")
    assert " scores 50.0%." in costs.inner_text()
    assert "Not confirmed" not in costs.inner_text()


def test_without_a_confirm_phase_costs_are_those_of_the_searchs_trials(
    browser: Browser, tmp_path: Path
) -> None:
    made = make_up(seeds=0)
    made.fail([1], "boom")
    made.trials[0]["status"] = "stopped"
    opened = Opened(browser, write_report(made.results(), tmp_path))
    opened.check()
    costs = opened.page.locator("#made-up-costs")
    points = costs.locator(".chart").first.locator("[aria-roledescription=point]")
    assert points.count() == 11, "every trial but the failed one"
    assert "Only trials that ran to their end count" in costs.inner_text()


def test_costs_name_the_methods_that_are_not_confirmed(browser: Browser, tmp_path: Path) -> None:
    made = make_up()
    made.fail_confirm("lora", [0, 1, 2])
    costs = Opened(browser, write_report(made.results(), tmp_path)).page.locator("#made-up-costs")
    assert "Not confirmed, so not shown: lora." in costs.inner_text()
    assert costs.locator(".chart").first.locator("[aria-roledescription=point]").count() == 2


def test_the_text_of_an_error_is_text(browser: Browser, finished: Path) -> None:
    page = Opened(browser, finished).page
    failures = page.locator("#made-up-failures td")
    assert "<script>document.title = 'owned'</script> & more" in failures.all_inner_texts()
    assert "owned" not in page.title()


def test_on_paper_charts_are_light(browser: Browser, finished: Path) -> None:
    page = Opened(browser, finished, scheme="dark").page
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.body.dataset.drawn === 'light'")


def test_text_of_methods_and_settings_cannot_end_a_script(browser: Browser, tmp_path: Path) -> None:
    made = make_up(accuracy={"full": 0.8, "</script><b>x": 0.9})
    opened = Opened(browser, write_report(made.results(), tmp_path))
    opened.check()
    assert opened.page.locator("b").count() == 0


def test_a_running_experiment_says_so(browser: Browser, tmp_path: Path) -> None:
    made = make_up(seeds=0)
    made.trials[-1]["status"] = "running"
    made.trials[-1]["ended_at"] = None
    opened = Opened(browser, write_report(made.results(), tmp_path))
    opened.check()
    assert "still running: 1 trial" in opened.page.locator(".notice").inner_text()
    assert "Not confirmed" in opened.page.locator(".verdict").inner_text()
    assert "Differences" not in opened.headings()


def test_an_experiment_that_has_just_begun(browser: Browser, tmp_path: Path) -> None:
    made = make_up(accuracy={"lora": 0.8}, trials=1, seeds=0)
    empty = {"validation_accuracy", "validation_loss", "train_loss", "final_train_loss", "ended_at"}
    empty |= {"model_bytes", "peak_memory_bytes", "train_seconds", "checkpoint_bytes", "trainable_parameters"}
    made.trials[0] |= dict.fromkeys(empty) | {"status": "running"}
    made.metrics.clear()
    opened = Opened(browser, write_report(made.results(), tmp_path))
    opened.check()
    assert opened.page.locator(".verdict").inner_text() == "No trial has finished yet."


def test_a_single_method(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, write_report(make_up(accuracy={"lora": 0.8}).results(), tmp_path))
    opened.check()
    assert " There is no other method to compare it with." in opened.page.locator(".verdict").inner_text()
    assert "Differences" not in opened.headings()


def test_of_one_seed_and_two_trials_nothing_is_drawn_that_they_do_not_show(
    browser: Browser, tmp_path: Path
) -> None:
    results = make_up(trials=2, seeds=1, examples=400).results()
    opened = Opened(browser, write_report(results, tmp_path))
    opened.check()
    section = opened.page.locator("#made-up-differences")
    cells = [row.split("\t") for row in section.locator("tbody tr").all_inner_texts()]
    assert [cell[2:4] for cell in cells] == [["–", "–"]] * 3
    assert "nan" not in section.inner_text()
    assert "over 1 seed and 400 test examples" in section.inner_text()
    assert "beats" not in opened.page.locator(".verdict").inner_text()


def test_an_experiment_in_which_every_trial_failed(browser: Browser, tmp_path: Path) -> None:
    made = make_up(seeds=0)
    made.fail(range(len(made.trials)), "boom")
    opened = Opened(browser, write_report(made.results(), tmp_path))
    opened.check()
    assert opened.page.locator(".verdict").inner_text() == "No trial has finished: all 12 failed."
    assert opened.headings() == ["Methods", "Failures", "Provenance"]


def test_two_thousand_trials(browser: Browser, tmp_path: Path) -> None:
    accuracy = {"head": 0.7, "full": 0.85, "lora": 0.86, "dora": 0.85, "qlora": 0.85}
    run = make_up(accuracy=accuracy, trials=400, seeds=0, evaluations=6).save(tmp_path / "run")
    page = write_report(load(run), run / "report")
    assert page.stat().st_size < 6e6
    Opened(browser, page).check()


def test_several_experiments_on_one_page(browser: Browser, tmp_path: Path) -> None:
    both = make_up("other_two") + make_up("other.two", {"full": 0.9, "lora": 0.8})
    page = write_report(both.results(), tmp_path)
    opened = Opened(browser, page)
    opened.check()
    assert opened.headings()[0] == "Across experiments"
    assert opened.page.locator("article").count() == 2
    ids = opened.page.evaluate("JSON.stringify([...document.querySelectorAll('[id]')].map(e => e.id))")
    assert len(json.loads(ids)) == len(set(json.loads(ids)))
    assert len(list((tmp_path / "figures").iterdir())) == 8


def test_the_script_of_the_charts_is_kept_for_the_next_page_where_it_can_be(tmp_path: Path) -> None:
    results, cache, blocked = make_up(accuracy={"lora": 0.8}).results(), tmp_path / "cache", tmp_path / "file"
    page = write_report(results, tmp_path / "first", cache)
    (kept,) = cache.iterdir()
    assert kept.read_text() in page.read_text()
    kept.write_text("kept, as it was")
    assert "kept, as it was" in write_report(results, tmp_path / "next", cache).read_text()
    blocked.touch()
    assert "vegaEmbed" in write_report(results, tmp_path / "last", blocked / "cache").read_text()
