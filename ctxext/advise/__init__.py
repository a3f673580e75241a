"""What to do with a model, before and after it is measured.

baseline.py  records to compare with, and what measures their cells again
evaluate.py  the evaluation of `ctxext eval`, from Python; its Results
progress.py  how far a run is, on stderr
check.py     whether a model still measures as a baseline has it
estimate.py  what an evaluation will cost, as a table
plan/        what a length takes, by a config alone: memory, time, methods, engines, commands
explain/     what a method does to angles, distances and the entropy of attention
tune/        a method with its parameters, by a search under a budget
"""
