"""What is known of the forward pass that is running: made once, read by its layers, gone with it.

A rotary module sees the true positions of each forward, and begins what is known of it. Its tables
lead there, so that a layer finds it that runs again, in a backward and maybe in another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.engine.compiled import uncompiled
from ctxext.engine.rotation import Tables
from ctxext.engine.turned import Turned
from ctxext.errors import UnsupportedModelError
from ctxext.models.frequency_sets import FrequencySet

FORWARD = "_ctxext_forward"  # the attribute of a table that has the forward it was made in
OF_LAYERS = "_ctxext_of_layers"  # … and the tables that layers of their own have
MOST_FOUND = 8  # kinds of layers: some have masks of their own


class Forward:
    """One forward pass of a patched model.

    Attributes:
        owner: the patch of that model.
        positions: of its queries [·, b or 1, n].
        outer: the forward that it is within, of another model.
        turned_keys: what stays turned of the keys of a cache, by layer.
        tables: what each rotary module returned, by its frequencies.
        turned: positions, and what turns by them where anything does, by frequencies, rotation, the
            positions' id and device.
    """

    def __init__(self, owner: object, positions: Tensor, outer: Forward | None = None) -> None:
        self.owner = owner
        self.positions = positions
        self.outer = outer
        self.turned_keys = _TURNED_KEYS.get({})
        self.tables: dict[FrequencySet, Any] = {}
        self.turned: dict[Any, tuple[Tensor, Tables | None]] = {}
        self._found: list[tuple[Tensor | None, tuple[Any, ...], Any]] = []

    def once(self, mask: Tensor | None, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """What `find` gives, found once for the layers that share a mask and what else it is by."""
        for its_mask, its_key, found in self._found:
            if its_mask is mask and its_key == key:
                return found
        found = find()
        self._found = [*self._found[1 - MOST_FOUND :], (mask, key, found)]
        return found

    def end(self) -> None:
        """Forget what can be found anew, masks and tables, if the forward is still running."""
        self.tables, self.turned, self.turned_keys, self._found = {}, {}, {}, []
        _TURNED_KEYS.set({})
        if _RUNNING.get() is self:
            _RUNNING.set(self.outer)


_RUNNING: ContextVar[Forward | None] = ContextVar("running", default=None)
_TURNED_KEYS: ContextVar[dict[nn.Module, Turned]] = ContextVar("turned_keys")
_LEFT: ContextVar[Forward | None] = ContextVar("left", default=None)


def announce(turned: dict[nn.Module, Turned]) -> None:
    """Say what stays turned of the cache that the next forward goes on from."""
    _TURNED_KEYS.set(turned)


def begin(owner: object, positions: Tensor) -> Forward:
    """The forward of these positions, which its model's rotary modules share."""
    running = _RUNNING.get()
    if running is not None and running.owner is owner:
        if running.positions is positions:
            return running
        running = running.outer
    forward = Forward(owner, positions, running)
    _RUNNING.set(forward)
    return forward


def running(owner: object) -> Forward | None:
    """The forward that is running of this patch's model; None where it is not known."""
    forward = _RUNNING.get()
    return forward if forward is not None and forward.owner is owner else None


def end(owner: object) -> None:
    """End the forward that is running of this patch's model, if there is one."""
    if (forward := running(owner)) is not None:
        forward.end()


@uncompiled
def begin_again(owner: object, args: Any, kwargs: Any) -> None:
    """Before a layer: take the forward whose tables it is handed, which may be an earlier one."""
    now = _RUNNING.get()
    tables = (first(x) for x in (*args, *kwargs.values()))
    known = (table.__dict__.get(FORWARD) for table in tables if table is not None)
    found = next((x for x in known if x is not None and x.owner is owner), None)
    _LEFT.set(now)
    if found is None and torch._C._current_graph_task_id() != -1:  # copies, in a backward
        positions = kwargs.get("position_ids")
        found = Forward(owner, positions) if isinstance(positions, Tensor) else None
        _RUNNING.set(found)
    elif found is not None and found is not now:
        _RUNNING.set(found)


@uncompiled
def end_again() -> None:
    """After a layer: leave the forward that was taken up before it."""
    forward, now = _LEFT.get(), _RUNNING.get()
    _LEFT.set(None)
    if now is not None and now is not forward:
        now.end()
    _RUNNING.set(forward)


def first(x: Any) -> Any:
    """The first table of what may be a rotary module's output; None where it is none."""
    if isinstance(x, tuple) and x and isinstance(x[0], Tensor):
        x = x[0]
    return x if isinstance(x, Tensor) else None


def unknown_positions() -> UnsupportedModelError:
    """Of a layer whose forward is not known."""
    return UnsupportedModelError(
        "the positions are not known of a layer that runs again after another forward: "
        "run it before, or without gradient checkpointing"
    )
