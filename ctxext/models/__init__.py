"""Models: aliases, loading, and what a family's rotary layout is.

a name → a model
aliases.py   short names of models that people use
packages.py  models that packages of the Python index carry, as GGUF files
contents.py  what files a model folder has
loading.py   a name, an id or a folder → config, model and tokenizer
held.py      a model that the caller has loaded
adapter.py   PEFT adapters, alone or beside a whole model's weights
folder.py    a model's folder on this machine
identity.py  what a model is: a hash, and its trained length
hashes.py    the hash of a folder, kept for later commands

GGUF files
gguf_header.py   what a file says of itself, read once
gguf_config.py   what of that transformers leaves out, put into the config
gguf_loading.py  how transformers' loader is given a file

what a config or a model says
rope.py      a config's rotary embeddings, checked
trained.py   the trained length, from a config alone
layout.py    the layers that a config speaks of: heads, kinds, windows
frequency_sets.py  a loaded model's rotary frequencies: FrequencySet
calls.py     how a model's forward is called
mark.py      what a patched model's config says of its patch
families.py  what each model type of transformers takes
outline.py   the modules of a config's model, without weights
small.py     small random models of a config, its sizes by sizes.py
prompting.py what a tokenizer makes of a prompt, with a chat template or without
"""
