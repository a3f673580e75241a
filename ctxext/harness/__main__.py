"""`python -m ctxext.harness …` is the `lm_eval` command, which knows `--model ctxext`."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
