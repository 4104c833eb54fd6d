"""The explorer's page as a browser sees it: headless Chromium where there is one, plain requests otherwise."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from apd.explore.explorer import Explorer
from apd.explore.uploads import MOST_BYTES

from .pages import external_sources
from .uploads import bomb, large, photo, svg, text

if find_spec("gradio") is None:  # importing it would take every process that collects these tests seconds
    pytest.skip("needs the extra explore", allow_module_level=True)
httpx = pytest.importorskip("httpx", reason="needs httpx")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def address(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the run on three colours, served in this process."""
    import uvicorn

    from apd.explore.server import make_app

    with pytest.MonkeyPatch.context() as patch, socket.socket() as listener:
        patch.setenv("GRADIO_TEMP_DIR", "")  # restored afterwards: the application sets it
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        app = make_app(Explorer.open(trained), trained, tmp_path_factory.mktemp("explore"))
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_uploads_are_bounded_and_headers_forbid_other_sites(address: str, tmp_path: Path) -> None:
    page = httpx.get(address)
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert external_sources(page.text) == []
    with open(large(tmp_path / "large.png"), "rb") as stream:
        answer = httpx.post(f"{address}/gradio_api/upload", files={"files": stream}, timeout=60)
    assert answer.status_code == 413 and str(MOST_BYTES) in answer.text
    assert httpx.get(address, headers={"Host": "elsewhere.example"}).status_code == 400
    for site, code in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
        with open(photo(tmp_path / "small.png"), "rb") as stream:
            sent = {"files": stream}
            answer = httpx.post(f"{address}/gradio_api/upload", files=sent, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == code, site
        assert code == 200 or "by its own address" in answer.text


def test_uploads_are_deleted_while_the_page_is_served_and_examples_stay(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    from apd.explore.server import make_app

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # restored afterwards: the application sets it
    monkeypatch.setattr("apd.explore.app.KEPT", 0.2)
    monkeypatch.setattr("apd.explore.app.SWEPT", 0.05)
    (tmp_path / "explore").mkdir()
    image = photo(tmp_path / "a.png").read_bytes()
    with TestClient(make_app(Explorer.open(trained), trained, tmp_path / "explore")) as client:
        examples = sorted((tmp_path / "explore").rglob("example-*.png"))
        (upload,) = client.post("/gradio_api/upload", files={"files": image}).json()
        assert Path(upload).is_relative_to(tmp_path / "explore")
        choose = next(d for d in client.get("/config").json()["dependencies"] if d["targets"][0][1] == "select")
        question = {
            "data": [],
            "fn_index": choose["id"],
            "session_hash": "one",
            "event_data": {"index": 0, "value": None},
        }
        chosen = client.post("/gradio_api/run/predict", json=question).json()["data"][0]["path"]
        deadline = time.monotonic() + 120
        while Path(upload).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        left = [file for file in (tmp_path / "explore").rglob("*") if file.is_file()]
    assert sorted(left) == examples and Path(chosen) in examples


def test_an_upload_s_age_counts_from_the_last_question_about_it(trained: Path, tmp_path: Path) -> None:
    from apd.explore.app import _read

    file = photo(tmp_path / "a.png")
    os.utime(file, (1, 1))
    _read(Explorer.open(trained), tmp_path, str(file), "red\nblue", 1, "each", 0, 0)
    assert file.stat().st_mtime > 1


@pytest.mark.slow
def test_the_command_serves_this_machine_and_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "apd", "explore", str(trained), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        address = next(found for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))[0]
        page = httpx.get(address, timeout=60)
        assert page.status_code == 200 and list(tmp_path.glob("apd-explore-*"))
        process.terminate()
        process.stderr.read()
        assert process.stdout.read() == ""
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.glob("apd-explore-*")) == []


@dataclass
class Watched:
    """A page, and what it must not do."""

    page: Any
    errors: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)

    def answers(self) -> list[str]:
        """The bars of both cards, as one text each: all probabilities, to the hundredth of a percent."""
        cards = "cards => cards.map(c => Array.from(c.querySelectorAll('tr'), r => r.outerHTML).join())"
        return [str(card) for card in self.page.locator("#answers .apd-card").evaluate_all(cards)]

    def changed(self, before: list[str], both: bool = True) -> list[str]:
        """Wait until both cards, or one of them, differ from ``before``."""
        for _ in range(200):
            now = self.answers()
            differ = [new != old for new, old in zip(now, before or [""] * len(now), strict=True)]
            if len(now) == 2 and (all(differ) if both else any(differ)):
                return now
            self.page.wait_for_timeout(50)
        raise AssertionError(f"the answers stay {before}")

    def choose(self, file: Path) -> None:
        """Upload a file in place of the one that is there."""
        clear = self.page.locator("#image button[aria-label='Clear'], #image button[title='Clear']")
        if clear.count():
            clear.first.click()
        self.page.locator("#image input[type=file]").first.set_input_files(file)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        yield play.chromium.launch(executable_path=CHROMIUM, args=flags)


@pytest.fixture
def watched(browser: Any, address: str) -> Iterator[Watched]:
    """The page, opened; console errors and requests to other places fail the test."""
    found = Watched(browser.new_page(viewport={"width": 1400, "height": 900}))
    page = found.page
    page.on("console", lambda line: found.errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    local = (address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(local) else found.external.append(request.url))
    page.goto(address)
    page.wait_for_selector("#image input[type=file]", state="attached")
    yield found
    page.close()
    assert found.external == []


@pytest.mark.slow
def test_upload_classes_and_eps_change_both_answers(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    watched.choose(photo(tmp_path / "a.png"))
    first = watched.changed([])
    page.locator("#eps input[type=number]").fill("0.25")
    page.locator("#eps input[type=number]").press("Tab")
    # The prompts of one epoch may answer alike, to what a page shows, at any eps.
    weaker = watched.changed(first, both=False)
    page.locator("#eps input[type=range]").press("End")
    stronger = watched.changed(weaker, both=False)
    page.locator("#classes textarea").fill("cat\ndog\n<img src=x> piano")
    page.wait_for_timeout(500)  # nobody leaves the field in the millisecond in which the last letter was typed
    page.locator("#classes textarea").press("Tab")
    renamed = watched.changed(stronger)
    assert all("piano" in card and "dog" in card for card in renamed)
    assert page.locator(".apd-card img").count() == 6, "a class name is text"
    page.locator("#sweep").click()
    page.locator("#curve circle").first.wait_for()
    page.locator("#examples button").first.click()
    watched.changed(renamed)
    page.locator("#curve circle").first.wait_for(state="detached")
    assert watched.errors == []


@pytest.mark.slow
def test_hostile_uploads_are_refused_with_a_sentence(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    for file in (
        bomb(tmp_path / "b.png"),
        text(tmp_path / "t.png"),
        svg(tmp_path / "s.svg"),
        large(tmp_path / "l.png"),
    ):
        watched.choose(file)
        page.locator(".apd-message, [data-testid=toast-body]").first.wait_for()
        assert page.locator(".apd-card").count() == 0
        page.reload()
        page.wait_for_selector("#image input[type=file]", state="attached")
    assert page.evaluate("window.hacked") is None
    watched.choose(photo(tmp_path / "a.png"))
    watched.changed([])
