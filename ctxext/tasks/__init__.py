"""The tasks: one file each, one registry.

base.py      the contract, and what token scores are
windows.py   how token tasks cut a text
"""

from __future__ import annotations

from ctxext.registry import Registry
from ctxext.tasks.base import Task

REGISTRY: Registry[Task] = Registry("task", __name__, private=("base", "windows"))
register = REGISTRY.register
names = REGISTRY.names
parse = REGISTRY.parse
