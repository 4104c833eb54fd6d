"""The server of `apd serve`: its throughput beside the bare model's on the same cores, its batches, its memory under load.

The server is a process of its own, its clients are threads of this one, on the same cores: what they cost counts against it.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import psutil
import torch
from PIL import Image

import apd
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, class_names
from benchmarks.measure import Side, compared, interleaved

CLASSES = 10
BATCHES = (1, 4, 8, 16, 32)
CLIENTS = 8
START = 30.0
"""Seconds for the server to be ready, and to find the best batch."""


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite: throughput, and minutes of load on a small model, where everything but the model weighs most."""
    geometry, images, rounds, minutes = ("mini", 64, 2, 0.1) if options.quick else (options.geometry, 64, 5, 10.0)
    about = {"geometry": geometry, "images": images, "per_request": 4, "classes": CLASSES}
    gflop = images * GEOMETRIES[geometry].image_gflop()
    sides = {"ours": Side(gflop, rounds, warm=1), "reference": Side(gflop, rounds, warm=1)}
    yield Case(
        f"throughput{options.suffix(geometry)}",
        about,
        lambda: throughput(options, {**about, "rounds": rounds}),
        sides,
        START,
    )
    load = {"geometry": "mini" if options.quick else "small", "minutes": minutes, "per_request": 1, "classes": CLASSES}
    yield Case(f"load-{load['geometry']}", load, lambda: under_load(options, load), seconds=START + 60 * minutes)


def throughput(options: Options, about: Row) -> Row:
    """Seconds for so many images: the server's, answering clients at once, and the bare model's at its best batch size."""
    encoder, _ = options.load(about["geometry"])
    model = apd.PromptedCLIP(encoder, None, class_names(CLASSES)).frozen()
    side, count = encoder.info.image_size, about["images"]
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).float() / 255

    def bare(batch: int, images: int = count) -> None:
        with torch.no_grad():
            for part in pixels[:images].split(batch):
                model(part)

    tried = {str(batch): partial(bare, batch, max(BATCHES)) for batch in BATCHES}
    timed = interleaved(tried, dict.fromkeys(tried, 2), encoder.device)
    best = min(BATCHES, key=lambda batch: min(timed[str(batch)]))
    requests = [body(side, about["per_request"], seed) for seed in range(count // about["per_request"])]
    with serving(options.folder(GEOMETRIES[about["geometry"]]), best) as (port, _):
        send(port, requests)
        before = batches(port)
        functions = {"ours": partial(send, port, requests), "reference": partial(bare, best)}
        times = interleaved(functions, dict.fromkeys(functions, about["rounds"]), encoder.device)
        calls, images = (after - first for after, first in zip(batches(port), before, strict=True))
    row = compared(times)
    return row | {"best_batch": best, "images_per_s": count / row["ours_s"], "images_per_call": images / calls}


def under_load(options: Options, about: Row) -> Row:
    """Memory of the server, in MB, in the second and in the last fifth of some minutes of requests without a pause."""
    geometry = GEOMETRIES[about["geometry"]]
    request = [body(geometry.image_size, about["per_request"], 0)]
    with serving(options.folder(geometry), 32) as (port, process):
        end, sizes, answered = time.monotonic() + 60 * about["minutes"], [], [0] * CLIENTS

        def ask(client: int) -> None:
            while time.monotonic() < end:
                send(port, request * 20, clients=1)
                answered[client] += 20

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            sizes.append(process.memory_info().rss / 1e6)
            time.sleep(0.2)
        calls, images = batches(port)
    fifth = max(1, len(sizes) // 5)
    early, late = fmean(sizes[fifth : 2 * fifth]), fmean(sizes[-fifth:])
    return {
        "minutes": about["minutes"],
        "requests": sum(answered),
        "images_per_call": images / calls,
        "memory_early_mb": early,
        "memory_late_mb": late,
        "memory_growth_mb": late - early,
    }


def body(side: int, images: int, seed: int) -> bytes:
    """A multipart body of JPEG files with noise of the model's own size."""
    generator = np.random.default_rng(seed)
    pieces = []
    for number in range(images):
        file = io.BytesIO()
        smooth = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        smooth.save(file, "JPEG")
        head = f'--x\r\nContent-Disposition: form-data; name="images"; filename="{number}.jpg"\r\n\r\n'
        pieces.append(head.encode() + file.getvalue() + b"\r\n")
    return b"".join(pieces) + b"--x--\r\n"


def send(port: int, bodies: list[bytes], clients: int = CLIENTS) -> None:
    """Send requests from several clients at once, and wait for all answers."""
    left, failures = iter(bodies), []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for one in left_over():
            connection.request("POST", "/v1/classify", one, {"Content-Type": "multipart/form-data; boundary=x"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(answer.status)
        connection.close()

    lock = threading.Lock()

    def left_over() -> Iterator[bytes]:
        while True:
            with lock:
                one = next(left, None)
            if one is None:
                return
            yield one

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"the server answered with {failures[0]}")


def batches(port: int) -> tuple[float, float]:
    """Calls of the model and images in them, so far."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    calls, images = (re.search(rf"^apd_batch_size_{what} (\S+)", text, re.M) for what in ("count", "sum"))
    assert calls and images
    return float(calls[1]), float(images[1])


@contextmanager
def serving(clip: Path, batch: int) -> Iterator[tuple[int, psutil.Process]]:
    """A server of the zero-shot classifier of a CLIP folder; its port and process."""
    words = json.dumps({"clip": str(clip), "batch": batch})
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.serve", words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), psutil.Process(process.pid)
    finally:
        process.terminate()
        if process.wait():
            raise SystemExit(f"the server ended with {process.returncode}")


def main(clip: str, batch: int) -> None:
    """Serve until SIGTERM; the port goes to standard output."""
    from apd.serve import ServeSettings, server
    from apd.serve.app import build
    from apd.serve.model import Served
    from apd.util.threads import on_passing_thread
    from apd.util.web_server import listen

    settings, at = ServeSettings(max_batch=batch), listen("127.0.0.1", 0)
    served = on_passing_thread(lambda: Served(apd.PromptedCLIP(apd.load_clip(clip), None, class_names(CLASSES)), None))
    app = build(served, settings)
    print(at.getsockname()[1], flush=True)
    server.serve(app, at, settings)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
