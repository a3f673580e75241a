"""What was asked for → cells.

options.py     options that a grid file has as keys too, each said once
lists.py       lists as they are written: lengths, methods, tasks, seeds
evaluation.py  an evaluation, parsed, checked and frozen: EvaluationRequest
texts.py       such a request from texts, as a command or a call has them
grid.py        a grid file, as one such for each model and text
cells.py       its cells, and the hash of all that a cell's numbers depend on
"""
