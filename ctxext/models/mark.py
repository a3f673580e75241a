"""What a patched model's config says of its patch, so that a folder saved from it says so too."""

from __future__ import annotations

from typing import Any, NamedTuple

from ctxext.errors import UsageError, short
from ctxext.methods import Spec, parse
from ctxext.models.trained import check_own_scaling
from ctxext.notation import is_length

MARK = "ctxext_patch"
LONGEST = 2000  # characters of a spec


class Mark(NamedTuple):
    """The patch that a model had on when it was saved.

    Attributes:
        spec: as it was resolved.
        length: L in tokens, where it was given.
        trained: T in tokens.
        own_scaling: whether it "keep"s or "replace"s the model's own rope scaling.
    """

    spec: Spec
    length: int | None
    trained: int
    own_scaling: str = "keep"

    def leave(self, config: Any) -> None:
        """Write it into a config."""
        vars(config)[MARK] = {**self._asdict(), "spec": self.spec.full()}


def read_mark(given: Any) -> Mark:
    """What stands in a config as MARK, of which anyone may have made anything.

    Raises:
        UsageError: it is no patch; the message says what to do.
    """
    spec, length, trained, own_scaling = (
        given.get(name) if isinstance(given, dict) else None for name in Mark._fields
    )
    try:
        if not isinstance(spec, str) or len(spec) > LONGEST or not spec.isprintable():
            raise UsageError("it names no spec")
        if not is_length(trained) or not (length is None or is_length(length)):
            raise UsageError("its lengths are no numbers of tokens")
        check_own_scaling(own_scaling)
        return Mark(parse(spec), length, trained, str(own_scaling))
    except UsageError as error:
        raise UsageError(
            f"bad {MARK} {str(given)[:100]!r} in the model's config: {short(error)}; take it "
            "out of config.json for the plain model"
        ) from None


def take_mark(model: Any) -> Any:
    """Take MARK out of a model's configs, for it to be the plain model; None where it has none."""
    configs = [module.__dict__["config"] for module in model.modules() if "config" in vars(module)]
    found = [vars(config).pop(MARK, None) for config in configs]
    return next((mark for mark in found if mark is not None), None)


def plain_line(name: str, given: Any) -> str:
    """What to tell of a model whose config has this as MARK, where it is taken as plain."""
    try:
        spec = str(read_mark(given).spec)
    except UsageError as error:
        return str(error)
    return (
        f"model {name!r} was saved while it was patched with {spec}: here `rope` is the plain "
        f"model; give --method {spec!r} for what was saved"
    )
