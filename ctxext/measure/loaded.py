"""What the sessions of one evaluation share: the last model, its tokenizer, token ids, and which of
them a long context helps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ctxext.measure.memory import release
from ctxext.models import loading
from ctxext.models.loading import Source
from ctxext.tasks.data import Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ctxext.tasks.base import Helped


class Loaded:
    """Loads what is not there yet; of models and tokenizers it holds one, of token ids all.

    Attributes:
        helped: which tokens of a window a long context helps [length], by the model's source and
            hash, the rule, and a digest of the window's tokens.
    """

    def __init__(self) -> None:
        self._tokenizer: tuple[tuple[Any, str], Any] | None = None
        self._model: tuple[tuple[Source, str], Any] | None = None
        self._ids: dict[tuple[str, str, int | None], Tensor] = {}
        self.helped: dict[tuple[Source, str, Helped, bytes], NDArray[np.bool_]] = {}

    def tokenizer(self, source: Source, sha256: str) -> Any:
        """The tokenizer of a model with this hash; errors as for `loading.load_model`."""
        name = (source.held or source.pretrained(), sha256)
        if self._tokenizer is None or self._tokenizer[0] != name:
            self._tokenizer = (name, loading.load_tokenizer(source))
        return self._tokenizer[1]

    def model(self, source: Source, sha256: str, note: Callable[[str], None]) -> Any:
        """The model of a settled source with this hash, the one before it let go of; errors as
        for `load_model`."""
        name = (source, sha256)
        if self._model is None or self._model[0] != name:
            self._model = None
            release()  # also what an evaluation before this one has left
            self._model = (name, loading.load_model(source, note))
        return self._model[1]

    def ids(self, text: Text, tokenizer: Any, at_most: int | None) -> Tensor:
        """The text's token ids [tokens]; errors as for `tokenise`."""
        from ctxext.measure.tokens import tokenise

        key = (text.sha256, _mark(tokenizer), at_most)
        if key not in self._ids:
            self._ids[key] = tokenise(text, tokenizer, at_most)
        return self._ids[key]


def _mark(tokenizer: Any) -> str:
    """What tells tokenizers apart: their class and tables; the object, where it has none to say."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return f"{type(tokenizer)} {id(tokenizer)}"
    tables = hashlib.sha256(core.to_str().encode("utf-8", "surrogatepass")).hexdigest()
    return f"{type(tokenizer)} {tables}"
