"""Servers as a user starts them, on this machine alone, and requests to them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds until a server answers, and for an answer
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def served(command: str, *more: str, health: str = "/health") -> Iterator[str]:
    """Run a command that serves, with options for a free port here; its address."""
    port = free_port()
    words = [*shlex.split(command), "--host", "127.0.0.1", "--port", str(port), *more]
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            end = time.monotonic() + PATIENCE
            while not _answers(address + health):
                if server.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise AssertionError(
                        f"{shlex.join(words)} does not serve: {log.read()[-3000:]}"
                    )
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(url: str, **request: Any) -> Any:
    """The JSON that a server answers to JSON."""
    data, head = json.dumps(request).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(url, data, head), timeout=PATIENCE
    ) as answer:
        return json.load(answer)
