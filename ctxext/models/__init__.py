"""Models: aliases, loading, and what a family's rotary layout is.

aliases.py   short names of models that people use
adapter.py   PEFT adapters, alone or beside a whole model's weights
families.py  what each model type of transformers takes
layout.py    where a loaded model's rotary frequencies are, its θ and its trained length
loading.py   a name, an id or a folder → model and tokenizer
mark.py      what a patched model's config says of its patch
prompting.py what a tokenizer makes of a prompt, with a chat template or without
rope.py      what a config says of rotary embeddings, checked
trained.py   the trained length, from a config alone
"""
