"""Whether a model loads from its weight files, told by their headers: no weight is read."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ctxext.errors import UsageError
from ctxext.export.check import one_line
from ctxext.models.contents import MAX_INDEX_BYTES, read_object
from ctxext.models.outline import outline
from ctxext.models.small import quiet

LEGACY = b"\x80\x02"  # how torch's older format begins, a pickle of protocol 2


def check_weights(files: Sequence[Path], config: Any, trust_remote_code: bool = False) -> list[str]:
    """Have transformers load the files' tensors by name, shape and dtype into an empty model.

    It renames, merges and ties them as it does when it loads their contents.

    Args:
        files: the weight files, and their index if there is one, as `files.choose` gives them.
        config: the model's transformers config.

    Returns:
        What a user should know of them, a line each.

    Raises:
        UsageError: a file is damaged, or they are not the weights of such a model.
    """
    shards = [path for path in files if path.suffix != ".json"]
    if pickles := [path for path in shards if path.suffix != ".safetensors"]:
        for path in pickles:
            _check_pickle(path)
        return [
            "the weights are a pickle, which was not opened: whether they are this model's, "
            "--verify full tells"
        ]
    tensors = {name: empty for path in shards for name, empty in _headers(path).items()}
    found, state = _load(tensors, config, trust_remote_code, shards[0].parent)
    where = f"the weights in {str(shards[0].parent)!r}"
    unused = sorted(map(str, found["unexpected_keys"]))
    if missing := sorted(map(str, found["missing_keys"])):
        others = f"; it has no place for {len(unused)}, such as {unused[0]!r}" if unused else ""
        raise UsageError(
            f"{where} lack {len(missing)} of the model's tensors, such as {missing[0]!r}"
            f"{_unkept(files, tensors)}{others}: download them anew, or mend config.json"
        )
    if wrong := sorted(found["mismatched_keys"]):
        name, theirs, ours = wrong[0]
        raise UsageError(
            f"{where} have {len(wrong)} tensors of another shape than the model's, such as "
            f"{name!r}, {list(theirs)} and not {list(ours)}: download them anew, or mend "
            "config.json"
        )
    if whole := _whole_numbers(tensors, state, config):
        raise UsageError(
            f"{where} have whole numbers in {len(whole)} tensors, such as {whole[0]!r}, and the "
            "config names no quantization: mend config.json, or give a plain checkpoint"
        )
    if unused:
        return [
            f"the weights have {len(unused)} tensors that the config has no place for, such as "
            f"{unused[0]!r}: no loader will use them"
        ]
    return []


def _headers(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, empty ones on the meta device; it is as long as it says.

    Raises:
        UsageError: it is no such file, or is cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: torch.empty(
                    shape := view.get_shape(),
                    dtype=(view[:0] if shape else file.get_tensor(name)).dtype,
                    device="meta",
                )
                for name, view in views.items()
            }
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UsageError(
            f"{str(path)!r} holds no readable weights ({one_line(error)}): download it anew"
        ) from error


def _load(
    tensors: dict[str, Tensor], config: Any, trust_remote_code: bool, folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What transformers says of loading the tensors, and the model's own, all without contents."""
    model = outline(config, trust_remote_code)
    try:
        with quiet():
            _, found = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=dict(tensors),
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise UsageError(
            f"the weights in {str(folder)!r} cannot be loaded here: {one_line(error)}: mend that, "
            "or leave them where they are with --config-only"
        ) from error
    return found, model.state_dict()


def _unkept(files: Sequence[Path], tensors: dict[str, Tensor]) -> str:
    """Of the index the first file that does not hold what it should, in a few words."""
    for path in files:
        if path.suffix == ".json":
            names = read_object(path, MAX_INDEX_BYTES, "an index of weights")["weight_map"]
            lost = ((name, file) for name, file in names.items() if name not in tensors)
            for name, file in lost:
                return f" (by {path.name}, {file!r} should hold {name[:100]!r})"
    return ""


def _whole_numbers(tensors: dict[str, Tensor], state: dict[str, Tensor], config: Any) -> list[str]:
    """The tensors that are whole numbers where the model's are not, and nothing turns them."""
    if getattr(config, "quantization_config", None) is not None:
        return []
    ends = {name.split(".", 1)[-1]: name for name in state}
    return sorted(
        name
        for name, tensor in tensors.items()
        if not tensor.is_floating_point()
        and (own := state.get(name, state.get(ends.get(name, "")))) is not None
        and own.is_floating_point()
    )


def _check_pickle(path: Path) -> None:
    """UsageError unless the file is one of torch's and, if a zip archive, whole."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for part in archive.infolist():
                    archive.open(part).close()  # reads where the part begins, no more
            return
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:
                return
        raise ValueError("it is cut short, or no file of torch's")
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise UsageError(
            f"{str(path)!r} holds no readable weights ({one_line(error)}): download it anew"
        ) from error
