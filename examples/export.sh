#!/bin/sh
# A stretched model as a folder that transformers, vLLM and SGLang load without ctxext: yarn fits
# into a config, so that no code goes along (--native-only refuses what needs some).
set -eu
MODEL=${MODEL:-tiny}
METHOD=${METHOD:-yarn}
LENGTH=${LENGTH:-1k}
OUT=${OUT:-exported}

ctxext export --model "$MODEL" --method "$METHOD" --len "$LENGTH" --native-only --out "$OUT"
cat "$OUT/README.md" # what was compared with the patched model, in a process without ctxext
