"""Short names of models that people use, with their Hub ids and trained lengths in tokens."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ctxext.errors import UsageError
from ctxext.registry import did_you_mean

ASSETS = Path(__file__).parent.parent / "assets"
TINY = ASSETS / "tiny"
SHIPPED = ("tiny", "tiny-logn", "tiny-inv-leaky")


class Alias(NamedTuple):
    """A model's Hub id, its trained length in tokens, and whether its licence must be accepted."""

    hub_id: str
    trained: int
    gated: bool = False


ALIASES = {
    **dict.fromkeys(SHIPPED, Alias("shipped in the package", 512)),
    "deepseek": Alias("deepseek-ai/DeepSeek-V2-Lite", 4096),
    "falcon3": Alias("tiiuae/Falcon3-7B-Base", 32768),
    "gemma2": Alias("google/gemma-2-2b", 8192, gated=True),
    "gemma3": Alias("google/gemma-3-1b-pt", 32768, gated=True),
    "glm4": Alias("zai-org/GLM-4-9B-0414", 32768),
    "gpt-oss": Alias("openai/gpt-oss-20b", 4096),
    "granite": Alias("ibm-granite/granite-3.3-8b-base", 131072),
    "llama": Alias("meta-llama/Llama-2-7b-hf", 4096, gated=True),
    "llama3": Alias("meta-llama/Meta-Llama-3-8B", 8192, gated=True),
    "llama3.1": Alias("meta-llama/Llama-3.1-8B", 8192, gated=True),
    "llama3.2": Alias("meta-llama/Llama-3.2-1B", 8192, gated=True),
    "mistral": Alias("mistralai/Mistral-7B-v0.3", 32768),
    "mixtral": Alias("mistralai/Mixtral-8x7B-v0.1", 32768),
    "olmo2": Alias("allenai/OLMo-2-1124-7B", 4096),
    "phi3": Alias("microsoft/Phi-3.5-mini-instruct", 4096),
    "phi4": Alias("microsoft/phi-4", 16384),
    "pythia": Alias("EleutherAI/pythia-1.4b", 2048),
    "qwen2.5": Alias("Qwen/Qwen2.5-0.5B", 32768),
    "qwen3": Alias("Qwen/Qwen3-8B", 40960),
    "smollm2": Alias("HuggingFaceTB/SmolLM2-1.7B", 8192),
    "smollm3": Alias("HuggingFaceTB/SmolLM3-3B", 65536),
    "stablelm": Alias("stabilityai/stablelm-2-1_6b", 4096),
    "tinyllama": Alias("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 2048),
    "yi": Alias("01-ai/Yi-6B", 4096),
}


def locate(name: str) -> str:
    """What `from_pretrained` takes for a model name: a folder's path or a Hub id.

    Args:
        name: an alias, a folder that exists, or a Hub id `organisation/name`.

    Raises:
        UsageError: none of these; the message has the aliases.
    """
    if name in SHIPPED:
        return str(ASSETS / name)
    if name in ALIASES:
        return ALIASES[name].hub_id
    folder = Path(name)
    try:
        if name.strip() and folder.is_dir():
            return name
        if folder.is_file():
            raise UsageError(f"model {name!r} is a file: give the folder that holds config.json")
    except (OSError, ValueError):
        raise UsageError(f"model {name!r} is no usable path") from None
    parts = name.split("/")
    if len(parts) == 2 and all(part and part[0] not in ".-~" for part in parts):
        return name
    raise UsageError(
        f"unknown model {name!r}: it is no folder, no Hub id such as Qwen/Qwen3-8B and none of the "
        f"aliases; {did_you_mean(name, ALIASES)}"
    )
