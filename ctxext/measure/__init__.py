"""What a model says: of the tokens of windows, and in answer to prompts.

tokens.py        text → token ids; windows → token scores, with logits held a chunk at a time
answers.py       prompts → greedy answers, in batches or after a shared beginning
predictions.py   the answers on disk, kept as they come
session.py       a model with its windows and samples, and what is measured with them
workers.py       the processes that share a cell
"""
