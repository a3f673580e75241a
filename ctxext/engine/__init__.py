"""The engine: a model changed at two public seams, its rotary module and its attention function.

what is put on a model
patch.py        a spec on a model in place, and off again, bit for bit
anatomy.py      what a spec meets in a model: which layers take it, and why not any
frequencies.py  frequencies on its rotary modules, as stock.py has transformers compute them
guards.py       hooks around each forward, which refuse what is not as the patch left it
saved.py        a model as it was saved: patched, where it was patched then
carried.py      model classes that are patched whenever they run
at_hand.py      parameters by the length of each sequence that a patched model reads
pinned.py       one length for each sequence that the unpatched model reads
switch.py       changes that can be undone

what is learnt of a model
few_tokens.py   a few tokens through it, without most of its matrix products
probe.py        what these show of how each layer sees positions
layers.py       what is known of its attention layers: AttentionSite
rotation.py     which dimensions of a head are turned, by which frequencies: Rotation
rotary.py       its rotary modules; a set of frequencies as a patched model uses it: RotarySite
trial.py        the proof that an infinite window changes nothing

what a forward does
state.py        what a model's layers know of their patch: PatchState
forward.py      what is known of the forward pass that is running: Forward
masks.py        what transformers' masks say, in memory linear in length where it can be
seams.py        the attention function that transformers calls
runs.py         attention as a list: all rows, one row, a sequence of a packed one: Run
slots.py        whether mask and positions agree
positions.py    true positions of a run's queries and keys: Positions; a part as they have it: Band
turned.py       keys that stay turned from one step of a generation to the next: Turned, Strip

how it is computed
attention.py    what one attention is given, and what a path says of itself: Attention, Path
paths.py        the attention paths, and which one is taken: PathChoice
regions.py      where parts lie among queries and keys: Region
merged.py       a few plain attentions, merged: Call; operators.py what computes one
single.py       of one query in each row, such as a step of a padded batch: Piece
chunked.py      by query chunks, memory linear in length; the entropy of attention
sharpened.py    what an attention rule multiplies queries by, from their scores
reference.py    dense, in a few lines: what every path is tested against
watch.py        what each attention layer scores while a model runs, patched or not
"""

from __future__ import annotations

from ctxext.choices import Attention, AttentionPath, check_word, words

VERSION = 1  # of how a model is changed, read and answers: where their numbers change it goes up
PATHS = words(AttentionPath)  # attention paths: `auto` takes the first that can run


def check_path(asked: str) -> str:
    """The attention path asked for, or `auto`; UsageError for an unknown one."""
    return check_word("attention path", asked, Attention)
