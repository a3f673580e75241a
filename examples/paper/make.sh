#!/bin/sh
# From grid.yaml to tables and figures in results/, and with LaTeX at hand to paper.pdf. Cells that
# have a record are not measured again.
set -eu
ctxext eval --grid grid.yaml --out results >/dev/null
ctxext report --out results --format latex --write --plots pdf --width 3.3in >/dev/null
if command -v tectonic >/dev/null; then
  tectonic paper.tex
elif command -v pdflatex >/dev/null; then
  pdflatex -interaction=nonstopmode -halt-on-error paper.tex
else
  echo "no LaTeX here: results/ has the table and the figures" >&2
fi
