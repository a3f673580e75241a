"""A patched model as a folder, or a file, that other tools load.

write.py      the order of things: check, write, prove, card, place
fitted.py     what a spec meets in a model
native.py     configs of stock transformers that say a spec
carried.py    a folder's own code, made of the engine's files
gguf.py       one file for llama.cpp; gguf_rope.py its rotation, gguf_vocab.py its tokenizer
weights.py    whether a model loads from its weight files, by their headers
files.py      which files of a model come along; staging.py how the folder appears, whole
reach.py      up to how many tokens a spec reaches
proof.py      what a fresh process finds; fresh.py starts it, check.py is what runs in it,
              job.py what it is told to measure, figures.py how far that is from ours
unpacked.py   a GGUF file as a folder, to export from
card.py       the model card
engines.py    what each engine can take of a spec, from a config alone
hub.py        a push to the Hub
"""
