"""The tasks: one file each, one registry.

base.py        the contract, and what token scores are
windows.py     how token tasks cut a text
questions.py   LongBench's rows, from files or the Hub
prompts.py     LongBench's prompts, from lm_eval
halves.py      LongBench's truncation
"""

from __future__ import annotations

from ctxext.registry import Registry
from ctxext.tasks.base import Task

REGISTRY: Registry[Task] = Registry(
    "task",
    __name__,
)
register = REGISTRY.register
names = REGISTRY.names
parse = REGISTRY.parse
