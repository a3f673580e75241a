"""What models gave → scores, predictions by the rules of benchmarks' authors; no model, no torch.

base.py         what a score is
tokens.py       losses and hits of tokens, and their means
metrics.py      the metrics of LongBench: one prediction and one answer → 0 to 1
longbench.py    the tasks of LongBench and LongBench-E: a task's rows → its score
predictions.py  folders of prediction files → scores, and their table
ruler.py        string_match_all and string_match_part of RULER
"""
