"""What to do with a model, before and after it is measured.

estimate.py  what an evaluation will cost, as a table
explain/     what a method does to angles, distances and the entropy of attention
tune/        a method with its parameters, by a search under a budget
"""
