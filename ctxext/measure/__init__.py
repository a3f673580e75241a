"""Cells → records: what a model says of the tokens of windows, and in answer to prompts.

run.py           plans worked off: what is on disk drops out, the rest is measured
found.py         which cells have records, and which of the others this process computes
measurer.py      what those read, and the model, once one needs them
tokens.py        text → token ids; windows → token scores, with logits held a chunk at a time
answers.py       prompts → greedy answers, in batches or after a shared beginning
predictions.py   the answers on disk, kept as they come
attempts.py      what is tried where memory runs out
loaded.py        the model, tokenizer and token ids that sessions share
inputs.py        the windows and prompts that cells read
session.py       a model, and what is measured with it
tries.py         the patched model at work, again with less at once where memory runs out
outcome.py       what became of a cell: the fields of its record that were measured
failure.py       why there are none
record.py        all of its record
results.py       the records of an evaluation, told and kept as they come
workers.py       the processes that share a cell
launch.py        cells as Ray tasks
monitor.py       what a front end is told
machine.py       the machine by name; memory.py and meter.py: what is taken of it
"""
