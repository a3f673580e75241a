"""`ctxext` as a model of lm_eval: any model that ctxext loads, patched with any method."""

from __future__ import annotations

import logging
import sys
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

from ctxext import __version__, methods
from ctxext.engine import check_path
from ctxext.engine.patch import patch
from ctxext.errors import CtxextError, UsageError
from ctxext.models import loading
from ctxext.models.aliases import taken
from ctxext.models.trained import check_own_scaling, explain_trained
from ctxext.notation import parse_length
from ctxext.tasks.lm_eval.padding import padding
from ctxext.tasks.lm_eval.quiet import quiet
from ctxext.tasks.lm_eval.sequences import SequenceLM
from ctxext.text import did_you_mean

OWN = (
    "pretrained", "method", "length", "attn", "train_len", "own_scaling", "dtype", "device",
    "revision", "load_in", "trust_remote_code",
)  # fmt: skip
#: What HFLM takes besides, and can still do with a model that is loaded.
PASSED = (
    "batch_size", "max_batch_size", "truncation", "logits_cache", "softmax_dtype",
    "mixed_precision_dtype", "add_bos_token", "prefix_token_id", "think_end_token",
    "enable_thinking", "chat_template_args",
)  # fmt: skip


@register_model("ctxext")
class ContextLM(SequenceLM):
    """A patched model, on one device.

        python -m ctxext.harness --model ctxext --tasks hellaswag --device cpu \\
            --model_args pretrained=tiny,method=rerope:window=256+logn,length=4k

    lm_eval parts arguments at commas, so between a method's own parameters write `;`, which all
    ways of giving arguments take: `method=yarn:factor=4;beta_fast=32` (in quotes for the shell).

    Args:
        pretrained: `tiny`, an alias, a Hub id or a folder.
        method: as for `ctxext eval --method`, with `;` for `,`; the unpatched `rope` by default.
        length: L, the most tokens read at once, such as 4096 or 4k: longer input loses its
            beginning. T by default, and then a method's defaults that depend on L must be given.
        attn, train_len, own_scaling, dtype, revision, load_in, trust_remote_code: as for
            `ctxext eval`.
        device: `cuda` and the like fall back to what there is, for lm_eval's own default is cuda.
        passed: see PASSED; as for lm_eval's `hf`.

    Raises:
        UsageError: an argument is unknown or bad, or the model cannot be had or patched.
    """

    def __init__(
        self,
        pretrained: str = "",
        method: str = "rope",
        length: int | str | None = None,
        attn: str = "auto",
        train_len: int | str | None = None,
        own_scaling: str = "keep",
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        load_in: str | None = None,
        trust_remote_code: bool = False,
        **passed: Any,
    ) -> None:
        for key in passed:
            if key not in PASSED:
                raise UsageError(
                    f"unknown argument {key!r} of --model ctxext: "
                    f"{did_you_mean(key, OWN + PASSED)}; between a method's parameters write ';'"
                )
        if not pretrained:
            raise UsageError("--model ctxext needs pretrained=: tiny, an alias, a Hub id or folder")
        check_path(attn)
        spec = methods.parse(str(method).replace(";", ","))
        trained, most = _tokens(train_len), _tokens(length)
        source = loading.Source(
            str(pretrained),
            revision=None if revision is None else str(revision),
            trust_remote_code=trust_remote_code is True,
            dtype=str(dtype),
            device=_available(device),
            load_in=load_in,
            attn=attn,
            train_len=trained,
            own_scaling=str(own_scaling),
        )
        check_own_scaling(source.own_scaling)
        if line := taken(source.name):
            logging.getLogger("lm_eval.ctxext").warning(line)
        model, tokenizer = loading.load_model(source), loading.load_tokenizer(source)
        self.handle = patch(
            model, spec, most, train_len=trained, own_scaling=source.own_scaling, attn=attn
        )
        if spec.unpatched:  # each sequence has a length of its own
            self.handle.remove()
        for note in self.handle.notes:
            logging.getLogger("lm_eval.ctxext").warning(note)
        self._trained = explain_trained(model.config, source.own_scaling, trained)
        logging.getLogger("lm_eval.ctxext").info(str(self._trained))
        most = most or self._trained.tokens
        with quiet():  # it would warn of arguments that are ours
            tokenizer = padding(tokenizer, model)
            super().__init__(pretrained=model, tokenizer=tokenizer, max_length=most, **passed)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> ContextLM:
        """The model from lm_eval's arguments, `--model_args` before what its options default to.

        On lm_eval's command line an error ends the process in one line.
        """
        defaults = {k: v for k, v in (additional_config or {}).items() if v is not None}
        try:
            return cls(**{**defaults, **arg_dict})
        except CtxextError as error:
            if hasattr(sys.modules["__main__"], "cli_evaluate"):
                raise SystemExit(f"error: {error}") from None
            raise

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> ContextLM:
        """The same from one string, as `simple_evaluate` takes it."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes of the model, with the method as it was resolved."""
        return {
            **super().get_model_info(),
            "ctxext_version": __version__,
            "ctxext_method": self.handle.spec.full(),
            "ctxext_trained_length": self._trained.tokens,
            "ctxext_trained_from": self._trained.why,
            "ctxext_attention": str(self.handle.choice),
            "ctxext_notes": self.handle.notes,
        }


def _tokens(value: int | str | None) -> int | None:
    return None if value is None else parse_length(str(value))


def _available(device: str | None) -> str:
    """The device, or `auto` for a CUDA device on a machine that has none."""
    import torch

    if device is None or (str(device).startswith("cuda") and not torch.cuda.is_available()):
        return "auto"
    return str(device)
