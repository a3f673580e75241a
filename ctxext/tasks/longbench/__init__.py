"""LongBench: rows, templates, truncation; what it scores by is in scoring/.

task.py        the task
questions.py   rows, from files or the Hub
prompts.py     templates and limits, the authors' (prompts.json, LICENSE)
halves.py      the official truncation
"""
