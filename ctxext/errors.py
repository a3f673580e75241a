"""The errors a user can cause or meet; each message is one line and says what to do."""

from __future__ import annotations


class CtxextError(Exception):
    """Anything that ctxext reports in one line instead of a traceback."""


class UsageError(CtxextError):
    """What was asked for cannot be done: a bad name, value, file or model (exit code 2)."""


class UnsupportedModelError(UsageError):
    """The model cannot take the method; the message gives the reason."""


class OutputError(CtxextError):
    """What was found cannot be kept: the disk is full, the folder is gone (exit code 1)."""


#: What ends a run; everything else that is raised in a cell is the failure of that cell.
ENDS_RUN: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, OutputError)
