"""Serve the explorer's page on this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from apd.explore.app import build
from apd.explore.examples import find_examples
from apd.explore.explorer import Explorer
from apd.explore.uploads import MOST_BYTES
from apd.util.device import pick_device
from apd.util.extras import import_extra
from apd.util.files import AnyPath
from apd.util.temporary import folder_for_a_while

LOCAL = "127.0.0.1"
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; form-action 'self'"
"""Gradio needs inline scripts and eval; nothing is ever loaded from elsewhere."""

_ELSEWHERE = (
    "This came from another site's page; the explorer answers its own page alone: open it by its own address.\n"
)


def explore(
    run: AnyPath,
    *,
    host: str = LOCAL,
    port: int = 7860,
    model: str | None = None,
    device: str = "auto",
    on_ready: Callable[[str], None] = print,
) -> None:
    """Serve a page to try a run on images of one's own, until Ctrl-C.

    Args:
        run: the run folder.
        host: address to listen on; any other than 127.0.0.1 lets other machines in.
        port: 0: a free one.
        model: where the run's CLIP model is now, if it has moved.
        device: auto, cpu, cuda, cuda:1 or mps.
        on_ready: called with the page's address before it is served.

    Raises:
        InputError: gradio is not installed, not a finished run, a port that cannot be had.
    """
    # Gradio reads these when it is imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SSR_MODE": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    import_extra("gradio", "explore", "apd explore")
    import uvicorn

    from apd.util.web_server import listen, run_server

    with listen(host, port) as listener, folder_for_a_while("apd-explore-") as folder:
        explorer = Explorer.open(run, model=model, device=pick_device(device))
        app = make_app(explorer, run, folder, host)
        name, number = host if host not in ("0.0.0.0", "::") else LOCAL, listener.getsockname()[1]
        on_ready(f"http://{f'[{name}]' if ':' in name else name}:{number}")
        # uvicorn hands a signal on when it has stopped; without a handler SIGTERM would leave the uploads behind.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        run_server(config, listener)


def make_app(explorer: Explorer, run: AnyPath, folder: Path, host: str = LOCAL) -> Any:
    """Build the web application.

    Args:
        explorer: the run's.
        run: the run folder, for examples.
        folder: for uploads and examples; whoever gives it removes it.
        host: where it will listen; on this machine's own address other host names are refused.

    Returns:
        ``fastapi.FastAPI``.
    """
    gr = import_extra("gradio", "explore", "apd explore")
    from fastapi import FastAPI, Request
    from fastapi.responses import PlainTextResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    uploads = folder / "uploads"
    uploads.mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # read by each component that is made, and by the application
    page = build(explorer, find_examples(run, uploads), uploads)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable[[Request], Any]) -> Any:
        # Whatever another site's page sends, such as files that would fill the disk; browsers say so of a page on this machine.
        elsewhere = request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        refused = elsewhere and request.method not in ("GET", "HEAD")
        response = PlainTextResponse(_ELSEWHERE, 403) if refused else await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    if host in (LOCAL, "localhost", "::1"):  # another site's name that leads here could read what it shows
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost", "[::1]", "testserver"])
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=_theme(gr),
        css=(files("apd") / "assets" / "explore.css").read_text(encoding="utf-8"),
    )
    return app


def _theme(gr: Any) -> Any:
    """Gradio's default look with this machine's fonts, and grey text that is dark enough to read."""
    grey, dark = "#4b5563", "#c3c8d0"
    return gr.themes.Default(font=_FONTS, font_mono=_MONO).set(
        body_text_color_subdued=grey,
        body_text_color_subdued_dark=dark,
        block_info_text_color=grey,
        block_info_text_color_dark=dark,
    )
