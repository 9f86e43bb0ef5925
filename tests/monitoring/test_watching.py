"""A real run, watched as a person would: a real Prometheus, Ray's dashboard in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import sync_playwright

from tests.conftest import data_settings

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "monitoring" / "grafana" / "dashboards" / "finetune-comparison.json"


TOKEN = "of-this-test-alone-0123456789abcdef"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}


def wait_for(look: Callable[[], Any], what: str) -> Any:
    """Look until there is something."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} after two minutes")


def get(url: str) -> Any:
    """Ask with Ray's token; None is a server that is not up yet."""
    request = urllib.request.Request(url, headers=AUTHORIZATION)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
    except OSError:
        pass
    return None


@dataclass
class Watched:
    """A run in its second trial, by the worker that trained the first."""

    ray_directory: Path
    dashboard: str


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, model_directories: dict[str, Path], data_files: dict[str, Path]
) -> Iterator[Watched]:
    experiment = {
        "name": "watched",
        "model": {"path": str(model_directories["gpt2"])},
        "data": data_settings(data_files),
        "training": {"batch_size": 1, "evaluations_per_epoch": 1},
        "search": {"trials": 1, "early_stopping": "none"},
        "methods": {"head": {"epochs": 1}, "lora": {"epochs": 20000, "rank": 2}},
        "resources": {"max_concurrent": 1},
        "storage": str(tmp_path_factory.mktemp("runs")),
    }
    file = tmp_path_factory.mktemp("experiment") / "watched.yaml"
    file.write_text(json.dumps(experiment))
    # Ray's sockets need a short path. Its workers report every 10 s if not told otherwise.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as ray_directory:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.run", str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RAY_TMPDIR": ray_directory,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": TOKEN,
                "RAY_metrics_report_interval_ms": "3000",
                "RAY_PROMETHEUS_HOST": "http://127.0.0.1:9",
            },
        )
        try:
            assert process.stdout
            shown = (re.match(r"Ray dashboard: (\S+)", line) for line in process.stdout)
            yield Watched(Path(ray_directory) / "ray", next(found[1] for found in shown if found))
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


@pytest.fixture
def prometheus(watched: Watched, tmp_path: Path) -> Iterator[str]:
    """A Prometheus with the project's configuration, but impatient; its address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus on the PATH (Debian: apt-get install prometheus)")
    configuration = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    configuration["global"]["scrape_interval"] = "1s"
    job = configuration["scrape_configs"][0]
    # Ray lists the machine's own address; its agent listens on the loopback one as well.
    loopback = {"source_labels": ["__address__"], "regex": ".*:(.*)", "replacement": "127.0.0.1:$1"}
    job["relabel_configs"] = [{**loopback, "target_label": "__address__"}]
    (discovery,) = job["file_sd_configs"]
    discovery["refresh_interval"] = "1s"
    discovery["files"] = [file.replace("/tmp/ray", str(watched.ray_directory)) for file in discovery["files"]]
    (tmp_path / "prometheus.yml").write_text(json.dumps(configuration))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(
        [
            program,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"http://{address}"
    server.terminate()
    server.wait(timeout=30)


def query(prometheus: str, expression: str) -> list[Any]:
    answer = get(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    return answer["data"]["result"] if answer else []


def test_prometheus_scrapes_what_the_grafana_dashboard_asks_for(prometheus: str) -> None:
    accuracy = 'ray_finetune_validation_accuracy{trial="lora-000"}'
    (found,) = wait_for(lambda: query(prometheus, accuracy), accuracy)
    labels = {name: found["metric"][name] for name in ("experiment", "method", "trial", "phase")}
    assert labels == {"experiment": "watched", "method": "lora", "trial": "lora-000", "phase": "search"}
    assert 0 <= float(found["value"][1]) <= 1
    (memory,) = query(prometheus, 'ray_finetune_peak_memory_bytes{trial="lora-000"}')
    assert float(memory["value"][1]) > 1e8

    # The driver exports the counts on its own, so they may still tell of the trial before.
    def counts() -> set[tuple[str, str]]:
        series = query(prometheus, "ray_finetune_trials == 1")
        return {(one["metric"]["method"], one["metric"]["status"]) for one in series}

    wait_for(lambda: counts() == {("head", "completed"), ("lora", "running")}, "counts by status")
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            shown = target["expr"].replace("$experiment", "watched").replace("$method", ".*")
            wait_for(partial(query, prometheus, shown.replace("$__range", "1h")), panel["title"])


def test_the_series_of_an_ended_trial_ends(prometheus: str) -> None:
    def exported() -> set[str]:
        return {one["metric"]["trial"] for one in query(prometheus, "ray_finetune_validation_loss")}

    wait_for(lambda: exported() == {"lora-000"}, "end of head-000's series")


def test_rays_dashboard_names_the_trial_a_worker_trains(watched: Watched) -> None:
    def titles() -> list[str]:
        nodes = get(f"{watched.dashboard}/nodes?view=summary")
        node = nodes["data"]["summary"][0]["raylet"]["nodeId"]
        workers = get(f"{watched.dashboard}/nodes/{node}")["data"]["detail"]["workers"]
        return [worker["cmdline"][0] for worker in workers if "lora-000" in worker["cmdline"][0]]

    (title,) = wait_for(titles, "worker with a trial's name")
    assert re.match(r"ray::lora-000 alpha \d+, lr 0.0005, rank 2|ray::lora-000 rank 2, alpha \d+, lr", title)
    (actor,) = get(f"{watched.dashboard}/logical/actors")["data"]["actors"].values()
    assert actor["reprName"].startswith("first trial: head-000 lr 0.001")


def test_the_cluster_page_in_a_browser(watched: Watched, tmp_path: Path) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 1500, "height": 900},
            extra_http_headers=AUTHORIZATION,
        )
        page.goto(f"{watched.dashboard}/#/cluster")
        worker = page.get_by_text("ray::lora-000").first
        worker.wait_for(timeout=60_000)
        worker.scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "cluster.png")
        page.goto(f"{watched.dashboard}/#/actors")
        page.get_by_text("first trial: head-000").first.wait_for(timeout=60_000)
        page.screenshot(path=tmp_path / "actors.png")
        browser.close()
