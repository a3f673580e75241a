"""Short names of models that people use, with their Hub ids and trained lengths in tokens.

A trained length is the one that the model's config declares, its own rope scaling in force.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ctxext.errors import UsageError
from ctxext.models.gguf_header import is_gguf
from ctxext.models.packages import kept
from ctxext.text import did_you_mean

ASSETS = Path(__file__).parent / "shipped"
TINY = ASSETS / "tiny"
SHIPPED = ("tiny", "tiny-logn", "tiny-inv-leaky")


class Alias(NamedTuple):
    """A model's Hub id, its trained length in tokens, and whether its licence must be accepted."""

    hub_id: str
    trained: int
    gated: bool = False


ALIASES = {
    **dict.fromkeys(SHIPPED, Alias("shipped in the package", 512)),
    "apertus": Alias("swiss-ai/Apertus-8B-Instruct-2509", 65536),
    "deepseek": Alias("deepseek-ai/DeepSeek-V2-Lite", 163840),
    "deepseek-v3": Alias("deepseek-ai/DeepSeek-V3", 163840),
    "deepseek-v3.2": Alias("deepseek-ai/DeepSeek-V3.2", 163840),
    "ernie4.5": Alias("baidu/ERNIE-4.5-0.3B-PT", 131072),
    "falcon3": Alias("tiiuae/Falcon3-7B-Base", 32768),
    "gemma2": Alias("google/gemma-2-2b", 8192, gated=True),
    "gemma3": Alias("google/gemma-3-1b-pt", 32768, gated=True),
    "gemma3-270m": Alias("google/gemma-3-270m", 32768, gated=True),
    "gemma3-4b": Alias("google/gemma-3-4b-it", 131072, gated=True),
    "gemma3n": Alias("google/gemma-3n-E4B", 32768, gated=True),
    "gemma4": Alias("google/gemma-4-E2B-it", 131072),
    "glm4": Alias("zai-org/GLM-4-9B-0414", 32768),
    "glm4.5": Alias("zai-org/GLM-4.5-Air", 131072),
    "glm4.7": Alias("zai-org/GLM-4.7-Flash", 202752),
    "glm5": Alias("zai-org/GLM-5", 202752),
    "gpt-oss": Alias("openai/gpt-oss-20b", 131072),
    "granite": Alias("ibm-granite/granite-3.3-8b-base", 131072),
    "granite4": Alias("ibm-granite/granite-4.0-micro", 131072),
    "lfm2": Alias("LiquidAI/LFM2-1.2B", 128000),
    "llama": Alias("meta-llama/Llama-2-7b-hf", 4096, gated=True),
    "llama3": Alias("meta-llama/Meta-Llama-3-8B", 8192, gated=True),
    "llama3.1": Alias("meta-llama/Llama-3.1-8B", 131072, gated=True),
    "llama3.2": Alias("meta-llama/Llama-3.2-1B", 131072, gated=True),
    "llama3.3": Alias("meta-llama/Llama-3.3-70B-Instruct", 131072, gated=True),
    "llama4": Alias("meta-llama/Llama-4-Scout-17B-16E", 10485760, gated=True),
    "minimax-m2": Alias("MiniMaxAI/MiniMax-M2", 196608),
    "ministral3": Alias("mistralai/Ministral-3-8B-Base-2512", 262144),
    "mistral": Alias("mistralai/Mistral-7B-v0.3", 32768),
    "mixtral": Alias("mistralai/Mixtral-8x7B-v0.1", 32768),
    "olmo2": Alias("allenai/OLMo-2-1124-7B", 4096),
    "olmo3": Alias("allenai/Olmo-3-7B-Instruct", 65536),
    "phi3": Alias("microsoft/Phi-3.5-mini-instruct", 131072),
    "phi4": Alias("microsoft/phi-4", 16384),
    "phi4-mini": Alias("microsoft/Phi-4-mini-instruct", 131072),
    "pythia": Alias("EleutherAI/pythia-1.4b", 2048),
    "qwen2.5": Alias("Qwen/Qwen2.5-0.5B", 32768),
    "qwen3": Alias("Qwen/Qwen3-8B", 40960),
    "qwen3-0.6b": Alias("Qwen/Qwen3-0.6B", 40960),
    "qwen3-2507": Alias("Qwen/Qwen3-4B-Instruct-2507", 262144),
    "qwen3-moe": Alias("Qwen/Qwen3-30B-A3B", 40960),
    "qwen3-next": Alias("Qwen/Qwen3-Next-80B-A3B-Instruct", 262144),
    "qwen3.5": Alias("Qwen/Qwen3.5-4B", 262144),
    "seed-oss": Alias("ByteDance-Seed/Seed-OSS-36B-Instruct", 524288),
    "smollm2": Alias("HuggingFaceTB/SmolLM2-1.7B", 8192),
    "smollm2-135m": Alias("HuggingFaceTB/SmolLM2-135M-Instruct", 8192),
    "smollm3": Alias("HuggingFaceTB/SmolLM3-3B", 65536),
    "stablelm": Alias("stabilityai/stablelm-2-1_6b", 4096),
    "tinyllama": Alias("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 2048),
    "yi": Alias("01-ai/Yi-6B", 4096),
}


def taken(name: str) -> str | None:
    """What a model name was taken for where it could be another too, in a line; else None.

    An alias wins over a folder of its name; a name with a slash is a path where there is one, and
    else a Hub id, also the one that an alias stands for.
    """
    where = locate(name)
    try:
        folders = Path(name).is_dir(), Path(where).is_dir()
    except (OSError, ValueError):
        return None
    if name in SHIPPED and folders[0]:
        return f"model {name!r} is the shipped one, not the folder here: write ./{name} for that"
    if kept(name) is not None:
        return f"model {name!r} is the GGUF file that was fetched, {where}, not the Hub's"
    if name in ALIASES and name not in SHIPPED and folders[1]:
        return f"model {name!r} is the folder {where} here, not the Hub's"
    if name in ALIASES and folders[0]:
        return f"model {name!r} is {where} on the Hub, not the folder here: write ./{name} for that"
    if folders[0] and _is_hub_id(name):
        return f"model {name!r} is the folder here, not the Hub's: write ./{name} to be clear"
    return None


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part and part[0] not in ".-~" for part in parts)


def locate(name: str) -> str:
    """Where a model is by its name: the path of a folder or a GGUF file, or a Hub id.

    Args:
        name: an alias, a folder or GGUF file that exists, or a Hub id `organisation/name`; where
            it can be several of these, the first.

    Raises:
        UsageError: none of these; the message has the aliases.
    """
    if name in SHIPPED:
        return str(ASSETS / name)
    if name in ALIASES:
        fetched = kept(name)
        return ALIASES[name].hub_id if fetched is None else str(fetched)
    folder = Path(name)
    try:
        if name.strip() and folder.is_dir():
            return name
        if is_gguf(name):
            return name
        if folder.is_file():
            raise UsageError(
                f"model {name!r} is a file: give a .gguf file, or the folder that holds config.json"
            )
    except (OSError, ValueError):
        raise UsageError(f"model {name!r} is no usable path") from None
    if _is_hub_id(name):
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise UsageError(f"no model {name!r}: there is no such folder or .gguf file")
    raise UsageError(
        f"unknown model {name!r}: it is no folder, no Hub id such as Qwen/Qwen3-8B and none of the "
        f"aliases; {did_you_mean(name, ALIASES)}"
    )
