"""What a model says: of the tokens of windows, and in answer to prompts.

tokens.py    text → token ids; windows → token scores, with logits held a chunk at a time
"""
