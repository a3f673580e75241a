"""The memory of the machine under a run: what is taken of it, and its peaks."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from typing import Any


def reset_accelerator_peak() -> None:
    """Let `accelerator_peak` count from now on, where torch counts it for the accelerator."""
    import torch

    with contextlib.suppress(RuntimeError, NotImplementedError):
        for number in range(torch.accelerator.device_count()):
            torch.accelerator.reset_peak_memory_stats(number)


def accelerator_peak() -> int | None:
    """The most bytes that tensors held on all accelerators; None where torch does not count."""
    import torch

    with contextlib.suppress(RuntimeError, NotImplementedError):
        devices = range(torch.accelerator.device_count())
        return sum(int(torch.accelerator.max_memory_allocated(number)) for number in devices)
    return None


def reset_resident_peak() -> None:
    """Let `resident_peak` count from now on, where the system can, which is Linux."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def resident_peak() -> int | None:
    """The most bytes of this process that were resident at once; None where that is unknown.

    Without /proc, as on macOS, it is of the process's whole life; on Windows it is not known.
    """
    return _resident("VmHWM") or _peak_of_life()


def resident() -> int | None:
    """The bytes of this process that are resident now; None where that is unknown."""
    return _resident("VmRSS")


def _resident(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith(name))
        return int(line.split()[1]) * 1024
    return None


def _peak_of_life() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def release() -> None:
    """Give back what is free: garbage, an accelerator's cached blocks, and glibc's free pages."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.accelerator.is_available() and not torch.cuda.is_available():
        torch.accelerator.empty_cache()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def allocated_peak(model: Any, call: Callable[[], object]) -> int | None:
    """The most bytes that torch held at once during the call, parameters and buffers included.

    On CUDA `max_memory_allocated`. On the CPU the same is counted from the profiler's memory
    events: each block that the calling thread takes from torch's allocator or gives back, to
    the byte; what libraries below torch take for themselves is not in it. Blocks from before
    the call other than parameters and buffers do not count, so the call makes what it needs
    and lets go of it. On other accelerators what torch counts, on all of them; None where it
    does not.
    """
    import torch

    device = model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu":
        reset_accelerator_peak()
        call()
        torch.accelerator.synchronize(device)
        return accelerator_peak()
    return _storage_bytes(model) + _Allocations(model).peak(call)


def _storage_bytes(model: Any) -> int:
    """Bytes of the parameters and buffers; tied ones count once."""
    storages = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class _Allocations:
    """The running sum of the CPU allocator's blocks, and its highest point.

    The profiler keeps about 2 KiB for each event until it stops, so it stops and goes on at every
    layer. Nothing but memory is recorded: no operator has the scope USER_SCOPE.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._held = self._highest = 0

    def peak(self, call: Callable[[], object]) -> int:
        """The most bytes that were allocated at once during the call."""
        import torch

        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it tells of each start on stderr
        with contextlib.ExitStack() as hooks:
            for several in self._model.modules():
                for layer in several if isinstance(several, torch.nn.ModuleList) else ():
                    hooks.callback(layer.register_forward_pre_hook(self._go_on).remove)
            self._start()
            try:
                call()
            finally:
                self._stop()
        return self._highest

    def _go_on(self, *_: object) -> None:
        self._stop()
        self._start()

    def _start(self) -> None:
        import torch
        from torch.autograd.profiler import profile
        from torch.profiler import ProfilerActivity, RecordScope  # type: ignore[attr-defined]

        profiler: Any = torch.autograd
        config, activities = profile(profile_memory=True).config(), {ProfilerActivity.CPU}
        profiler._prepare_profiler(config, activities)
        profiler._enable_profiler(config, activities, {RecordScope.USER_SCOPE})

    def _stop(self) -> None:
        import torch

        profiler: Any = torch.autograd
        for event in profiler._disable_profiler().events():
            if event.name() == "[memory]":
                self._held += event.nbytes()
                self._highest = max(self._highest, self._held)


def capacity(device: str) -> int | None:
    """The bytes that a device has, of the CPU those that this process may take; None where that is
    not known."""
    import torch

    kind = torch.device(device)
    if kind.type == "cuda":
        return int(torch.cuda.get_device_properties(kind).total_memory)
    if kind.type != "cpu":
        return None
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(name) as file:
            found.append(int(file.read()))
    return min(found, default=None)
