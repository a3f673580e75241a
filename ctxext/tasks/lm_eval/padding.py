"""A tokenizer that pads with what the model can embed, and puts nothing after a text."""

from __future__ import annotations

import copy
from typing import Any

from ctxext.models.calls import padding_id
from ctxext.models.prompting import frame


def padding(tokenizer: Any, model: Any) -> Any:
    """A copy of the tokenizer, padding with the first that exists of what lm_eval would take.

    What the tokenizer puts after a text, such as an EOS, it leaves out: lm_eval has an answer
    follow there, and finds where it begins by the length of the prompt alone.
    """
    names = ("pad_token_id", "unk_token_id", "eos_token_id")
    copied = copy.deepcopy(tokenizer)
    before, after = frame(tokenizer)
    if after:
        _leave_open(copied, before)
    copied.pad_token_id = padding_id(model, *(getattr(tokenizer, name, None) for name in names))
    return copied


def _leave_open(tokenizer: Any, before: tuple[int, ...]) -> None:
    """Have the tokenizer add these ids before a text, and no others."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        tokenizer.build_inputs_with_special_tokens = lambda ids, more=None: [
            *before, *ids, *(more or ())
        ]  # fmt: skip
        return
    from tokenizers.processors import TemplateProcessing

    names = [str(core.id_to_token(one)) for one in before]
    start = {"id": "start", "ids": list(before), "tokens": names}
    core.post_processor = TemplateProcessing(
        single=["start", "$A"] if before else ["$A"], special_tokens=[start] if before else []
    )
