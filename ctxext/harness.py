"""`--model ctxext` for lm-evaluation-harness: importing this makes it known to lm_eval.

lm_eval looks for no plugins, so `python -m ctxext.harness …` is its command with that model.
"""

from __future__ import annotations

import importlib.util

from ctxext.errors import UsageError
from ctxext.system.extras import need
from ctxext.tasks.lm_eval import register

if importlib.util.find_spec("lm_eval") is not None:
    register()

if __name__ == "__main__":
    try:
        need("lm_eval")
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
