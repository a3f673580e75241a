"""`python -m ctxext.harness …` is the `lm_eval` command with `--model ctxext`, wherever it runs."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
