"""The tasks: a file each, or a folder with its `task.py`, and one registry.

base.py      the contract
windows.py   how token tasks cut a text
depths.py    what tasks that hide something at several depths share
prompts/     prompts that are made to fill a number of tokens
data/        what is measured on: text and rows
scoring/     answers → scores
"""

from __future__ import annotations

from ctxext.registry import Registry
from ctxext.tasks.base import Task

PRIVATE = ("base", "data", "depths", "prompts", "scoring", "windows")
REGISTRY: Registry[Task] = Registry("task", __name__, private=PRIVATE)
register = REGISTRY.register
names = REGISTRY.names
parse = REGISTRY.parse
