#!/bin/sh
# Can I run my model at this length, with what, and at what cost? From the config alone, then from
# a few layers here: memory, methods, what each engine takes of them, and the commands to go on with.
set -eu
MODEL=${MODEL:-tiny}
LENGTH=${LENGTH:-4k}
GPU=${GPU:-24GiB}
METHODS=${METHODS:-yarn rerope}

set --
for method in $METHODS; do set -- "$@" --method "$method"; done
ctxext plan --model "$MODEL" --len "$LENGTH" --gpu "$GPU" "$@"
# the same cells with their time and memory on this machine; nothing is measured
ctxext eval --model "$MODEL" --len "$LENGTH" --limit 4 "$@" --dry-run
