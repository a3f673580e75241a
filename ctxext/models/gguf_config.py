"""What a GGUF file's metadata say that transformers' loader leaves out, put into the config.

Of the rotation it takes the base alone, and that not of every architecture: a linear
factor, YaRN's and LongRoPE's parameters and a λ for each pair (`rope_freqs.weight`) are put into
the config here, as llama.cpp means them, and so is what else it leaves out and a config can say.
What a file says beside that is refused, since the model would be another one without it.
"""

from __future__ import annotations

import math
from typing import Any

from ctxext.errors import UsageError, short
from ctxext.models.gguf_header import LONG, PER_PAIR, SHORT, Header
from ctxext.models.trained import ORIGINAL

CLOSE = 1e-5  # relative: float32 metadata, computed in float32
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 8192}  # of all Llama 3.x

# Metadata of an architecture that the loader takes, that shapes of weights say again, or that says
# how the weights lie. `_scaling`, `_check_width` and `complete` read the rest of these.
_SHAPES = frozenset(
    {
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "tensor_data_layout",
        "use_parallel_residual",
        "shortconv.l_cache",
        "ssm.conv_kernel",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.time_step_rank",
    }
)
_ROTATION = frozenset(
    {
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)
_EPSILON = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
_EPSILONS = {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"}
_CONFIGS = {  # other metadata, and what configs call it
    **dict.fromkeys(_EPSILONS, _EPSILON),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
_PATTERN = "attention.sliding_window_pattern"
_NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count")
_BASE = 10000.0  # llama.cpp's, where a file has none
_SCALAR = "query_pre_attn_scalar"
_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the models that scale scores by hidden size


def check_header(header: Header) -> None:
    """UsageError where it lacks what a model needs, or says more layers than it has."""
    if lacking := [key for key in _NEEDED if header.number(key) is None]:
        raise UsageError(f"the GGUF file has no {lacking[0]}: download it anew")
    if header.blocks != (said := header.number("block_count")):
        raise UsageError(
            f"the GGUF file says {said} layers and has {header.blocks}: download it anew"
        )


def complete(config: Any, header: Header) -> dict[str, Any]:
    """Put what the file says of its rotation into the config that transformers made of it.

    Returns:
        The settings that a config.json would have for it.

    Raises:
        UsageError: it says what a config cannot.
    """
    text = config.get_text_config()
    size = header.number("attention.key_length")
    if size is not None and getattr(text, "head_dim", size) != size:
        text.head_dim = int(size)
    if header.files > 1:  # transformers has seen the tensors of one
        config.tie_word_embeddings = text.tie_word_embeddings = header.tied
    _set_others(header, text)
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, dict):  # it has no rotation
        return {}
    flat = "rope_theta" in rope
    _set_bases(header, {"full_attention": rope} if flat else rope)
    scaling = _scaling(header, rope.get("rope_theta"))
    if scaling is not None:
        if not flat:
            raise UsageError(f"a {text.model_type} GGUF file with a rope scaling is not understood")
        text.rope_parameters = {"rope_theta": rope["rope_theta"], **scaling}
    _check_width(header, text)
    return {"rope_parameters": text.rope_parameters}


def _set_others(header: Header, text: Any) -> None:
    """Put what is not of the rotation into the config; UsageError for what has no place in it."""
    for key, value in header.own.items():
        names = [name for name in _CONFIGS.get(key, ()) if hasattr(text, name)]
        if names:
            _set(text, names[0], key, header.number(key), header)
        elif key == _PATTERN:
            kinds = getattr(text, "layer_types", None) or []
            if value != [kind == "sliding_attention" for kind in kinds]:
                raise _left_out(key, value)
        elif key not in _SHAPES | _ROTATION and value:  # 0 and false are as if absent
            raise _left_out(key, value)
    if any(hasattr(text, name) for name in _EPSILON) and not _EPSILONS & header.own.keys():
        raise UsageError("the GGUF file has no epsilon of its norms: download it anew")
    if header.of("attention.head_count_kv") is None and hasattr(text, "num_key_value_heads"):
        raise UsageError(
            "the GGUF file has no attention.head_count_kv: take the model's own folder"
        )
    if hasattr(text, _SCALAR):
        heads, layers = text.num_attention_heads, text.num_hidden_layers
        largest = layers == _LARGEST.get(header.fields["general.architecture"])
        setattr(text, _SCALAR, text.hidden_size // heads if largest else text.head_dim)


def _set(text: Any, name: str, key: str, value: Any, header: Header) -> None:
    """One setting; UsageError for a window that the layers of a config are not made for."""
    had = getattr(text, name)
    if had == value or (not had and not value):
        return
    if name == "sliding_window" and "sliding_attention" not in getattr(text, "layer_types", [""]):
        if hasattr(text, "layer_types") and value < header.of("context_length"):
            raise _left_out(key, value)
        if hasattr(text, "layer_types"):
            return
    setattr(text, name, value)


def _set_bases(header: Header, rope: dict[str, Any]) -> None:
    """The bases: one, or one for each type of layer."""
    for kind, key in (("full_attention", "freq_base"), ("sliding_attention", "freq_base_swa")):
        if isinstance(settings := rope.get(kind), dict):
            settings["rope_theta"] = float(header.number(f"rope.{key}") or _BASE)


def _left_out(key: str, value: Any) -> UsageError:
    return UsageError(
        f"the GGUF file says {key} = {short(value, 60)}, which transformers would leave out: take "
        "the model's own folder"
    )


def _scaling(header: Header, base: Any) -> dict[str, Any] | None:
    """The rope parameters of a scaling, or None where the file has none."""
    context = header.number("context_length")
    assert context is not None
    factor = header.number("rope.scaling.factor") or header.number("rope.scale_linear")
    kind = header.of("rope.scaling.type") or ("linear" if factor else "none")
    factors = header.factors
    original = header.number("rope.scaling.original_context_length") or context
    carried = float(header.number("rope.scaling.attn_factor") or 1)
    if header.fields["general.architecture"] == "gpt-oss":  # whose scaling transformers reads
        return None
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UsageError(f"the GGUF file's rope scaling {kind!r} is not understood")
    if SHORT in factors and LONG in factors:
        lists: dict[str, Any] = {"short_factor": [*factors[SHORT]], "long_factor": [*factors[LONG]]}
        lists["attention_factor"] = carried  # llama.cpp computes none from the lengths
        return {"rope_type": "longrope", ORIGINAL: int(original), **lists}
    if PER_PAIR in factors and kind == "none":
        return _per_pair(factors[PER_PAIR], float(base), int(context), carried)
    if factors or kind == "longrope" or (carried != 1 and kind != "yarn"):
        raise UsageError(f"the GGUF file mixes rope scalings ({kind}) that no config says together")
    if kind == "none" or factor is None or factor == 1:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    carried *= 0.1 * math.log(factor) + 1
    ends = {name: header.number(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    given = {name: float(end) for name, end in ends.items() if end is not None}
    yarn = {"factor": float(factor), ORIGINAL: int(original), "attention_factor": carried, **given}
    return {"rope_type": "yarn", **yarn}


def _per_pair(
    scales: tuple[float, ...], base: float, context: int, carried: float
) -> dict[str, Any]:
    """A λ for each pair: Llama 3's, which goes by three numbers, or any, as LongRoPE lists them."""
    low, high = (_LLAMA3[ORIGINAL] / _LLAMA3[f"{end}_freq_factor"] for end in ("low", "high"))
    factor = max(scales)

    def llama3(i: int) -> float:
        wave = 2 * math.pi * base ** (i / len(scales))
        if wave < high:
            return 1.0
        if wave > low:
            return factor
        smooth = (_LLAMA3[ORIGINAL] / wave - 1.0) / 3.0
        return float(1 / ((1 - smooth) / factor + smooth))

    if carried == 1 and all(
        math.isclose(x, llama3(i), rel_tol=CLOSE) for i, x in enumerate(scales)
    ):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    lists = {key: [*scales] for key in ("short_factor", "long_factor")}
    return {"rope_type": "longrope", ORIGINAL: context, "attention_factor": carried, **lists}


def _check_width(header: Header, text: Any) -> None:
    """UsageError where the config turns more dimensions of a head than the file says."""
    said = header.number("rope.dimension_count")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shares = [text.rope_parameters.get("partial_rotary_factor")]
    turned = int(head * (shares[0] or 1))
    if said is not None and int(said) != turned:
        raise UsageError(
            f"the GGUF file turns {said} of {head} dimensions of a head, and transformers would "
            f"turn {turned}: take the model's own folder"
        )
