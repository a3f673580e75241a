"""What torch.compile leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """The function as one at which torch.compile breaks its graph: compiled models stay right."""
    return cast(Function, torch.compiler.disable(function))
