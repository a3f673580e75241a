"""A method with its parameters for a model and a length, by a search under a budget.

space.py     what is searched: methods, the ranges of their parameters, a query scale or none
lambdas.py   the λ of longrope by the pair, where these are searched for
by_layer.py  a factor for each attention layer, where these are
curves.py    such lists, drawn at a few places
search.py    the trials, each a few ordinary records, proposed by Optuna, and the finals
unseen.py    the winner against the best default on what the search has not read
outcome.py   what was found: the order of the trials, the table, the JSON records
"""

from ctxext.advise.tune.outcome import Outcome, Trial, command, records, to_rich, verdict
from ctxext.advise.tune.search import Search, TuneRequest
from ctxext.advise.tune.space import parse_families

__all__ = [
    "Outcome",
    "Search",
    "Trial",
    "TuneRequest",
    "command",
    "parse_families",
    "records",
    "to_rich",
    "verdict",
]
