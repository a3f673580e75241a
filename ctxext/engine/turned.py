"""Keys that stay turned from one step of a generation to the next.

While a cache grows, near keys stand where they stood. They hang on the very tensor that a layer of
the cache holds: what is cropped, reordered or copied is another tensor, on which none hang, and
then they are turned anew. So it is where the tensor was written to, as torch counts; in inference
mode it does not count, and none are kept.

Dimensions: b batch, g key heads, m keys, l of them, d head dimension.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ctxext.engine.positions import Band, Positions
from ctxext.methods.base import Part

TURNED = "_ctxext_turned"  # the attribute of a cache's tensor of keys that has what was turned
ROOM = 1.5  # of what is held: as many keys more can come before it is moved


class Strip:
    """Turned keys low … high−1 of a part, in a tensor with room for more.

    Attributes:
        begin: which key is the tensor's first.
    """

    def __init__(self, turned: Tensor, low: int) -> None:
        self.begin, self.high = low, low
        self._held = turned.new_empty(*turned.shape[:2], 0, turned.shape[3])
        self.add(turned, low)

    def fits(self, key: Tensor, low: int, past: int) -> bool:
        """Whether it goes on to be the turned keys from `low` on of a cache that has grown."""
        b, g, _, d = key.shape
        same = self._held.shape[:2] == (b, g) and self._held.shape[3] == d
        same = same and (self._held.dtype, self._held.device) == (key.dtype, key.device)
        return same and self.begin <= low < self.high <= past

    def add(self, turned: Tensor, low: int) -> None:
        """Take more keys on; those before `low` are no longer asked for."""
        high = self.high + turned.shape[2]
        if high - self.begin > self._held.shape[2]:
            b, g, _, d = turned.shape
            wider = turned.new_empty(b, g, int(ROOM * (high - low)) + 1, d)
            wider[:, :, : self.high - low] = self.since(low)
            self._held, self.begin = wider, low
        self._held[:, :, self.high - self.begin : high - self.begin] = turned
        self.high = high

    def since(self, low: int) -> Tensor:
        """The keys from `low` on [b, g, l, d]."""
        return self._held[:, :, low - self.begin : self.high - self.begin]


class Turned:
    """What stays turned of one layer's keys.

    Attributes:
        module: the layer.
        parts: by which it attends.
        first: where the first of its keys stands in each row.
    """

    def __init__(self, module: nn.Module, parts: tuple[Part, ...], first: list[int] | None) -> None:
        self.module, self.parts, self.first = module, parts, first
        self._strips: dict[int, Strip] = {}
        self._key: Callable[[], Tensor | None] = lambda: None
        self._version = 0

    def __deepcopy__(self, memo: Any) -> None:
        """A copied cache has none."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OrderedDict, ()  # which torch.load takes too

    def goes_on(self, parts: tuple[Part, ...], at: Positions) -> bool:
        """Whether it is of such keys."""
        return self.parts is parts and self.first == at.first is not None

    def keys(
        self, index: int, band: Band, key: Tensor, at: Positions, turn: Callable[..., Tensor]
    ) -> Tensor:
        """The turned keys of the part with this index, of all keys [b, g, m, d]."""
        strip, past = self._strips.get(index), at.key.shape[1] - at.query.shape[1]
        if strip is None or not strip.fits(key, band.low, past):
            strip = self._strips[index] = Strip(
                turn(key[:, :, band.low : band.high], band.key), band.low
            )
        elif strip.high < band.high:
            new = key[:, :, strip.high : band.high]
            strip.add(turn(new, at.tail(band, strip.high)), band.low)
        return strip.since(band.low)[:, :, : band.high - band.low]

    def hang(self, key: Tensor) -> None:
        """Leave it on a tensor of keys."""
        self._key, self._version = weakref.ref(key), key._version
        key.__dict__[TURNED] = self

    def is_of(self, key: Tensor) -> bool:
        """Whether the tensor that it hangs on has not been written to since."""
        return self._key() is key and not key.is_inference() and self._version == key._version


def take_turned(cache: Any) -> dict[nn.Module, Turned]:
    """What hangs on a cache's keys, by layer; it hangs there no longer."""
    found = {}
    for layer in getattr(cache, "layers", ()):
        key = getattr(layer, "keys", None)
        if not isinstance(key, Tensor):
            continue
        turned = key.__dict__.pop(TURNED, None)
        if isinstance(turned, Turned) and turned.is_of(key):
            found[turned.module] = turned
    return found
