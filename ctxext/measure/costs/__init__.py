"""What an evaluation will cost, before any weights are loaded.

work.py     the arithmetic and the bytes of a model's forwards, from its config
counted.py  the memory of a forward, counted on the meta device
probe.py    how quick this machine is, measured on a few of the model's layers
cells.py    the cells of a plan, with time and memory
"""

from ctxext.measure.costs.cells import Estimate, estimates
from ctxext.measure.costs.work import Shape, Work, relative_costs

__all__ = ["Estimate", "Shape", "Work", "estimates", "relative_costs"]
