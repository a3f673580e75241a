"""The engine: a model changed at two public seams, its rotary module and its attention function.

patch.py      put a spec on a model, and take it off again, bit for bit
saved.py      a model as it was saved: patched, where it was patched then
probe.py      a few tokens that prove the model is rotated as it is thought to be
seams.py      the registered attention functions, and what they know of their model
stock.py      frequencies as transformers computes them, and the config that says so
runs.py       rows cut to where positions count from 0, for methods that go by more than distance
paths.py      which attention path is taken
chunked.py    distance attention by query chunks, memory linear in length
watch.py      what each attention layer scores while a model runs, patched or not
pinned.py     one length for each sequence that the unpatched model reads
carried.py    model classes that are patched whenever they run
reference.py  the same, dense, in a few lines: what every path is tested against
"""

VERSION = 1  # of how a model is changed, read and answers: where their numbers change it goes up
