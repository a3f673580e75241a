"""`python -m ctxext.harness …` is the `lm_eval` command, which knows `--model ctxext`."""

from ctxext.errors import UsageError
from ctxext.extras import need

try:
    need("lm_eval")
except UsageError as error:
    raise SystemExit(f"error: {error}") from None

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
