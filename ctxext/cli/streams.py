"""stdout and stderr of a command, which may be closed, or close while it runs.

What cannot be shown is no failure of what was done: nobody reads a pipe whose reader has left, as
`head` does. A disk that is full is another matter: there the result is lost.
"""

from __future__ import annotations

import io
import os
import sys

from ctxext.errors import OutputError


class _Stream(io.TextIOWrapper):
    """A stream that goes on as /dev/null once it cannot be written to.

    Args:
        stream: the one that it takes the place of.
        result: whether OutputError is raised where it has no room for more.
    """

    def __init__(self, stream: io.TextIOWrapper, result: bool) -> None:
        stream.flush()
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="replace",  # a formula must not fail on a narrow encoding
            line_buffering=stream.line_buffering,
        )
        self._place, self._result = stream, result  # the buffer is closed with its first owner

    def write(self, text: str) -> int:
        """As of any stream."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """As of any stream."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if self._result and not isinstance(error, BrokenPipeError):
            why = error.strerror or str(error)
            raise OutputError(f"cannot write the result: {why}") from error


def hold() -> None:
    """Put such streams in the place of Python's own; one that is closed is /dev/null."""
    for number in range(3):  # or the next file that is opened would be printed into
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        if type(stream) is io.TextIOWrapper:
            setattr(sys, name, _Stream(stream, result=name == "stdout"))
