"""lm_eval's chatter, kept to itself."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of lm_eval's; what it prints goes to stderr.

    Bootstrapped errors are computed in this process: lm_eval would fork one that holds a model.
    """
    from tqdm.std import tqdm

    logger, start = logging.getLogger("lm_eval"), tqdm.__init__
    level, pool = logger.level, os.environ.get("DISABLE_MULTIPROC")

    def hidden(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **{**options, "disable": True})

    with contextlib.redirect_stdout(sys.stderr):
        try:
            tqdm.__init__ = hidden
            logger.setLevel(logging.ERROR)
            os.environ["DISABLE_MULTIPROC"] = "1"
            yield
        finally:
            tqdm.__init__ = start
            logger.setLevel(level)
            os.environ.pop("DISABLE_MULTIPROC")
            if pool is not None:
                os.environ["DISABLE_MULTIPROC"] = pool
