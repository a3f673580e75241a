"""The processes among which `accelerate launch` splits a cell; one, without it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from ctxext.errors import UsageError


def speaks() -> bool:
    """Whether this process is the one that prints: the first of a launch, or the only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def launched_alone() -> bool:
    """Whether `accelerate launch` was asked for several processes and started one.

    It does so on machines without GPUs, unless it is told `--multi_gpu`.
    """
    several = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    return several and "WORLD_SIZE" not in os.environ


def several() -> bool:
    """Whether this is one of several processes of a launch."""
    return _number("WORLD_SIZE", 1) > 1


def leave() -> None:
    """Part from the other processes: the threads between them must not outlive the interpreter."""
    if several():
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


class Workers:
    """This process among those of one launch.

    Attributes:
        rank: its number; 0 writes records.
        count: how many there are.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count, self.rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
        self._state: Any = None
        if self.count > 1:
            from accelerate import PartialState

            # one process may have far more to read than another before they meet
            self._state = PartialState(
                cpu=device == "cpu" or not _has_cuda(), timeout=timedelta(days=7)
            )
            self.count, self.rank = self._state.num_processes, self._state.process_index

    @property
    def first(self) -> bool:
        """Whether this process writes records."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """The device of this process: each has a GPU of its own where `auto` or `cuda` is asked."""
        if self.count == 1 or device not in ("auto", "cuda"):
            return device
        return str(self._state.device)

    def gather(self, mine: Any) -> list[Any]:
        """What every process has, by rank; all must come here in the same order."""
        if self.count == 1:
            return [mine]
        from accelerate.utils import gather_object

        return list(gather_object([mine]))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _number(name: str, default: int) -> int:
    """A whole number that a launcher left in the environment."""
    text = os.environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"bad value {text!r} of {name} in the environment: give a whole number")
    return int(text)
