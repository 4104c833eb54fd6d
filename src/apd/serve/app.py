"""The routes."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from apd.serve.batching import Batcher
from apd.serve.body import read_images, read_on
from apd.serve.docs_page import HEADERS, render_docs
from apd.serve.metrics import Metrics
from apd.serve.model import Pixels, Served
from apd.serve.refused import BUSY, STOPPED, Late, Refused, too_slow
from apd.serve.schema import Answer, Description, Status, problems, request_body
from apd.serve.settings import ServeSettings
from apd.util.messages import get_logger
from apd.util.versions import __version__

log = get_logger("apd.serve")


class Service:
    """What the routes work with: the model behind its batches, threads that decode, limits and counters."""

    def __init__(self, served: Served, settings: ServeSettings) -> None:
        self.served, self.settings, self.metrics = served, settings, Metrics()
        wait = settings.max_wait_ms / 1000
        self.batcher = Batcher(served.classify, settings.max_batch, wait, settings.queued, self.metrics)
        self.decoders = _decoders()
        self.active = 0
        self.crowded = False
        self._late = -math.inf
        temperature = 1.0 if served.calibration is None else served.calibration.temperature
        self.metrics.describe(len(served.class_names), temperature, self.batcher.waiting)

    async def answer(self, request: Request) -> JSONResponse:
        """Answer a request to classify, and count it."""
        started, status = time.perf_counter(), 500
        busy = self.active >= self.settings.max_requests
        self.active += not busy
        # For whoever is in flight: they share, with this one or with what a late one has left undone.
        self.crowded = busy or self.active > 1 or started < self._late + self.settings.timeout
        try:
            if busy:
                await read_on(request)
                raise Refused(503, BUSY)
            found = await self._classify(request)
            status = 200
            return JSONResponse({"results": found})
        except Late as late:
            self._late = time.perf_counter()
            if self.crowded:
                status = late.status
                raise
            status = 413
            raise Refused(status, too_slow(self.settings.timeout)) from late
        except Refused as refused:
            status = refused.status
            raise
        finally:
            self.active -= not busy
            self.metrics.request(status, time.perf_counter() - started)

    async def _classify(self, request: Request) -> list[dict[str, Any]]:
        images = await read_images(request, self.settings, self._decode)
        try:
            async with asyncio.timeout(self.settings.timeout):
                shown = await self.batcher.classify(images)
        except TimeoutError as error:
            raise Late from error
        return [self._result(values) for values in shown]

    async def _decode(self, file: bytes, name: str) -> Pixels:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.decoders, self.served.decode, file, name, self.settings.pixels)

    def _result(self, values: list[float]) -> dict[str, Any]:
        names, most = self.served.class_names, max(values)
        result = {
            "class": names[values.index(most)],
            "probability": most,
            "probabilities": dict(zip(names, values, strict=True)),
        }
        if self.settings.abstain_below is not None:
            result["abstained"] = most < self.settings.abstain_below
            if result["abstained"]:
                result["class"] = None
                self.metrics.abstained()
        return result

    def describe(self) -> dict[str, Any]:
        """Say what is served."""
        known, s = self.served.calibration, self.settings
        return {
            "version": __version__,
            "classes": list(self.served.class_names),
            "calibration": None if known is None else known.record(),
            "abstain_below": s.abstain_below,
            "image_size": self.served.preprocessing.size,
            "limits": {
                "images": s.max_images,
                "image_mb": s.max_image_mb,
                "image_megapixels": s.max_megapixels,
                "seconds": s.timeout,
            },
        }

    def open(self) -> None:
        """Start again after `close`: a server may start and stop an application more than once."""
        if not self.batcher.alive:
            self.batcher.open()
            self.decoders = _decoders()

    def close(self) -> None:
        """Answer what waits, then stop."""
        self.batcher.close()
        self.decoders.shutdown()


def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "apd-decode")


def build(served: Served, settings: ServeSettings) -> FastAPI:
    """Make the application; see `apd.serve.create_app`."""
    service = Service(served, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        app.state.began = True
        service.open()
        yield
        await asyncio.to_thread(service.close)

    # FastAPI's own pages load scripts from another host; `docs_page` does not.
    own: Any = {"docs_url": None, "redoc_url": None}
    app = FastAPI(title="apd serve", version=__version__, description=_about(service), lifespan=lifespan, **own)
    app.state.service, app.state.began = service, False
    _add_errors(app)
    _add_routes(app, service)
    return app


def _about(service: Service) -> str:
    known, below = service.served.calibration, service.settings.abstain_below
    calibrated = (
        "not calibrated."
        if known is None
        else f"{known.describe()}; that holds for clean images, not for adversarial ones."
    )
    abstains = "" if below is None else f" Below a probability of {below:g} there is no class (it abstains)."
    return f"Classifies images as one of {len(service.served.class_names)} classes. The probabilities are {calibrated}{abstains}"


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/classify",
        summary="Classify images",
        response_model=Answer,
        responses=problems(400, 408, 413, 415, 422, 500, 503),
        openapi_extra=request_body(service.settings),
    )
    async def classify(request: Request) -> Response:
        return await service.answer(request)

    @app.get("/v1/model", summary="What is served: classes, calibration, limits", response_model=Description)
    async def model() -> dict[str, Any]:
        return service.describe()

    @app.get("/healthz", summary="Whether the process works", response_model=Status, responses=problems(503))
    async def health() -> dict[str, str]:
        if not service.batcher.alive:
            raise Refused(503, STOPPED)
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether requests are answered", response_model=Status, responses=problems(503))
    async def ready() -> dict[str, str]:
        if service.active >= service.settings.max_requests:
            raise Refused(503, "The server is busy.")
        return await health()

    @app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi(), str(request.base_url).rstrip("/")), headers=HEADERS)


def _add_errors(app: FastAPI) -> None:
    """Answer every error with a sentence in JSON."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        # The rest of the body may still be under way: this connection is not to be used again.
        headers = {"Connection": "close"} | ({"Retry-After": "1"} if error.status == 503 else {})
        return JSONResponse({"detail": error.detail}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> JSONResponse:
        sentences = {
            404: f"There is no {request.url.path[:80]} here; images go to POST /v1/classify, /docs shows the rest.",
            405: f"{request.method[:20]} is not possible here; see the header Allow.",
        }
        return JSONResponse(
            {"detail": sentences.get(error.status_code, str(error.detail))}, error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        log.error(f"A request failed: {type(error).__name__}: {error}")
        return JSONResponse({"detail": "The server failed on this request; its log says why."}, 500)
