"""Python's search for garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Leave out of the search for garbage what is there now, as torch's own objects are, which are
    so many that each search beside many new objects takes a tenth of a second.

    What is let go of meanwhile and refers to itself, as models do, stays until the end.
    """
    if gc.get_freeze_count():  # another's, who knows when it ends
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
