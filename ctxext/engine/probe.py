"""A few tokens through a model, to see that its attention is what the engine takes it for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.engine.seams import State
from ctxext.errors import CtxextError, UnsupportedModelError
from ctxext.patches.base import Part, identity

PROBE_TOKENS = 8


def probe(model: Any, rotary: nn.Module) -> list[Tensor]:
    """What each attention layer gives on a few tokens, in evaluation mode: [tokens, ·] each."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0].detach()[0].float().cpu())

    hooks = [
        m.register_forward_hook(keep)
        for m in model.modules()
        if type(m).__name__.endswith("Attention")
    ]
    modes = {module: module.training for module in model.modules()}
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    try:
        model.eval()
        ids = torch.arange(PROBE_TOKENS, device=device)[None] % vocabulary
        with torch.no_grad(), _kept(rotary):
            model.base_model(input_ids=ids, use_cache=False)
    except CtxextError:
        raise
    except Exception as error:
        kind = model.config.get_text_config().model_type
        raise UnsupportedModelError(f"{kind} does not run on a few tokens: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    return seen


@contextlib.contextmanager
def _kept(rotary: nn.Module) -> Iterator[None]:
    """Undo what a forward does to a rotary module whose frequencies depend on the length."""
    values = {name: (x, x.clone()) for name, x in rotary._buffers.items() if x is not None}
    attributes = {name: value for name, value in vars(rotary).items() if name[0] != "_"}
    try:
        yield
    finally:
        for name in vars(rotary).keys() - attributes.keys():
            if name[0] != "_":
                delattr(rotary, name)
        rotary.__dict__.update(attributes)
        for name, (buffer, value) in values.items():
            rotary._buffers[name] = buffer
            buffer.data.copy_(value)


def check_probe(model: Any, state: State, before: list[Tensor]) -> None:
    """With a window wider than the probe, each attention must give what it gave before the patch.

    Off means relative to a token's largest output. In float32 no token may be off by 1e-3, where
    rounding an angle of PROBE_TOKENS radians costs 1e-6 a layer; in 16 bits, where each rounding
    costs 4e-3 and may route a token to another expert, half of the tokens must be within 1e-1.
    """
    kept, state.parts = state.parts, _wide(state.parts)
    scales, state.query_scales = state.query_scales, ()
    kind = model.config.get_text_config().model_type
    try:
        after = probe(model, state.rotary)
    except CtxextError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{kind} does not run with ctxext's attention: {error}"
        ) from error
    finally:
        state.parts, state.query_scales = kept, scales
        state.tables.clear()
    if not state.calls:
        raise UnsupportedModelError(f"{kind} does not use transformers' attention interface")
    wide = next(model.parameters()).dtype in (torch.float32, torch.float64)
    for old, new in zip(before, after, strict=True):
        off = (old - new).abs().amax(-1) / old.abs().amax(-1).clamp(min=1e-9)
        worst = float(off.max() if wide else off.median())
        if not worst <= (1e-3 if wide else 1e-1):
            raise UnsupportedModelError(
                f"{kind} is rotated in a way that is not understood: with an infinite window "
                f"its attention is off by {worst:.1g}"
            )


def _wide(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The same cached keys, with a near part that reaches over the whole probe."""
    if not parts:
        return parts
    far = parts[-1]
    near = Part(0, PROBE_TOKENS, identity, identity)
    return (near, Part(PROBE_TOKENS, None, far.query, far.key))
