#!/bin/sh
# Some methods at some lengths, beside the unpatched model: a table, and tables.md with the plots.
set -eu
MODEL=${MODEL:-tiny}
LENGTHS=${LENGTHS:-512,1k}
TOKENS=${TOKENS:-4k}
OUT=${OUT:-comparison}

ctxext eval --model "$MODEL" --len "$LENGTHS" --tokens "$TOKENS" --task ppl,acc \
  --method ntk --method yarn --method rerope+logn --out "$OUT"
ctxext report --out "$OUT" --write >/dev/null
