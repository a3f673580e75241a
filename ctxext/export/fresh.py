"""A fresh process that has no ctxext, and measures a model folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ctxext.errors import UnsupportedModelError, short
from ctxext.export import check

FAILED = "the export does not prove right: a fresh process without ctxext"


class Fresh:
    """The process at work; what it sends is read in order."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path, patience: float | None):
        self._process, self._errors, self._patience = process, errors, patience
        self._late = False

    def receive(self, what: str) -> Tensor:
        """The next numbers; UnsupportedModelError where they are not `what`, or none come."""
        header, numbers = self._next()
        if numbers is None or header.get("what") != what:
            raise UnsupportedModelError(f"{FAILED} sent no {what}")
        return numbers

    def end(self) -> dict[str, Any]:
        """What the process says of itself when all is sent; errors as for `receive`."""
        header = self._next()[0]
        if header.get("what") != "end":
            raise UnsupportedModelError(f"{FAILED} sent more than was asked for")
        return header

    def _next(self) -> tuple[dict[str, Any], Tensor | None]:
        assert self._process.stdout is not None
        try:
            header, numbers = check.receive(self._process.stdout)
        except EOFError:
            raise UnsupportedModelError(f"{FAILED} {self._death()}") from None
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"{FAILED} sent what is no result: {check.one_line(error)}"
            ) from error
        if "error" in header:
            raise UnsupportedModelError(f"{FAILED} cannot load or run it: {header['error']}")
        return header, numbers

    def _death(self) -> str:
        """How the process came to its end, in a few words."""
        code = self._process.wait()
        if self._late:
            return f"did not finish in {self._patience:.0f} seconds"
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
                memory = " (is there too little memory?)" if name == "SIGKILL" else ""
                return f"was killed by {name}{memory}"
        lines = self._errors.read_text(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return f"ended with exit code {code}: {short(said)}"

    def stop(self) -> None:
        """Called by a timer when patience is at its end."""
        self._late = True
        self._process.kill()


@contextlib.contextmanager
def fresh(box: Path, job: dict[str, Any], patience: float | None) -> Iterator[Fresh]:
    """Start a process on a job for `check.py`; it is gone when the block is left.

    Args:
        box: an empty folder, or one of this job's alone, for the script and its caches.
        patience: seconds until it is killed; None for no end.

    Raises:
        UnsupportedModelError: no process can be started.
    """
    script = box / "check.py"
    shutil.copyfile(check.__file__, script)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(box / "modules"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (box / "errors.txt").open("wb") as errors:
        try:
            process = subprocess.Popen(
                [sys.executable, "-S", str(script)],  # -S: nothing installed runs before it
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=box,
                env=environment,
            )
        except OSError as error:
            raise UnsupportedModelError(f"{FAILED} cannot be started: {error}") from error
    running = Fresh(process, box / "errors.txt", patience)
    timer = threading.Timer(patience or threading.TIMEOUT_MAX, running.stop)
    timer.daemon = True
    timer.start()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        yield running
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
