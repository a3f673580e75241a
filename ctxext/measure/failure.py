"""Why a cell has no number, in a form that every process can be told."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ctxext.errors import ENDS_RUN, CtxextError, UsageError, short
from ctxext.measure.workers import Workers

_NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


class Failure(NamedTuple):
    """Why there is nothing, in a form that every process can be told.

    Attributes:
        fields: status and reason.
        trace: the traceback.
        refused: whether it is what was asked for that cannot be done.
    """

    fields: dict[str, str]
    trace: str
    refused: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What an error says; it keeps nothing of what the error's frames hold."""
        trace = "".join(traceback.format_exception(error))
        return cls(failure(error), trace, isinstance(error, UsageError))

    @classmethod
    def refusal(cls, reason: str) -> Failure:
        """Of what cannot be measured, for a reason that was found before."""
        return cls({"status": "error", "reason": reason}, reason, refused=True)

    @property
    def short_of_memory(self) -> bool:
        """Whether less at once might do."""
        return self.fields["status"] == "oom"

    def after(self, tries: Sequence[str]) -> Failure:
        """The same, with what was tried."""
        said = f"{self.fields['reason']} (tried {', '.join(tries)})"
        return self._replace(fields={**self.fields, "reason": said})


class Refusals:
    """Why some cells cannot be measured, by what they read or how they are patched."""

    def __init__(self) -> None:
        self._why: dict[tuple[Any, ...], Failure] = {}

    @contextlib.contextmanager
    def guard(self, *keys: tuple[Any, ...]) -> Iterator[None]:
        """What goes wrong in the block keeps the cells of these keys from being measured."""
        try:
            yield
        except ENDS_RUN:
            raise
        except BaseException as error:  # a tokenizer's core may panic
            self._why |= dict.fromkeys(keys, Failure.of(error))

    def of(self, *keys: tuple[Any, ...]) -> Failure | None:
        """The refusal of one of the keys."""
        return next((self._why[key] for key in keys if key in self._why), None)

    def agree(self, workers: Workers) -> None:
        """Let every process refuse what one of them does; all must come here."""
        for refused in workers.gather(self._why):
            self._why = {**refused, **self._why}


def failure(error: BaseException) -> dict[str, str]:
    """The status and reason of a cell that failed: `oom` where memory ran out, else `error`."""
    text = f"{type(error).__name__}: {short(error)}" if str(error) else type(error).__name__
    if _short_of_memory(error):
        return {"status": "oom", "reason": text}
    return {"status": "error", "reason": str(error) if isinstance(error, CtxextError) else text}


def _short_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out here, or in what led to this error."""
    import torch

    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        kinds = (MemoryError, torch.OutOfMemoryError)
        said = isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)
        if said or isinstance(error, kinds):
            return True
        error = error.__cause__ or error.__context__
    return False
