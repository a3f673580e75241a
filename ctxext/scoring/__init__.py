"""Predictions → scores by the rules of the benchmarks' authors; no model, no torch.

longbench.py   the metrics of LongBench and LongBench-E, and folders of prediction files
ruler.py       string_match_all and string_match_part of RULER
"""
