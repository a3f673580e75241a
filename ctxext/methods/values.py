"""Values of parameters: what they must be, where a search looks for them, and lists of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ctxext.errors import UsageError
from ctxext.methods.files import numbers, parse_json, read_bytes
from ctxext.notation import AUTO, Auto, format_value

MOST = 1e6  # of a factor for one layer


def require(holds: bool, key: str, value: object, need: str) -> None:
    """UsageError naming the value and what it must be, unless it holds."""
    if not holds:
        raise UsageError(f"bad value {value} for {key!r}: must be {need}")


@dataclass(frozen=True)
class Range:
    """Where a search looks for a parameter: from `low` to `high`, both included.

    Attributes:
        log: whether steps of the same ratio weigh the same, or else steps of the same size.
        whole: whether it looks at whole numbers alone.
    """

    low: float
    high: float
    log: bool = True
    whole: bool = False


def tokens_between(low: float, high: float) -> Range:
    """Whole numbers of tokens, at least 1."""
    least = max(1, int(low))
    return Range(least, max(least, int(high)), whole=True)


def check_auto(value: float | str | None, key: str, ladder: str | None) -> None:
    """UsageError, unless a parameter is None, at least 1, or `auto`, which alone takes a ladder."""
    plain = value is None or isinstance(value, str) or value >= 1
    require(plain, key, value, "at least 1, or auto")
    parse_ladder(ladder)
    alone = ladder is None or value == AUTO
    require(alone, "ladder", repr(ladder), f"given with {key}=auto, and with that alone")


def settled(value: float | Auto | None, default: Callable[[], float], ladder: str | None) -> float:
    """What was given; the default for None, and for `auto` the smallest rung not below it."""
    if value is None:
        return default()
    return rung(default(), ladder) if value == AUTO else value


def parse_ladder(ladder: str | None) -> tuple[float, ...] | None:
    """The rungs of `1/4/16`; None for the powers of 2. UsageError for anything else."""
    if ladder is None:
        return None
    need = "rising numbers from 1 on, such as 1/4/16"
    try:
        rungs = tuple(map(float, ladder.split("/")))
    except ValueError:
        rungs = ()
    rising = all(low < high for low, high in itertools.pairwise(rungs))
    require(bool(rungs) and rungs[0] >= 1 and rising, "ladder", repr(ladder), need)
    require(math.isfinite(rungs[-1]), "ladder", repr(ladder), need)
    return rungs


def rung(need: float, ladder: str | None = None) -> float:
    """The smallest of a ladder that is at least `need`; UsageError where none is."""
    rungs = parse_ladder(ladder)
    if rungs is None:
        return 2.0 ** math.ceil(math.log2(max(1.0, need)))
    found = next((one for one in rungs if one >= need), None)
    if found is None:
        raise UsageError(
            f"the ladder {ladder} ends at {rungs[-1]:g}, and the sequence needs {need:g}: give "
            "ladder= a larger one, or a shorter sequence"
        )
    return found


def check_layers(layers: str | None) -> None:
    """UsageError, unless it is None, `1/1.5/2`, or `@` and the name of a file, unread."""
    if layers is None or layers[:1] != "@":
        parse_layers(layers or "1")
    else:
        need = "@ and the name, of printable characters, of a JSON file"
        require(len(layers) > 1 and layers.isprintable(), "layers", repr(layers), need)


def parse_layers(layers: str) -> tuple[float, ...]:
    """The factor of each layer, as written or as a file has them; UsageError for anything else."""
    need = f"numbers of 1 … {MOST:g} such as 1/1.5/2, or @FILE.json"
    if layers[:1] == "@":
        name = layers[1:]
        found = parse_json(read_bytes(name, "layers=@FILE.json"), name, "a list of numbers")
        factors = numbers(found, "the list", name, 1.0, MOST)
    else:
        try:
            factors = tuple(map(float, layers.split("/")))
        except ValueError:
            factors = ()
    good = bool(factors) and all(1 <= factor <= MOST for factor in factors)
    require(good, "layers", repr(layers[:40]), need)
    return factors


def format_layers(factors: Iterable[float]) -> str:
    """`1/1.5/2`, which `parse_layers` reads back unchanged."""
    return "/".join(map(format_value, factors))
