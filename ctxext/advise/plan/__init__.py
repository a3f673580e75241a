"""What reading at a length will take, and by what, from a model's config alone.

study.py    a PlanRequest → a Plan: T, memory in each dtype, time where it is known, methods
choice.py   a short list of methods, by records of the same family or by their nature
commands.py the commands to go on with
tables.py   the same as tables and lines, and as JSON
"""

from ctxext.advise.plan.study import Plan, PlanRequest, make

__all__ = ["Plan", "PlanRequest", "make"]
