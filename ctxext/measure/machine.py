"""The machine under a run, and what it runs, by name."""

from __future__ import annotations

import contextlib
import platform
import sys
from importlib import metadata
from typing import Any

from ctxext import __version__


def device_name(device: Any) -> str:
    """The device's kind, and what there is of it: the GPU's name, or machine and threads."""
    import torch

    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions(*more: str) -> dict[str, str]:
    """Versions of what numbers depend on, with those of `more` packages that are installed."""
    import torch
    import transformers

    found = {
        "ctxext": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for name in ("tokenizers", *more):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
