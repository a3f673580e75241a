#!/bin/sh
# Whether a model still measures as it did. The first run makes the baseline, which is committed;
# every later one measures its cells again, and ends with 1 where one got worse.
set -eu
MODEL=${MODEL:-tiny}
BASELINE=${BASELINE:-baseline}

if [ ! -d "$BASELINE" ]; then
  # `manual` is text that ships with ctxext: no release of Python changes it
  ctxext eval --model "$MODEL" --len 512,1k --tokens 4k --data manual --task ppl,acc \
    --method rerope --out "$BASELINE"
fi
ctxext check --baseline "$BASELINE" --sigma 3
