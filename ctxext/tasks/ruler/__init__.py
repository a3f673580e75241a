"""The prompts of RULER (arXiv 2404.06654, github.com/NVIDIA/RULER), made as its scripts make them.

task.py        the task
lexicon.py     word lists, sentences
niah.py        needles in a haystack: the eight tasks niah_*
tracking.py    vt: chains of variables
words.py       cwe and fwe: common and frequent words
questions.py   qa_1 and qa_2: questions over documents of SQuAD and HotpotQA

Constants carry the names that RULER gives them. Random numbers differ from RULER's, which draws
all samples from one stream: here each sample has its own, so that a sample is the same whatever
the number of samples.
"""
