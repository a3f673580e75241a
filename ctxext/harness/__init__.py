"""ctxext and EleutherAI's lm-evaluation-harness, each inside the other.

Importing this package makes `--model ctxext` known to lm_eval in this process. lm_eval looks for
no plugins, so an installed ctxext brings a `.pth` file that imports this package at the start of
lm_eval's own command; elsewhere `python -m ctxext.harness` is that command.

model.py      `ctxext` as a model of lm_eval
sequences.py  lm_eval's model, with one length for each sequence
catalogue.py  lm_eval's tasks: found by name, hashed, loaded, or refused in one line
quiet.py      lm_eval's chatter, kept to itself
answers.py    lm_eval's file of answers, checked before it is trusted
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import Any

NAME = "ctxext"
MODELS = "lm_eval.models"  # the module that fills lm_eval's registry
TARGET = "ctxext.harness.model:ContextLM"


def register() -> None:
    """Enter the name in lm_eval's registry; the class itself is imported when it is asked for."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


class _Watch(MetaPathFinder):
    """Registers the name right after lm_eval has registered its own."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Nothing of its own: the spec that others find, with `register` after its execution."""
        if fullname != MODELS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if MODELS in sys.modules:
    register()
else:
    sys.meta_path.insert(0, _Watch())
