"""`apd.serve`: answers, limits on hostile input, batches, metrics, and the process from start to end."""

from __future__ import annotations

import asyncio
import html
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apd.models.calibration import Calibration
from apd.predict import predict_files
from apd.runs.folder import Run
from apd.serve import ServeSettings, create_app

from .command_line import Cli
from .forked import Forked, command
from .pages import external_sources
from .refusals import check_error, refused

pytest.importorskip("fastapi")

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from apd.serve.batching import Batcher
from apd.serve.metrics import Metrics
from apd.serve.model import Pixels, Served
from apd.serve.refused import Refused
from apd.util.web_server import listen

SETTINGS = ServeSettings(max_image_mb=0.1, max_images=100, max_megapixels=0.1, timeout=60.0, max_batch=8)
Client = TestClient


def image_file(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def png(side: int = 8, colour: str = "red", kind: str = "PNG") -> bytes:
    return image_file(Image.new("RGB", (side, side), colour), kind)


def parts(*files: bytes, field: str = "images") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, (f"{i}.png", file)) for i, file in enumerate(files)]


@pytest.fixture(scope="module")
def client(trained: Path) -> Iterator[Client]:
    with TestClient(create_app(trained, SETTINGS)) as found:
        yield found


def detail(answer: Any, status: int) -> str:
    """The sentence of a refusal, which is all there is in it."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["detail"] and body["detail"].endswith((".", "…"))
    return str(body["detail"])


def test_answers_are_those_of_predict(client: Client, trained: Path, colours: Path) -> None:
    files = sorted(colours.rglob("*.png"))[::3][:12]
    assert len(files) > 2
    answer = client.post("/v1/classify", files=parts(*(file.read_bytes() for file in files)))
    assert answer.status_code == 200
    rows = [row for answers in predict_files(trained, files, top=3) for row in answers.rows]
    for result, row in zip(answer.json()["results"], rows, strict=True):
        expected = {entry["class"]: entry["probability"] for entry in row["classes"]}
        assert result["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert (result["class"], result["probability"]) == (row["classes"][0]["class"], max(expected.values())) or (
            result["probability"] == pytest.approx(row["classes"][0]["probability"], abs=1e-5)
        )
        assert set(result) == {"class", "probability", "probabilities"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_kinds_of_images(client: Client, kind: str) -> None:
    assert client.post("/v1/classify", files=parts(png(kind=kind))).status_code == 200


def test_a_hundred_images_and_not_one_more(client: Client) -> None:
    answer = client.post("/v1/classify", files=parts(*[png()] * 100))
    assert len(answer.json()["results"]) == 100
    assert "100" in detail(client.post("/v1/classify", files=parts(*[png()] * 101)), 422)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
BOMB = png(side=2000)
assert len(BOMB) < 100_000
FLOATS = image_file(Image.new("F", (8, 8)), "TIFF")


@pytest.mark.parametrize(
    ("file", "status", "words"),
    [
        (SVG, 422, ["Image 2", "1.png", "not an image", "JPEG"]),
        (png(64)[:-40], 422, ["Image 2", "truncated"]),
        (FLOATS, 422, ["Image 2", "floats"]),
        (b"", 422, ["Image 2"]),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, ["Image 2"]),
        (BOMB, 413, ["Image 2", "0.1"]),
        (os.urandom(200_000), 413, ["Image 2", "0.1"]),
    ],
    ids=["svg", "truncated", "floats", "empty", "eps", "bomb", "large"],
)
def test_images_that_are_none(client: Client, file: bytes, status: int, words: list[str]) -> None:
    sentence = detail(client.post("/v1/classify", files=parts(png(), file)), status)
    assert all(word in sentence for word in words)


def multipart(*pieces: bytes) -> dict[str, Any]:
    return {"content": b"".join(pieces), "headers": {"content-type": "multipart/form-data; boundary=x"}}


HEAD = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("request_", "status", "word"),
    [
        ({"content": png(), "headers": {"content-type": "image/png"}}, 415, "multipart/form-data"),
        ({"content": b"", "headers": {}}, 415, "multipart/form-data"),
        ({"json": {"images": []}}, 415, "multipart/form-data"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"x", "headers": {"content-type": f"multipart/form-data; boundary={'x' * 300}"}}, 400, "boundary"),
        (multipart(b"nothing of that kind"), 400, "multipart/form-data"),
        (multipart(HEAD, png()), 400, "boundary"),
        (multipart(HEAD, png(), b"\r\n--x\r\n"), 400, "boundary"),
        (multipart(b"--x--\r\n"), 422, "images"),
        ({"files": parts(png(), field="image")}, 422, "'image'"),
        (multipart(b"--x\r\n\r\n", png(), b"\r\n--x--\r\n"), 422, "images"),
    ],
)
def test_bodies_that_are_none(client: Client, request_: dict[str, Any], status: int, word: str) -> None:
    assert word in detail(client.post("/v1/classify", **request_), status)


def test_other_places(client: Client) -> None:
    assert "/v1/classify" in detail(client.get("/nowhere"), 404)
    answer = client.get("/v1/classify")
    detail(answer, 405)
    assert answer.headers["allow"] == "POST"
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    assert client.get("/docs").status_code == 200
    assert "/docs" in detail(client.get("/redoc"), 404)


def test_the_page_of_examples_shows_every_place_and_loads_nothing_from_elsewhere(client: Client) -> None:
    answer = client.get("/docs")
    page = html.unescape(answer.text)
    assert answer.headers["content-type"].startswith("text/html") and external_sources(answer.text) == []
    assert "<script" not in page and answer.headers["content-security-policy"].startswith("default-src 'none'")
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for operation in operations.values():
            assert f"http://testserver{path}" in page and operation["summary"] in page
    assert "curl -F images=@cat.jpg -F images=@dog.jpg http://testserver/v1/classify" in page
    example = re.search(r'\{\s*"results".*?\n\}', page, re.DOTALL)
    assert example is not None and json.loads(example[0])["results"][0]["probability"] == 0.5


def test_the_page_of_examples_does_not_trust_the_name_it_is_asked_under(client: Client) -> None:
    page = client.get("/docs", headers={"Host": "a.b/<script>;x"}).text
    assert "<script" not in page


def test_the_description_says_what_is_served(client: Client, trained: Path) -> None:
    about, run = client.get("/v1/model").json(), Run.open(trained)
    assert about["classes"] == run.manifest["class_names"]
    assert about["calibration"] == run.manifest["calibration"]
    assert about["limits"] == {"images": 100, "image_mb": 0.1, "image_megapixels": 0.1, "seconds": 60.0}
    assert about["abstain_below"] is None


@pytest.mark.parametrize(("below", "abstained"), [(0.0, False), (1.0, True)])
def test_abstaining_and_no_calibration(run: Path, below: float, abstained: bool) -> None:
    manifest = json.loads((run / "run.json").read_text())
    del manifest["calibration"]
    (run / "run.json").write_text(json.dumps(manifest))
    with TestClient(create_app(run, ServeSettings(abstain_below=below))) as client:
        (result,) = client.post("/v1/classify", files=parts(png())).json()["results"]
        assert result["abstained"] is abstained
        assert (result["class"] is None) is abstained
        assert client.get("/v1/model").json()["calibration"] is None
        assert f"apd_abstained_total {float(abstained)}" in client.get("/metrics").text


def test_the_temperature_reaches_the_answers(run: Path) -> None:
    shown = []
    for temperature in (0.5, 2.0):
        Run.open(run).save_calibration(Calibration(temperature, 3, 0.2, 0.1))
        with TestClient(create_app(run)) as client:
            shown.append(client.post("/v1/classify", files=parts(png())).json()["results"][0]["probabilities"])
            assert f"apd_temperature {temperature}" in client.get("/metrics").text
    log_odds = [np.log(p["red"] / p["blue"]) for p in shown]
    assert log_odds[0] == pytest.approx(4 * log_odds[1], rel=1e-3)


def test_settings_out_of_range_are_refused() -> None:
    for name in ("max_image_mb", "max_images", "max_batch", "timeout", "max_megapixels"):
        with refused(name, "0"):
            ServeSettings(**{name: 0})
    for name in ("max_images", "max_batch", "max_requests"):
        for value in (1.5, True, "many", None):
            with refused(name, "whole number", repr(value)):
                ServeSettings(**{name: value})
    for name in ("timeout", "max_image_mb", "abstain_below"):
        with refused(name, "number", "'much'"):
            ServeSettings(**{name: "much"})
    assert ServeSettings(max_images=np.int64(3), timeout=1).body_bytes > 0  # type: ignore[arg-type]
    with refused("max_megapixels", "178", "300"):  # Pillow reads none of more, and the answer would name 300
        ServeSettings(max_megapixels=300)
    with refused("abstain_below", "2"):
        ServeSettings(abstain_below=2)
    with refused("max_wait_ms"):
        ServeSettings(max_wait_ms=-1)


class Slow:
    """A model that answers each image with its first byte, when it is let."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.asked, self.go = threading.Event(), threading.Event()

    def __call__(self, images: Any) -> list[list[float]]:
        self.asked.set()
        self.go.wait(120)
        self.sizes.append(len(images))
        return [[float(image.flat[0])] for image in images]


def pixels(value: int) -> Pixels:
    return np.full((3, 2, 2), value, np.uint8)


def test_images_of_different_requests_share_batches_and_keep_their_order() -> None:
    model, metrics = Slow(), Metrics()
    batcher = Batcher(model, 4, 0.0, 100, metrics)

    async def ask() -> list[Any]:
        requests = [batcher.classify([pixels(3 * i + j) for j in range(3)]) for i in range(4)]
        tasks = [asyncio.ensure_future(request) for request in requests]
        await asyncio.sleep(0.05)
        model.go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask()) == [[[3.0 * i + j] for j in range(3)] for i in range(4)]
    assert sum(model.sizes) == 12 and max(model.sizes) == 4 and len(model.sizes) <= 4
    assert f"apd_batch_size_mean {12 / len(model.sizes)}" in metrics.text()
    batcher.close()
    assert not batcher.alive


def test_behind_a_prefix_it_is_not_ready_while_it_is_busy(trained: Path) -> None:
    app, outer = create_app(trained, replace(SETTINGS, max_requests=1)), FastAPI()
    outer.mount("/api", app)
    with TestClient(outer) as client:
        assert client.get("/api/readyz").status_code == 200
        app.state.service.active = 1
        assert client.get("/api/readyz").status_code == 503 and client.get("/api/healthz").status_code == 200


def test_a_batcher_whose_thread_is_gone_refuses_at_once_and_starts_again() -> None:
    """A process that was forked has no threads of the first one, as under a server that preloads the application."""
    model = Slow()
    model.go.set()
    batcher = Batcher(model, 4, 0.0, 100, Metrics())
    batcher._queue.put(None)  # ends the thread as a fork does: nobody has closed it
    batcher._thread.join()
    with pytest.raises(Refused, match="restart"):
        asyncio.run(batcher.classify([pixels(1)]))
    batcher.open()
    assert asyncio.run(batcher.classify([pixels(7)])) == [[7.0]]
    batcher.close()


def test_a_full_queue_and_a_closed_one_refuse_and_an_abandoned_request_costs_nothing() -> None:
    model = Slow()
    batcher = Batcher(model, 1, 0.0, 3, Metrics())

    async def ask() -> None:
        first = asyncio.ensure_future(batcher.classify([pixels(1)]))
        assert await asyncio.to_thread(model.asked.wait, 120), "it has left the queue"
        given_up = asyncio.ensure_future(batcher.classify([pixels(2)] * 3))
        await asyncio.sleep(0)
        with pytest.raises(Refused):
            await batcher.classify([pixels(3)])
        given_up.cancel()
        await asyncio.sleep(0)
        model.go.set()
        await first

    asyncio.run(ask())
    batcher.close()
    assert model.sizes == [1]
    with pytest.raises(Refused):
        asyncio.run(batcher.classify([pixels(1)]))


def test_a_failure_of_the_model_is_told_and_the_next_batch_is_answered(trained: Path) -> None:
    app = create_app(trained, SETTINGS)
    served = app.state.service.served
    with TestClient(app, raise_server_exceptions=False) as client:
        frozen, served._frozen = served._frozen, lambda x: torch.full((len(x), 3), float("nan"))
        detail(client.post("/v1/classify", files=parts(png())), 500)
        served._frozen = frozen
        assert client.post("/v1/classify", files=parts(png())).status_code == 200
        text = client.get("/metrics").text
        assert 'apd_requests_total{status="500"} 1.0' in text and 'apd_requests_total{status="200"} 1.0' in text


@pytest.fixture(scope="module")
def live(trained: Path) -> Iterator[int]:
    """A server in a thread; its port."""
    with serving(trained, replace(SETTINGS, max_image_mb=1)) as port:
        yield port


@contextmanager
def serving(run: Path, settings: ServeSettings) -> Iterator[int]:
    """Serve in a thread; gives the port."""
    at = listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(create_app(run, settings), log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [at]})
    thread.start()
    try:
        yield at.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join()


def request_head(length: int) -> bytes:
    kind = "Content-Type: multipart/form-data; boundary=x\r\n"
    return f"POST /v1/classify HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {length}\r\n\r\n".encode()


def read_answer(connection: socket.socket) -> tuple[int, Any]:
    data = b""
    while b"\r\n\r\n" not in data or len(data.split(b"\r\n\r\n", 1)[1]) < int(
        (re.search(rb"content-length: (\d+)", data) or [b"", b"1"])[1]
    ):
        more = connection.recv(65536)
        if not more:
            break
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_slow_body_gets_an_answer(trained: Path) -> None:
    with (
        serving(trained, replace(SETTINGS, timeout=1.0)) as port,
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall(request_head(1000) + HEAD)
        status, body = read_answer(connection)
    assert status == 408 and "1 seconds" in body["detail"]


def test_waiting_for_the_decoders_is_not_the_clients_fault(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load whole bodies got 408, which a client does not send again, and the advice to send smaller images."""
    monkeypatch.setattr(Served, "decode", lambda *_: time.sleep(0.5))
    app = create_app(trained, replace(SETTINGS, timeout=0.1))
    with TestClient(app) as client:
        alone = client.post("/v1/classify", files=parts(png()))
        answer = client.post("/v1/classify", files=parts(png()))  # behind what the first has left undone
    assert "busy" in detail(answer, 503) and answer.headers["retry-after"] == "1"
    assert "fewer" in detail(alone, 413) and "retry-after" not in alone.headers, "it would take as long again"


def test_whoever_finds_it_busy_gets_to_see_why(trained: Path) -> None:
    """Also while a large body is still on its way."""
    body = HEAD + bytes(9_000_000)
    with (
        serving(trained, replace(SETTINGS, max_requests=1)) as port,
        socket.create_connection(("127.0.0.1", port)) as slow,
        socket.create_connection(("127.0.0.1", port)) as other,
    ):
        slow.sendall(request_head(1000) + HEAD)
        time.sleep(0.2)
        other.sendall(request_head(len(body)) + body)
        status, told = read_answer(other)
    assert status == 503 and "busy" in told["detail"]


def test_whoever_sends_too_much_gets_to_see_why(live: int) -> None:
    body = HEAD + bytes(20_000_000)
    for length in (len(body), 10**12):
        with socket.create_connection(("127.0.0.1", live)) as connection:
            connection.sendall(request_head(length) + body)
            status, answer = read_answer(connection)
        assert status == 413 and "1 MB" in answer["detail"]


def test_a_client_that_leaves_does_no_harm(live: int) -> None:
    with socket.create_connection(("127.0.0.1", live)) as connection:
        connection.sendall(request_head(1000) + HEAD)
    with socket.create_connection(("127.0.0.1", live)) as connection:
        body = HEAD + png() + b"\r\n--x--\r\n"
        connection.sendall(request_head(len(body)) + body)
        assert read_answer(connection)[0] == 200


def start(run: Path, port: int) -> tuple[Forked, int]:
    process = Forked(command, "serve", run, "--port", port, descriptor=2)
    for line in process.output:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            return process, int(found[1])
    raise AssertionError("the server did not start")


def test_killed_and_restarted_and_asked_to_stop_while_a_request_is_in_flight(trained: Path) -> None:
    process, port = start(trained, 0)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process, again = start(trained, port)
    assert again == port
    body = HEAD + png() + b"\r\n--x--\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request_head(len(body)) + body)
        assert read_answer(connection)[0] == 200, "the connection is accepted and stays open"
        connection.sendall(request_head(len(body)) + body[:50])
        time.sleep(0.3)
        process.terminate()
        time.sleep(0.3)
        connection.sendall(body[50:])
        status, answer = read_answer(connection)
    assert status == 200 and len(answer["results"]) == 1
    assert process.wait(120) == 0


def test_serve_refuses_what_it_cannot_use(cli: Cli, trained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    check_error(cli("serve", tmp_path / "none"), ["none"])
    check_error(cli("serve", trained, "--max-images", 0), ["max_images", "0"])
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        check_error(cli("serve", trained, "--port", port), [str(port), "--port"])
    check_error(cli("serve", trained, "--port", 99999), ["--port", "99999", "65535"])
    check_error(cli("serve", trained, "--host", "foo..bar"), ["foo..bar", "--host"])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    check_error(cli("serve", trained), ["uvicorn", "adversarial-prompt-distillation[serve]"])


def test_many_clients_at_once(live: int) -> None:
    body = HEAD + png() + b"\r\n--x--\r\n"

    def ask(_: int) -> int:
        with socket.create_connection(("127.0.0.1", live)) as connection:
            connection.sendall(request_head(len(body)) + body)
            return read_answer(connection)[0]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(40))) == {200}
