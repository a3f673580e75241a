"""What a model folder is made of: the one place for the names of its files."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError

MAX_CONFIG_BYTES = 2**24
MAX_INDEX_BYTES = 2**26  # the largest models have some 100,000 weights, 100 bytes each
CONFIG, ADAPTER = "config.json", "adapter_config.json"
TOKENIZER = ("tokenizer_config.json", "tokenizer.json")  # one of which a tokenizer has
SAFETENSORS, PICKLES = "model.safetensors", "pytorch_model.bin"
WEIGHTS = (SAFETENSORS, PICKLES)  # what transformers looks for, in its order
CODE = "*.py"
TEMPLATES = "additional_chat_templates"  # a folder of *.jinja
# Lower case: the tokenizer's files, generation config, chat template, licence and notice …
SUPPORT = (
    *("*.json", "*.txt", "*.jinja", "*.model", "*.model.v*", "*.spm", "*.tiktoken", "*.bpe"),
    *("license*", "licence*", "notice*", "use_policy*"),
)
# … but for what an export writes itself, an adapter's and Mistral's own config, and what is left of
# training.
LEFT_OUT = (
    *("config.json", ADAPTER, "readme*", "*.index.json", "params.json"),
    *("trainer_state.json", "training_args*", "*_results.json", "optimizer*", "scheduler*"),
)


def is_support(name: str) -> bool:
    """Whether a file in the model folder itself goes with the model, whatever holds the weights."""
    low = name.lower()
    return any(fnmatchcase(low, p) for p in SUPPORT) and not any(
        fnmatchcase(low, p) for p in LEFT_OUT
    )


def support_patterns(code: bool) -> tuple[list[str], list[str]]:
    """The same for the Hub's client, whose patterns know upper case, and whose * matches a slash.

    Returns:
        What to fetch, with the configs of a model and an adapter and the indexes of weights; and
        what of that not to fetch.
    """
    own = [*map(_any_case, SUPPORT), *([CODE] if code else [])]
    needed = [CONFIG, ADAPTER, *map(index_name, WEIGHTS)]
    deep = [f"*/{pattern}" for pattern in own if pattern != _any_case("*.jinja")]
    unwanted = [_any_case(p) for p in LEFT_OUT if not any(fnmatchcase(n, p) for n in needed)]
    return needed + own, deep + unwanted


def _any_case(pattern: str) -> str:
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in pattern)


def index_name(weights: str) -> str:
    return f"{weights}.index.json"


def read_object(path: Path, limit: int, what: str) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes; UsageError where there is none."""
    try:
        if path.stat().st_size > limit:
            raise UsageError(f"{str(path)!r} is too large for {what}: is it the right file?")
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} is no readable JSON ({error})") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{str(path)!r} holds a {type(raw).__name__}, not an object of settings")
    return raw


def to_config(config_class: Any, settings: dict[str, Any]) -> Any:
    """The config that these settings of a config.json make, which are left as they are."""
    return config_class.from_dict(_numbers(settings))


def _numbers(value: Any) -> Any:
    """A copy of what JSON holds, with the infinities that transformers writes as objects."""
    if isinstance(value, dict):
        said = value.get("__float__")
        if len(value) == 1 and isinstance(said, str):
            return float(said)
        return {key: _numbers(part) for key, part in value.items()}
    return [_numbers(part) for part in value] if isinstance(value, list) else value


def shard_names(index: Path) -> list[str]:
    """The weight files that an index names, sorted: plain names, all of the index's own format."""
    names = read_object(index, MAX_INDEX_BYTES, "an index of weights").get("weight_map")
    shards = list(names.values()) if isinstance(names, dict) else []
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    if not shards or not all(isinstance(name, str) for name in shards):
        raise UsageError(f"{str(index)!r} is no index of weights: download it anew")
    for name in sorted(set(shards)):
        plain = name.isprintable() and not name.startswith(".") and not set(name) & set("/\\:")
        if not plain or not name.endswith(suffix):
            raise UsageError(
                f"{str(index)!r} names the weight file {name[:100]!r}: it must be the name of a "
                f"{suffix} file in the same folder"
            )
    return sorted(set(shards))
