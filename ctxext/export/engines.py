"""What each engine can take of a spec, from a config alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ctxext.errors import CtxextError, UnsupportedModelError, short
from ctxext.export import gguf_rope
from ctxext.export.fitted import fit
from ctxext.export.gguf import expression_of
from ctxext.export.native import is_latent, overrides, reads_alike, write_native
from ctxext.methods import Spec
from ctxext.models.small import quiet

ENGINES = ("transformers", "vLLM", "SGLang", "llama.cpp")
CODE = "code of its own"  # which an exported folder carries
_ATTENTION = "attention of its own"


class Support(NamedTuple):
    """Whether an engine takes a spec, and how or why not, in a few words."""

    takes: bool
    how: str


@dataclass(frozen=True)
class Expressed:
    """A spec on a model, as engines are told it.

    Attributes:
        spec: resolved where the model takes it.
        support: of each of ENGINES.
        overrides: what changes in a config, where one says the spec.
        options: of llama.cpp's programs, for a file of the model as it is; None where none say it.
        file: whether a GGUF file can be written that says it.
    """

    spec: Spec
    support: dict[str, Support]
    overrides: dict[str, Any] = field(default_factory=dict)
    options: list[str] | None = None
    file: bool = False


def express(
    config: Any,
    small: Any,
    spec: Spec,
    length: int,
    *,
    train_len: int | None = None,
    own_scaling: str = "keep",
    trust_remote_code: bool = False,
) -> Expressed:
    """What each engine can take of a spec.

    Args:
        config: the model's.
        small: a small model of that config (`small_model`).
        length: L in tokens.
    """
    try:
        fitted = fit(small, spec, length, train_len, own_scaling)
    except CtxextError as error:
        return Expressed(spec, dict.fromkeys(ENGINES, Support(False, short(error, 200))))
    resolved, kind = fitted.longest, config.model_type
    raw = json.loads(config.to_json_string(use_diff=False))
    try:
        with TemporaryDirectory(prefix="ctxext-") as box, quiet():
            name = write_native(
                Path(box),
                raw,
                config,
                fitted.anatomy,
                fitted.spec,
                length,
                trust_remote_code=trust_remote_code,
            )
            edited = json.loads((Path(box) / "config.json").read_text())
    except CtxextError as error:
        alone = _ATTENTION if spec.changes_attention else short(error, 200)
        others = dict.fromkeys(ENGINES[1:], Support(False, alone))
        return Expressed(resolved, {ENGINES[0]: Support(True, CODE), **others})
    served = Support(True, name)
    if not reads_alike(name, is_latent(config)):
        served = Support(False, f"it reads {name} otherwise in latent attention")
    support = {ENGINES[0]: Support(True, name), **dict.fromkeys(ENGINES[1:3], served)}
    changed = overrides(raw, edited)
    try:
        freqs = fitted.only_axis(kind)
        context = max(length, fitted.trained.tokens)
        architecture, rotation, expression = expression_of(config, fitted.spec, freqs, context)
    except UnsupportedModelError as error:
        support[ENGINES[3]] = Support(False, short(error, 200))
        return Expressed(resolved, support, changed)
    options = None if freqs.scaled else gguf_rope.options(rotation, freqs.facts)
    if options is not None and length > fitted.trained.tokens:  # to which its server would cut it
        options += ["--override-kv", f"{architecture}.context_length=int:{length}"]
    support[ENGINES[3]] = Support(True, expression.name)
    return Expressed(resolved, support, changed, options, file=True)
