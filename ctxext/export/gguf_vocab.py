"""A Hugging Face tokenizer as a GGUF vocabulary, where llama.cpp has one that splits alike.

llama.cpp knows two kinds that matter here. `gpt2` is byte-level BPE; how text is cut before
merging has a name, and only structures that are known to be that cut are taken. `llama` is
SentencePiece: of all adjacent pieces whose concatenation is a piece, the best scored merges first;
this equals BPE with merges where every way to build a piece is a merge and a piece's merges stand
together, which is checked. llama.cpp normalizes no text: a tokenizer that brings text into NFC is
taken all the same, and gives the same tokens for text that is in NFC already. `llama` puts a space
before any text, as SentencePiece does; `Metaspace`, by which transformers 5 reads SentencePiece
models, leaves it out before text that starts with a space and, where it is told so, after special
tokens: there llama.cpp gives what the model was trained with.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxext.errors import UnsupportedModelError, UsageError, short
from ctxext.models.loading import Source, load_tokenizer

SPACE = "▁"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
# The cuts by what the tokenizer does in turn, and llama.cpp's names for them: the second one is
# for tokenizers that take a whole word that is a token as it is (`ignore_merges`).
CUTS: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    ("gpt2 bytes",): ("gpt-2", None),
    ("digits", "gpt2 bytes"): ("smollm", None),
    (f"split {_HEAD}\\p{{N}}{{1,3}}|{_TAIL}", "bytes"): ("smaug-bpe", "llama-bpe"),
    (f"split {_HEAD}\\p{{N}}|{_TAIL}", "bytes"): ("qwen2", None),
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's token types


@dataclass
class Vocabulary:
    """What GGUF's `tokenizer.ggml` keys hold; `ids` are the special tokens' by llama.cpp's name."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool = False
    template: Any = None

    def add_to(self, writer: Any) -> None:
        """Write it."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_token_scores(self.scores)
        for name, token in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.space_prefix)
        if self.template:
            writer.add_chat_template(self.template)


def read_vocabulary(source: Path, config: Any) -> Vocabulary:
    """The vocabulary of a model folder's tokenizer, as many tokens as the model has embeddings.

    Raises:
        UsageError: no tokenizer, or one that transformers cannot load.
        UnsupportedModelError: llama.cpp has nothing that tokenizes alike; the message says what.
    """
    with _refusing("load"):
        tokenizer = load_tokenizer(Source(os.path.realpath(source)))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(f"{type(tokenizer).__name__} is written in Python, not in `tokenizers`")
    parts = json.loads(backend.to_str())
    model = parts["model"]
    model["vocab"] = backend.get_vocab(with_added_tokens=False)  # ids twice too
    if model["type"] != "BPE":
        raise _refused(f"its model is {model['type']}, not BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refused(f"its BPE model has {key} {model[key]!r}")
    tokens, types = _tokens(parts, config.vocab_size)
    if model["byte_fallback"]:
        found = Vocabulary("llama", "default", tokens, types, space_prefix=_prefixes_space(parts))
        found.scores = _scores(model, tokens, types)
    else:
        found = Vocabulary("gpt2", _cut(parts), tokens, types)
        found.merges = list(_merges(model))
        if not found.merges:
            raise _refused("its BPE model has no merges")
    _add_special(found, tokenizer, config)
    return found


def _refused(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the tokenizer cannot be expressed in GGUF: {short(why, 400)}; export with --format hf"
    )


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """A refusal for any failure in there, of the library's Rust too, which is no Exception."""
    try:
        yield
    except UsageError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _refused(f"it cannot {what} ({type(error).__name__}: {error})") from error


def _tokens(parts: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text and type of every token; ids that have none are named and marked unused."""
    model = parts["model"]
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)} if model["byte_fallback"] else set()
    if bytes_ - set(model["vocab"]):
        raise _refused("it falls back to bytes, and not each byte is a token")
    normalized = bool(parts["normalizer"]) and model["byte_fallback"]
    entries = [(token, i, BYTE if token in bytes_ else NORMAL) for token, i in _by_id(model)]
    for added in parts["added_tokens"]:
        if trait := _trait(added, normalized):
            raise _refused(f"its added token {added['content']!r} is {trait}")
        kind = CONTROL if added["special"] else USER_DEFINED
        if added["content"] == model["unk_token"] and model["byte_fallback"]:
            kind = UNKNOWN
        entries.append((added["content"], added["id"], kind))
    for token, i, kind in entries:
        if i >= size:
            raise _refused(f"token {token!r} has id {i}, and the model has {size} embeddings")
        if not token or "\0" in token:
            raise _refused(f"token {i} is {token!r}, which llama.cpp cannot hold")
        if types[i] != UNUSED and tokens[i] != token:
            raise _refused(f"tokens {tokens[i]!r} and {token!r} have the same id {i}")
        tokens[i], types[i] = token, kind
    (often, count), *_ = Counter(tokens).most_common(1)
    if count > 1:
        raise _refused(f"token {often!r} stands there {count} times")
    return tokens, types


def _by_id(model: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted(model["vocab"].items(), key=lambda item: item[1])


def _trait(added: dict[str, Any], normalized: bool) -> str | None:
    """What llama.cpp cannot do with an added token."""
    traits = {"lstrip": "stripped on its left", "rstrip": "stripped on its right"}
    traits["single_word"] = "found as a whole word only"
    if normalized:
        traits["normalized"] = "looked for in normalized text"
    return next((text for key, text in traits.items() if added[key]), None)


def _flat(node: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences resolved."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for part in node[key] for step in _flat(part, key)]
    return [node]


def _cut(parts: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text."""
    normalizers = [n["type"] for n in _flat(parts["normalizer"], "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise _refused(f"its text is normalized by {', '.join(normalizers)}")
    steps = tuple(_step(s) for s in _flat(parts["pre_tokenizer"], "pretokenizers"))
    plain, whole = CUTS.get(steps, (None, None))
    name = whole if parts["model"]["ignore_merges"] else plain
    if name is None:
        raise _refused(f"it cuts text by {', then '.join(steps) or 'nothing'}, which has no name")
    return name


def _step(step: dict[str, Any]) -> str:
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return "gpt2 bytes" if step["use_regex"] else "bytes"
    if kind == "Digits" and step["individual_digits"]:
        return "digits"
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        pattern = step["pattern"]
        if "Regex" in pattern:
            return f"split {pattern['Regex']}"
    return json.dumps(step, ensure_ascii=False)


def _merges(model: dict[str, Any]) -> Iterator[str]:
    for left, right in model["merges"]:
        if " " in left + right or "\0" in left + right:
            raise _refused(f"its merge of {left!r} and {right!r} has a space in it")
        yield f"{left} {right}"


def _prefixes_space(parts: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space in front."""
    normalizers = _flat(parts["normalizer"], "normalizers")
    steps = _flat(parts["pre_tokenizer"], "pretokenizers")
    front = {"type": "Prepend", "prepend": SPACE}
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not steps and normalizers in ([front, escape], [escape]):
        return len(normalizers) == 2
    if not normalizers and len(steps) == 1 and steps[0]["type"] == "Metaspace":
        step = steps[0]
        if step["replacement"] == SPACE and not step["split"]:
            return bool(step["prepend_scheme"] != "never")
    said = json.dumps([*normalizers, *steps], ensure_ascii=False)
    raise _refused(f"it treats text by {said}, which SentencePiece does not")


def _scores(model: dict[str, Any], tokens: list[str], types: list[int]) -> list[float]:
    """A score for each piece that merges it when its BPE merges would; UnsupportedModelError."""
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    if model["ignore_merges"]:
        raise _refused("it takes whole words that are tokens as they are")
    known, last = set(merges), ""
    ranks: dict[str, float] = {}
    for left, right in merges:
        piece = left + right
        if piece != last and piece in ranks:
            raise _refused(f"its merges into {piece!r} stand apart, so no score can order them")
        ranks.setdefault(piece, float(-len(ranks)))
        last = piece
    for piece, kind in zip(tokens, types, strict=True):
        splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        for left, right in splits if kind == NORMAL else ():
            if left in vocab and right in vocab and (left, right) not in known:
                raise _refused(f"{left!r} and {right!r} do not merge, but {piece!r} is a token")
    return [ranks.get(token, float(-len(ranks))) for token in tokens]


def _add_special(found: Vocabulary, tokenizer: Any, config: Any) -> None:
    """The special tokens, what the tokenizer adds around a text, and the chat template."""
    end = config.eos_token_id
    ends = [tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])]
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": next((i for i in ends if i is not None), None),
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    if ids["eos"] is None:
        raise _refused("it has no token for the end of a text, and llama.cpp would take some other")
    ids["bos"] = ids["eos"] if ids["bos"] is None else ids["bos"]  # else llama.cpp's default
    found.ids = {name: i for name, i in ids.items() if i is not None}
    for name, i in found.ids.items():
        if not 0 <= i < len(found.tokens):
            raise _refused(f"its {name} token has id {i}, and the model has {len(found.tokens)}")
    with _refusing("encode a text"):
        bare, full = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    around = [(bos, eos) for bos in (False, True) for eos in (False, True)]
    fits = [p for p in around if full == [ids["bos"]] * p[0] + bare + [ids["eos"]] * p[1]]
    if not (bare and fits):
        raise _refused(f"it makes {full} of {bare}: llama.cpp adds its bos and eos tokens only")
    found.add_bos, found.add_eos = fits[0]
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    found.template = template
