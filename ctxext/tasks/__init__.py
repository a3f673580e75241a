"""The tasks: one file each, one registry.

base.py      the contract, and what token scores are
windows.py   how token tasks cut a text
depths.py    what tasks that hide something at several depths share
"""

from __future__ import annotations

from ctxext.registry import Registry
from ctxext.tasks.base import Task

REGISTRY: Registry[Task] = Registry("task", __name__, private=("base", "depths", "windows"))
register = REGISTRY.register
names = REGISTRY.names
parse = REGISTRY.parse
