"""Configs of stock transformers that carry a spec, to the last bit of every frequency."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.engine.anatomy import Anatomy
from ctxext.engine.stock import StockRope, numbers, stock_ropes
from ctxext.errors import UnsupportedModelError
from ctxext.export.check import one_line
from ctxext.methods import Spec
from ctxext.models.contents import to_config
from ctxext.models.frequency_sets import FrequencySet, Rope, find_frequency_sets
from ctxext.models.layout import head_dim, layer_configs
from ctxext.models.outline import outline
from ctxext.models.trained import ORIGINAL

OLD_KEYS = ("rope_theta", "rotary_emb_base", "rope_scaling")  # of transformers 4
Ropes = dict[str | None, Rope]  # by layer type, None where a model has but one


def write_native(
    stage: Path,
    raw: dict[str, Any],
    config: Any,
    anatomy: Anatomy,
    spec: Spec,
    length: int,
    *,
    trust_remote_code: bool = False,
) -> str:
    """Write the first config.json that gives the patched model's frequencies; what it changes.

    Args:
        raw: the source's config.json, of which nothing else is changed.
        config: what transformers made of it.
        anatomy: of a model of this config under the resolved spec.
        length: L in tokens, the new `max_position_embeddings` unless T is longer.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        UnsupportedModelError: no stock config does, the spec changes attention itself, or it
            goes by the length of each sequence or the layer.
    """
    kind = config.model_type
    if spec.changes_attention:
        raise UnsupportedModelError(f"{spec} changes attention itself, which no config can say")
    if at_hand := ", ".join(spec.at_hand):
        raise UnsupportedModelError(
            f"{at_hand} goes by the length of each sequence, which no config can say"
        )
    if by_layer := ", ".join(spec.by_layer):
        raise UnsupportedModelError(
            f"{by_layer} has a factor for each layer, which no config can say"
        )
    if anatomy.alone:
        raise UnsupportedModelError(
            f"{kind} has layers that see no further back than the trained length and are rotated "
            "by the same frequencies as the others, and a config cannot change these apart"
        )
    longest = max(length, *(freqs.trained for freqs in anatomy.axes), 0)
    whole = outline(config, trust_remote_code)
    why = "transformers has no rope parameters for it"
    for name, ropes, expected in _choices(anatomy, spec, longest):
        before = _constants(whole) | _replaced(whole, anatomy, ropes)
        for edited in _edits(raw, config, ropes, longest):
            (stage / "config.json").write_text(json.dumps(edited, indent=2) + "\n")
            try:
                written = type(config).from_pretrained(stage)  # no code runs from `stage`
                written.name_or_path = config.name_or_path
                model = outline(written, trust_remote_code)
                if _constants(model) != before:
                    raise ValueError("it would change more than the rotary module")
                for some in (model, _without_old_keys(edited, config, trust_remote_code)):
                    _check_frequencies(some, expected, longest if ropes else 0)
                return name
            except Exception as error:
                why = one_line(error)
    raise UnsupportedModelError(f"the config of a {kind} model cannot express {spec}: {why}")


def overrides(raw: dict[str, Any], edited: dict[str, Any]) -> dict[str, Any]:
    """What of an edited config.json engines have to be told that load the source's own.

    Rope parameters are told by their newer name alone, whole; of a nested config what changes.
    """
    found: dict[str, Any] = {}
    for key, value in edited.items():
        if key in OLD_KEYS or (key in raw and raw[key] == value):
            continue
        nested = key == "text_config" and isinstance(raw.get(key), dict)
        found[key] = overrides(raw[key], value) if nested else value
    return found


def reads_alike(expression: str, latent: bool) -> bool:
    """Whether vLLM and SGLang read an expression as transformers does.

    Args:
        latent: whether attention is latent (MLA).
    """
    return not (latent and expression in ("linear", "longrope"))


def is_latent(config: Any) -> bool:
    """Whether a model's attention is latent (MLA)."""
    return hasattr(config.get_text_config(), "kv_lora_rank")


def _choices(
    anatomy: Anatomy, spec: Spec, longest: int
) -> Iterator[tuple[str, Ropes, list[tuple[str | None, Tensor, float]]]]:
    """What to change, best first: a name for it, the rope parameters and what they must give."""
    changed = anatomy.changed if spec.frequencies else []
    others = [
        freqs
        for freqs in anatomy.axes
        if freqs not in changed and (freqs.by_length or (freqs.replaced and not spec.unpatched))
    ]
    if not (changed or others):
        yield "unchanged", {}, _as_they_are(anatomy, [])
        return
    each = [list(stock_ropes(freqs, spec, longest)) for freqs in changed]
    each += [list(stock_ropes(freqs, Spec(()), longest)) for freqs in others]
    kinds = [freqs.layer_type for freqs in (*changed, *others)]
    if len(set(kinds)) < len(kinds):
        return  # several modules of one kind: no config tells them apart
    for rank in range(max(map(len, each)) if all(each) else 0):
        chosen: list[StockRope] = [found[min(rank, len(found) - 1)] for found in each]
        pairs = [(rope, found[0]) for rope, found in zip(chosen, each, strict=True)]
        if not all(torch.equal(rope.inv_freq, on.inv_freq) for rope, on in pairs):
            continue  # by a bit it is not what a patch puts on
        expected = _as_they_are(anatomy, [*changed, *others])
        for kind, rope in zip(kinds, chosen, strict=True):
            expected.append((kind, rope.inv_freq, rope.factor))
        ropes = {kind: rope.rope for kind, rope in zip(kinds, chosen, strict=True)}
        yield " and ".join(dict.fromkeys(rope.name for rope in chosen)), ropes, expected


def _replaced(whole: Any, anatomy: Anatomy, ropes: Ropes) -> dict[str, Any]:
    """The numbers beside the rotary modules that change where the own scaling is taken off."""
    kinds = {freqs.layer_type for freqs in anatomy.axes if freqs.replaced}
    changed = {
        freqs: ropes[freqs.layer_type]
        for freqs in find_frequency_sets(whole)
        if freqs.layer_type in kinds and freqs.layer_type in ropes
    }
    found = numbers(whole, changed) if changed else {}
    return {f"{name}.{key}": value for (name, key), value in found.items() if "scal" in key}


def _as_they_are(
    anatomy: Anatomy, changed: Sequence[FrequencySet]
) -> list[tuple[str | None, Tensor, float]]:
    left = [freqs for freqs in anatomy.axes if freqs not in changed]
    return [(s.layer_type, s.inv_freq.float().cpu(), s.factor) for s in left]


def _edits(
    raw: dict[str, Any], config: Any, ropes: Ropes, longest: int
) -> Iterator[dict[str, Any]]:
    """The config's JSON with these rope parameters, for transformers 5 and, if it can be, 4."""
    text = config.get_text_config()
    nested = text is not config
    if nested and not isinstance(raw.get("text_config"), dict):
        raise UnsupportedModelError(f"{config.model_type} nests the config of its language model")
    part = raw["text_config"] if nested else raw
    key = (text.attribute_map or {}).get("max_position_embeddings", "max_position_embeddings")
    if ropes:
        _refuse_readers(text)
        single = len(ropes) == 1 and None in ropes
        parameters = ropes[None] if single else {**text.rope_parameters, **ropes}
        new = {**part, key: longest, "rope_parameters": parameters}
        if all(getattr(layer, "head_dim", 0) is None for layer in layer_configs(text)):
            new["head_dim"] = head_dim(text)  # which transformers' yarn and longrope read
        main = ropes.get(None) or ropes.get("full_attention") or {}
        if ORIGINAL in main and hasattr(text, ORIGINAL):  # it has priority over rope_parameters
            new[ORIGINAL] = main[ORIGINAL]
        edits = [{**new, **_old(part, main)}, {k: v for k, v in new.items() if k not in OLD_KEYS}]
    else:  # a scaling of its own may depend on the length: leave that alone
        own = (text.rope_parameters or {}).get("rope_type", "default") == "default"
        edits = [{**part, key: max(longest, getattr(text, key, None) or 0)} if own else part]
    for edit in edits:
        yield {**raw, "text_config": edit} if nested else edit


def _old(part: dict[str, Any], rope: Rope) -> dict[str, Any]:
    """What engines that stand on transformers 4 read instead of `rope_parameters`."""
    names = {"rope_theta", *(name for name in OLD_KEYS[:2] if name in part)}
    scaled = rope.get("rope_type", "default") != "default"
    return {
        **dict.fromkeys(names, rope.get("rope_theta")),
        "rope_scaling": rope if scaled else None,
    }


def _refuse_readers(text: Any) -> None:
    """UnsupportedModelError where a model reads its rope parameters outside the rotary module."""
    special = set(text.ignore_keys_at_rope_validation or ()) - {"partial_rotary_factor"}
    special &= set(text.rope_parameters or {})
    if special:
        raise UnsupportedModelError(
            f"{text.model_type} reads {', '.join(sorted(special))} of its rope parameters outside "
            "the rotary module"
        )


def _without_old_keys(edited: dict[str, Any], config: Any, trust_remote_code: bool) -> Any:
    """The model by `rope_parameters` alone: transformers 5 reads older keys first."""
    parts = {k: _plain(v) for k, v in edited.items() if k == "text_config"}
    written = to_config(type(config), {**_plain(edited), **parts})
    written.name_or_path = config.name_or_path
    return outline(written, trust_remote_code)


def _plain(part: dict[str, Any]) -> dict[str, Any]:
    if "rope_parameters" not in part:
        return part
    return {k: v for k, v in part.items() if k not in OLD_KEYS}


def _check_frequencies(
    model: Any, expected: list[tuple[str | None, Tensor, float]], longest: int
) -> None:
    """ValueError, unless a model has these frequencies and factors, bit for bit."""
    if model.config.get_text_config().max_position_embeddings < longest:
        raise ValueError("its max_position_embeddings is not read")
    found = {freqs.layer_type: freqs for freqs in find_frequency_sets(model)}
    for kind, inv_freq, factor in expected:
        freqs = found[kind]
        if not torch.equal(freqs.inv_freq, inv_freq) or freqs.factor != factor:
            raise ValueError("its frequencies are not those of the patched model")


def _constants(model: Any) -> dict[str, Any]:
    """The shapes of all weights, and the numbers by which modules scale."""
    scales = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "scal" in key and isinstance(value, int | float) and not _rotates(module)
    }
    return {**{name: tuple(w.shape) for name, w in model.state_dict().items()}, **scales}


def _rotates(module: nn.Module) -> bool:
    return any(name.endswith("inv_freq") for name in module._buffers)
