"""ctxext and EleutherAI's lm-evaluation-harness, each inside the other.

`ctxext.harness` is where lm_eval's own command finds the model.

task.py       its tasks as a task of ctxext
model.py      `ctxext` as a model of lm_eval
sequences.py  lm_eval's model, with one length for each sequence
catalogue.py  lm_eval's tasks: found by name, hashed, loaded, or refused in one line
quiet.py      lm_eval's chatter, kept to itself
answers.py    lm_eval's file of answers, checked before it is trusted
"""

from __future__ import annotations

NAME = "ctxext"
TARGET = "ctxext.tasks.lm_eval.model:ContextLM"


def register() -> None:
    """Enter the name in lm_eval's registry; the class itself is imported when it is asked for."""
    import lm_eval.models  # noqa: F401 - which fills a registry that is empty, and no other
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)
