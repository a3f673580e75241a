"""A small random model with the rotation, and the kinds of layers, of a large one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ctxext.errors import UnsupportedModelError, short
from ctxext.models.frequency_sets import find_frequency_sets
from ctxext.models.loading import Source, settle
from ctxext.models.outline import outline
from ctxext.models.sizes import Changes, smaller, with_changes

TINY = 5_000_000  # parameters: such a model is taken as it is
LARGEST = 100_000_000  # parameters, 400 MB in float32: no larger one is made
GAIN = 1.0  # weights have the standard deviation GAIN / √(inputs)
STEPS: tuple[tuple[str, ...], ...] = (
    ("layers", "vocabulary", "mlp", "experts", "heads", "latent"),
    ("layers", "vocabulary", "mlp", "experts", "heads"),
    ("layers", "vocabulary", "mlp", "experts"),
    ("layers", "vocabulary"),
    ("vocabulary",),
    (),
)


def small_model(config: Any, *, trust_remote_code: bool = False) -> tuple[Any, Changes]:
    """A random float32 model on the CPU, of a config that differs in sizes alone.

    Kept are the head dimension, all that rotation depends on, windows, softcaps, T, and every kind
    of layer. The sizes are the smallest with which transformers builds and runs the model.
    Weights are seeded; they are large enough that attention picks keys by content and position,
    which transformers' own initial weights hardly do.

    Args:
        config: a causal language model's transformers config; it is left as it is.

    Returns:
        The model in evaluation mode, and what `merge` has to put into its config's JSON.

    Raises:
        UnsupportedModelError: no smaller model is built, and this one is too large to be tried.
    """
    whole = outline(config, trust_remote_code)
    rotation, why = _rotation(whole), f"it has more than {LARGEST:,} parameters"
    steps = ((),) if _size(whole) <= TINY else STEPS
    for groups in steps:
        try:
            changes = smaller(config, groups)
            small = with_changes(config, changes)
            if _size(drawn := outline(small, trust_remote_code)) > LARGEST:
                continue
            if _rotation(drawn) != rotation:
                why = "its rotation depends on its sizes"
                continue
            return _build(small, trust_remote_code), changes
        except Exception as error:
            why = short(error)
    raise UnsupportedModelError(
        f"{config.model_type}: no small model of this config can be made to prove an export with "
        f"({why}): use ctxext.patch at run time"
    )


def _build(config: Any, trust_remote_code: bool) -> Any:
    """The model with random weights; any exception where it does not run on a few tokens."""
    from transformers import AutoModelForCausalLM

    attn = settle(Source("", device="cpu"), config).attn
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attn, trust_remote_code=trust_remote_code, dtype=torch.float32
    ).eval()
    _randomise(model)
    with torch.no_grad():
        vocabulary = config.get_text_config().vocab_size
        ids = torch.arange(vocabulary // 3, vocabulary // 3 + 8)[None] % vocabulary  # not special
        logits = model(ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise ValueError("its logits are not finite")
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings, of models that are nobody's."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _randomise(model: Any) -> None:
    """Seeded weights: scores of a standard deviation of about GAIN², norms about their values."""
    seed = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, GAIN / math.sqrt(weight.shape[-1]), generator=seed)
            else:
                weight.add_(torch.empty_like(weight).uniform_(-0.3, 0.3, generator=seed))
        for module in model.modules():  # what some families set to 0 when they are loaded
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0


def _size(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _rotation(model: Any) -> set[tuple[Any, ...]]:
    """Every set of rotary frequencies that a model has, and its kinds of layers."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    sets = {
        (
            *(type(s.module).__name__, s.layer_type, s.scaling, s.factor),
            s.inv_freq.shape if s.inv_freq.is_meta else tuple(s.inv_freq.tolist()),
        )
        for s in find_frequency_sets(model)
    }
    return sets | {("layer", kind) for kind in kinds}
