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


def short(said: object, most: int = 300) -> str:
    """What was said, or an error says, in one line of at most so many characters.

    A longer one is cut between words; an error that says nothing is its type's name.
    """
    line = " ".join(str(said).split())
    if not line and isinstance(said, BaseException):
        return type(said).__name__
    if len(line) <= most:
        return line
    head = line[: most - 1].rpartition(" ")[0]  # a word that begins there may end beyond
    return f"{head} …" if head else f"{line[: most - 1]}…"


#: What ends a run; everything else that is raised in a cell is the failure of that cell.
ENDS_RUN: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, OutputError)
