"""The model card of an export: what it is, how to load it, and what was found of it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxext import __version__
from ctxext.export.native import reads_alike
from ctxext.export.proof import Proof
from ctxext.methods import Spec

CARD = "README.md"
LONGEST_FRONT = 2**18  # characters of the source's card that are read
LONGEST = 200  # characters of a value in it, and values in a list
KEPT = (
    "license",
    "license_name",
    "license_link",
    "language",
    "base_model",
)  # of the source's own metadata
_FRONT = re.compile(r"\s*---\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        name: what the user calls the model: a Hub id, an alias, or a folder's name.
        hub_id: where on the Hub it was fetched from; None for a folder of the user's.
        source: its folder.
        spec: resolved, with all parameters.
        length: L in tokens.
        trained: T in tokens.
        expression: how the export says the spec.
        carried: whether the folder has its own code.
        weights: whether the weights are in it.
        latent: whether attention is latent (MLA), whose rotation vLLM and SGLang read otherwise.
        gguf: the name of the GGUF file, where it is one.
        proof: what a fresh process found; None for GGUF.
        notes: what a user should know about this model with this method, a line each.
        overrides: what engines that load the source are told in its place, of a config.
    """

    name: str
    hub_id: str | None
    source: Path
    spec: Spec
    length: int
    trained: int
    expression: str
    carried: bool
    weights: bool
    latent: bool
    gguf: str | None
    proof: Proof | None
    notes: tuple[str, ...]
    overrides: dict[str, Any] = field(default_factory=dict)


def write_card(stage: Path, facts: Facts) -> None:
    """Write README.md into the stage."""
    (stage / CARD).write_text(_front(facts) + _body(facts), encoding="utf-8")


def _front(facts: Facts) -> str:
    """The Hub's metadata."""
    from huggingface_hub import ModelCardData

    names = [method.name for method in facts.spec.methods]
    known = source_metadata(facts.source)
    base = known.pop("base_model", None)
    data = ModelCardData(
        base_model=facts.hub_id or base,
        library_name="transformers" if facts.gguf is None else "gguf",
        pipeline_tag="text-generation",
        tags=["ctxext", "long-context", *dict.fromkeys(names)],
        **known,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def source_metadata(source: Path) -> dict[str, Any]:
    """What the source's own card names of licence, languages and base, if short and plain.

    The card is not trusted: it may be of any size and of any content.
    """
    import yaml

    try:
        with (source / CARD).open(encoding="utf-8") as file:
            front = _FRONT.match(file.read(LONGEST_FRONT))
        given = dict(yaml.safe_load(front[1])) if front else {}
    except Exception:  # no card, or none that can be read: nothing is known
        return {}
    found = {key: given.get(key) for key in KEPT}
    lists = {k: list(filter(_is_short, v[:LONGEST])) for k, v in found.items() if type(v) is list}
    kept = {k: v for k, v in (found | lists).items() if _is_short(v) or lists.get(k)}
    if not _HUB_ID.fullmatch(str(kept.get("base_model"))):
        kept.pop("base_model", None)
    return kept


def _is_short(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable()


def _body(facts: Facts) -> str:
    name = plain(facts.hub_id or facts.name)
    spec = facts.spec.full()
    parts = [
        f"\n# {name}, {spec}, {facts.length} tokens\n",
        f"{name} was trained at {facts.trained} tokens. This is the same model with `{spec}`, to "
        f"read {facts.length}: the weights are the same, {_where(facts)}. Nothing was trained.\n",
        *(f"- {plain(note)}\n" for note in facts.notes),
        *(_method(method.describe(), method.full()) for method in facts.spec.methods),
        "## Load it\n",
        *_loading(facts),
        *_proof(facts),
        f"\nMade with ctxext {__version__}.\n",
    ]
    return "\n".join(parts)


def _where(facts: Facts) -> str:
    if facts.carried:
        return "and the method is in code that comes with them"
    return f"and the method is in the metadata ({facts.expression})"


def _method(about: dict[str, str], spec: str) -> str:
    rows = [
        ("parameters", f"`{spec}`"),
        ("formula", plain(about.get("formula", ""))),
        ("source", plain(about.get("source", ""))),
        ("inside the trained length T", plain(about.get("inside_t", ""))),
        ("beyond it", plain(about.get("beyond_t", ""))),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows if value)
    return f"## {about['name']}\n\n{plain(about['summary'])}\n\n| | |\n|---|---|\n{table}\n"


def _loading(facts: Facts) -> list[str]:
    """How to load the folder in each engine that can."""
    if facts.gguf is not None:
        return [
            f"```\nllama-server -m {facts.gguf} -c {facts.length}\n```\n",
            "Ollama's Modelfile:\n",
            f"```\nFROM ./{facts.gguf}\nPARAMETER num_ctx {facts.length}\n```\n",
        ]
    trust = ", trust_remote_code=True" if facts.carried else ""
    where = facts.hub_id or "BASE_MODEL"
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if facts.weights:
        lines += [f'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER"{trust})']
    else:
        lines[0] = "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer"
        lines += [
            'config = AutoConfig.from_pretrained("THIS_FOLDER")',
            f'model = AutoModelForCausalLM.from_pretrained("{where}", config=config)',
        ]
    lines += ['tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")']
    blocks = ["```python\n" + "\n".join(lines) + "\n```\n"]
    if facts.carried:
        blocks.append(
            "It needs `AutoModelForCausalLM` with `trust_remote_code=True`, transformers 5.17 or "
            "newer, torch 2.11 or newer, and nothing else; choose a `dtype` in that call. A stock "
            "class, such as `LlamaForCausalLM`, would load the model without the method. "
            "vLLM, SGLang and llama.cpp run attention of their own and cannot load it.\n"
        )
    elif not reads_alike(facts.expression, facts.latent):
        blocks.append(
            f"vLLM and SGLang read `{facts.expression}` otherwise in models with latent attention: "
            "load it with transformers.\n"
        )
    elif facts.weights:
        blocks.append(
            "```\nvllm serve THIS_FOLDER --max-model-len "
            f"{facts.length}\npython -m sglang.launch_server --model-path THIS_FOLDER "
            f"--context-length {facts.length}\n```\n"
        )
    else:
        blocks.append(
            f"```\nvllm serve {where} --hf-config-path THIS_FOLDER --max-model-len "
            f"{facts.length}\n```\n"
        )
    if facts.overrides and not facts.carried and reads_alike(facts.expression, facts.latent):
        told = shlex.quote(json.dumps(facts.overrides))
        blocks.append(
            "Without this folder, from the model as it is:\n\n"
            f"```\nvllm serve {where} --hf-overrides {told} --max-model-len {facts.length}\n"
            f"python -m sglang.launch_server --model-path {where} --json-model-override-args "
            f"{told} --context-length {facts.length}\n```\n"
        )
    return blocks


def _proof(facts: Facts) -> list[str]:
    """What a fresh process found."""
    proof = facts.proof
    if proof is None:
        return []
    rows = "\n".join(f"| {' | '.join(map(plain, row))} |" for row in proof.rows())
    moved = (
        ""
        if proof.moved is None
        else f" The method itself moves these logits by {proof.moved:.2g} of the largest."
    )
    return [
        "## Checked\n",
        "When this was written, a process that could not import ctxext loaded it, with "
        f"{plain(proof.loaded)}, and compared it with the patched model ({plain(proof.versions)})."
        f"{moved}\n",
        f"| what | off by at most | allowed |\n|---|---:|---:|\n{rows}\n",
        *(f"- {plain(note)}\n" for note in proof.notes),
    ]


def plain(text: str) -> str:
    """One line of text that Markdown and HTML show as it is."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", line)
