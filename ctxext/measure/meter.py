"""What a call takes of time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ctxext.measure.memory import (
    accelerator_peak,
    reset_accelerator_peak,
    reset_resident_peak,
    resident_peak,
)


class Meter:
    """Seconds and peak memory of one cell."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device.startswith("cpu"):
            reset_resident_peak()
        else:
            reset_accelerator_peak()
        self._start = time.perf_counter()

    def read(self) -> dict[str, float | int | None]:
        """Seconds since the start, and the peak."""
        return {
            "seconds": time.perf_counter() - self._start,
            "peak_memory_bytes": self._peak(),
        }

    def _peak(self) -> int | None:
        """The peak allocation on all accelerators, which a device map may use, or the process's
        peak resident size; None if unknown."""
        return resident_peak() if self._device.startswith("cpu") else accelerator_peak()


def clock(device: Any, call: Callable[[], object]) -> float:
    """Seconds that the call takes on the device, its last kernel included.

    On CUDA between two events in the current stream, elsewhere by the wall clock.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            torch.cuda.synchronize()
            ends[0].record()
            call()
            ends[1].record()
            torch.cuda.synchronize()
        return float(ends[0].elapsed_time(ends[1])) / 1000
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: Any) -> None:
    """Wait for what runs on the device, and on all others of its kind, which may share a model."""
    import torch

    if device.type == "cuda":
        for number in range(torch.cuda.device_count()):
            torch.cuda.synchronize(number)
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)
