"""Prompts that are made to fill a number of tokens.

fit.py    how many units of haystack fill it
cache.py  finished prompts on disk
"""
