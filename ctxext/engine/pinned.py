"""One length for each sequence that an unpatched model reads, where its own scaling goes by that.

Transformers chooses the frequencies of dynamic and longrope scaling anew with each forward: by
what is read at once, and for dynamic by the longest that was read since. So a row's numbers would
depend on what is read before it and beside it, and cached keys would keep other frequencies than
those that come after them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ctxext.engine.patch import patched
from ctxext.models.frequency_sets import find_frequency_sets, length_class
from ctxext.models.trained import ORIGINAL

Item = TypeVar("Item")


@contextlib.contextmanager
def pinned(model: Any, length: int) -> Iterator[None]:
    """The model as it reads a sequence of `length` tokens, prompt and continuation.

    It is as it is where nothing goes by the length: also where a patch has decided it.
    """
    if length_class(model, length) is None:
        yield
        return
    with patched(model, "rope", max(2, length)):
        yield


@contextlib.contextmanager
def unswitched(model: Any) -> Iterator[None]:
    """`generate` without the look that some families (Phi-3) take at a sequence's length.

    Where it passes the original one they drop the cache, since their tables would change; those of
    a model that is patched or pinned do not, and transformers before 5.24 then read the last token
    alone. Nothing may be patched meanwhile.
    """
    config = model.config.get_text_config()
    own = vars(config).get(ORIGINAL)
    if own is None:
        yield
        return
    setattr(config, ORIGINAL, 2**31 - 1)
    try:
        yield
    finally:
        setattr(config, ORIGINAL, own)


def alike(
    model: Any, items: Iterable[Item], length: Callable[[Item], int]
) -> list[tuple[int, list[Item]]]:
    """The items in lists that may be read together, the longest first, each with a length for it.

    Args:
        length: tokens of the sequence that an item will be, prompt and continuation.
    """
    freq_sets, found = find_frequency_sets(model), dict[int | None, tuple[int, list[Item]]]()
    for item in items:
        tokens = length(item)
        kind = length_class(freq_sets, tokens)
        longest, some = found.get(kind, (0, []))
        some.append(item)
        found[kind] = max(longest, tokens), some
    return sorted(found.values(), key=lambda pair: -pair[0])
