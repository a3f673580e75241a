"""What a model says: of the tokens of windows, and in answer to prompts.

tokens.py        text → token ids; windows → token scores, with logits held a chunk at a time
answers.py       prompts → greedy answers, in batches or after a shared beginning
predictions.py   the answers on disk, kept as they come
attempts.py      what is tried where memory runs out
loaded.py        the model, tokenizer and token ids that sessions share
session.py       a model with its windows and samples, and what is measured with them
outcome.py       what became of a cell: the fields of its record, or why there are none
workers.py       the processes that share a cell
"""
