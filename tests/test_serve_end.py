"""How a server ends on Ctrl-C, and on a second one: without a traceback, whatever was in flight."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def start(run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "apd", "serve", str(run), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def handles_sigterm(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, to see when SIGTERM is handled")
@pytest.mark.parametrize("loaded", [False, True])
def test_sigterm_ends_it_with_0_while_the_model_loads_too(trained: Path, loaded: bool) -> None:
    """The first process of a container ignores a signal that it does not handle, and then served on."""
    server = start(trained)
    assert server.stderr is not None
    while not (server.poll() is not None or (loaded and "on http" in server.stderr.readline())):
        if not loaded and handles_sigterm(server.pid):
            break
    server.send_signal(signal.SIGTERM)
    said = server.stderr.read()
    assert server.wait(60) == 0 and "Traceback" not in said, said
    assert loaded or "on http" not in said


@pytest.mark.parametrize("in_flight", [True, False])
def test_ctrl_c_twice_shows_no_traceback(trained: Path, in_flight: bool) -> None:
    server = start(trained)
    assert server.stderr is not None
    address = None
    while address is None:
        address = re.search(r"on http://([\d.]+):(\d+)", server.stderr.readline())
        assert server.poll() is None
    with socket.create_connection((address[1], int(address[2])), timeout=60) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in client.recv(1000)
        if in_flight:  # a body of which the most never comes
            head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 900\r\n\r\n"
            client.sendall(head + b"image")
        time.sleep(0.3)
        server.send_signal(signal.SIGINT)
        if in_flight:
            time.sleep(0.5)
            assert server.poll() is None, "it waits for what is in flight"
        begun = time.monotonic()
        while server.poll() is None and time.monotonic() < begun + 60:  # impatient, until it has ended
            server.send_signal(signal.SIGINT)
            time.sleep(0.02)
    said = server.stderr.read()
    assert server.wait(60) in (130, -signal.SIGINT)
    assert "Traceback" not in said and "KeyboardInterrupt" not in said and "Cancelled" not in said, said
