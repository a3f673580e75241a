"""The library: methods measured from Python, a loaded model too, as a frame, a table and plots."""

from __future__ import annotations

import os
from pathlib import Path

import ctxext

MODEL = os.environ.get("MODEL", "tiny")
METHODS = os.environ.get("METHODS", "ntk rerope+logn").split()
LENGTHS = os.environ.get("LENGTHS", "512,1k")
OUT = Path(os.environ.get("OUT", "evaluated"))

# as `ctxext eval` does it, and with its records: what is there already is not measured again
results = ctxext.evaluate(MODEL, METHODS, LENGTHS, tokens="4k", out=OUT, progress=True)
for record in results.failed:
    print(f"{record['requested']} at {record['length']}: {record['reason']}")
print(results.table())
for name, figure in results.plot().items():
    figure.savefig(OUT / f"{name}.png")

frame = results.to_dataframe()
best = frame.loc[frame[frame["length"] == frame["length"].max()]["value"].idxmin()]
print(f"the best at {best['length']} is {best['requested']}: {best['value']:.2f}")

# a model that is loaded is measured where it is, and left as it was
model, tokenizer = ctxext.load(MODEL)
loaded = ctxext.evaluate(
    model, METHODS, LENGTHS.split(",")[0], tokens="4k", tokenizer=tokenizer, name="mine"
)
print(loaded.to_dataframe()[["model", "requested", "length", "value"]])
