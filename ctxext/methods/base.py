"""The contract of a method: what it may know, and what each of the four kinds must say.

Notation: T trained length and L evaluated length in tokens, d rotary dimension, i = 0 … d/2−1
the pair index, θ_i = base^(−2i/d) the model's own inverse frequencies in radians per token,
k the extension factor, n a query's position counted from 1, δ ≥ 0 how many tokens a key stands
behind its query. Formulas are plain arithmetic in float64; nothing here imports torch.

All that a method's file needs is to be had here: the kinds of methods, and from parts.py and
values.py what they are made of.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ctxext.errors import UsageError
from ctxext.methods.parts import Part as Part
from ctxext.methods.parts import as_held as as_held
from ctxext.methods.parts import identity as identity
from ctxext.methods.values import Range as Range
from ctxext.methods.values import check_auto as check_auto
from ctxext.methods.values import check_layers as check_layers
from ctxext.methods.values import format_layers as format_layers
from ctxext.methods.values import parse_ladder as parse_ladder
from ctxext.methods.values import parse_layers as parse_layers
from ctxext.methods.values import require as require
from ctxext.methods.values import rung as rung
from ctxext.methods.values import settled as settled
from ctxext.methods.values import tokens_between as tokens_between
from ctxext.notation import AUTO, Auto, format_entry

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

SECTIONS = ("Formula", "Source", "Parameters", "Inside T", "Beyond T")


@dataclass(frozen=True)
class Span:
    """The trained length T and, where it is known, the evaluated length L; both in tokens."""

    trained: int
    length: int | None = None

    def need_length(self, what: str) -> int:
        """L; UsageError that names the default `what` that cannot be had without it."""
        if self.length is None:
            raise UsageError(f"the default of {what} depends on the length: give length= or {what}")
        return self.length

    def stretch(self) -> float:
        """The default extension factor k: L/T, at least 1."""
        return max(1.0, self.need_length("factor") / self.trained)


@dataclass(frozen=True)
class Rotary:
    """A model's own rotation.

    Attributes:
        theta: θ [d/2] in radians per token.
        base: θ_i = base^(−2i/d) before any scaling.
        trained: T in tokens.
        variant: rope parameters by which the model's own yarn, which is taken off, is not the
            paper's: mscale, mscale_all_dim, truncate.
    """

    theta: tuple[float, ...]
    base: float
    trained: int
    variant: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dim(self) -> int:
        """The rotary dimension d."""
        return 2 * len(self.theta)


@dataclass(frozen=True)
class Method:
    """One method; its fields are its parameters, None where the default depends on T or L.

    Attributes:
        changes: what it changes: frequency, distance, query scale or attention rule.
        version: goes up where the same spec comes to give other numbers.
        autos: the parameters that may be `auto`: they go by the length of each sequence.
        reads_file: whether a parameter names a file, so that the spec says all with it alone.
    """

    name: ClassVar[str]
    changes: ClassVar[str]
    version: ClassVar[int] = 1
    reads_file: ClassVar[bool] = False
    autos: ClassVar[tuple[str, ...]] = ()

    @property
    def at_hand(self) -> tuple[str, ...]:
        """The parameters that are `auto`."""
        return tuple(name for name in self.autos if getattr(self, name) == AUTO)

    def at_layer(self, layer: int) -> Self:
        """The method as one attention layer has it, counted from 0; called on a resolved one."""
        return self

    def resolve(self, span: Span) -> Self:
        """The method with every parameter a value; UsageError where a default needs a length."""
        return self

    def resolved(self, *names: str) -> tuple[Any, ...]:
        """The values of these parameters; UsageError where one has none yet."""
        values = tuple(getattr(self, name) for name in names)
        for name, value in zip(names, values, strict=True):
            require(value not in (None, AUTO), name, value, "resolved first")
        return values

    def search(self, span: Span) -> dict[str, Range] | None:
        """Where a search looks for each parameter, beside what the method was given.

        Empty for a method that has nothing to search for. None for one that must not be tried as
        it is: it is for training, or lacks what only its user can give.
        """
        return {}

    def __str__(self) -> str:
        """The shortest spec that parses back to this method."""
        fields = dataclasses.fields(self)
        values = {f.name: getattr(self, f.name) for f in fields}
        return format_entry(
            self.name, {f.name: values[f.name] for f in fields if values[f.name] != f.default}
        )

    def full(self) -> str:
        """The spec with all parameters, defaults too."""
        fields = dataclasses.fields(self)
        return format_entry(self.name, {f.name: getattr(self, f.name) for f in fields})

    @classmethod
    def describe(cls) -> dict[str, str]:
        """The docstring by section: `summary` and the SECTIONS, each as one line."""
        head, *paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
        text = {"name": cls.name, "kind": cls.changes, "summary": " ".join(head.split())}
        for paragraph in paragraphs:
            title, _, body = paragraph.partition(":")
            text[title.lower().replace(" ", "_")] = " ".join(body.split())
        return text


@dataclass(frozen=True)
class Frequency(Method):
    """A method that divides each inverse frequency by a λ, and may scale the rotated vectors."""

    changes: ClassVar[str] = "frequency"

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i for each pair [d/2], so that θ_i becomes θ_i/λ_i; called on a resolved method."""
        raise NotImplementedError

    def stock(self, rotary: Rotary) -> dict[str, Any] | None:
        """The rope parameters by which transformers computes the method; None where it cannot.

        Called on a resolved method. A changed base is a `rope_theta` alone.
        """
        return None

    def extension(self, trained: int) -> float:
        """How many times T the method says it reaches; infinite where it says nothing of it.

        Called on a resolved method.
        """
        return math.inf

    def attention_factor(self) -> float:
        """What rotated queries and keys are each multiplied by; called on a resolved method."""
        return 1.0

    def attention_factor_on(self, rotary: Rotary) -> float:
        """The attention factor on this model."""
        return self.attention_factor()


@dataclass(frozen=True)
class Stretch(Frequency):
    """A frequency method with an extension factor k, by default L/T and at least 1.

    At k = 1 it changes nothing. With `layers` each attention layer has a k of its own.
    """

    autos = ("factor",)

    factor: float | Auto | None = None
    ladder: str | None = None
    layers: str | None = None

    def __post_init__(self) -> None:
        check_auto(self.factor, "factor", self.ladder)
        check_layers(self.layers)
        alone = self.layers is None or self.factor is None
        require(alone, "layers", repr(self.layers), "given in place of factor")

    @classmethod
    def describe(cls) -> dict[str, str]:
        """… with what all of them take."""
        text = super().describe()
        given = (
            ", ladder (of factor=auto: rising numbers such as 1/4/16; default 1/2/4/8/…), layers "
            "(in place of factor: a k for each, such as 1/1.5/2, or @FILE.json)"
        )
        return {**text, "parameters": text["parameters"] + given}

    def resolve(self, span: Span) -> Self:
        """Fill in k, or read that of each layer."""
        if self.layers is not None:
            return dataclasses.replace(self, layers=format_layers(parse_layers(self.layers)))
        k = settled(self.factor, span.stretch, self.ladder)
        return dataclasses.replace(self, factor=k, ladder=None)

    def search(self, span: Span) -> dict[str, Range] | None:
        """k up to four times as large as L needs."""
        return {} if self.layers is not None else {"factor": Range(1, 4 * span.stretch())}

    def extension(self, trained: int) -> float:
        """k; of layers that of the one which reaches least."""
        return self.k if self.layers is None else min(parse_layers(self.layers))

    def at_layer(self, layer: int) -> Self:
        """… with that layer's k."""
        if self.layers is None:
            return self
        return dataclasses.replace(self, factor=parse_layers(self.layers)[layer], layers=None)

    @property
    def k(self) -> float:
        """The resolved extension factor."""
        if self.layers is not None:
            raise UsageError(
                f"{self.name}:layers has a factor for each layer, and none for all of them: give "
                "factor here"
            )
        if self.factor is None or self.factor == AUTO:
            raise UsageError(f"{self.name} has no factor yet: resolve it first")
        return self.factor


@dataclass(frozen=True)
class Distance(Method):
    """A method that changes what a key at distance δ looks like to its query, or hides it.

    Attributes:
        cached: the index of the part as whose keys a cache holds keys; parts with the same `key`
            function share them. Other parts turn keys anew with each forward, so that it should
            be the part that shows most keys.
        absolute: whether the parts go by more than δ. Else shifting all true positions alike
            leaves every part's pairs, and in it every query − key of effective positions, as they
            are, and the engine may count from anywhere. If so, it counts from each row's first
            token, and refuses positions that do not.
    """

    changes: ClassVar[str] = "distance"
    cached: ClassVar[int] = -1
    absolute: ClassVar[bool] = False

    def parts(self) -> tuple[Part, ...]:
        """The parts, none of which share a pair; called on a resolved method.

        Pairs in no part are not seen. The first part starts at 0: each query sees itself in it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class QueryScale(Method):
    """A method that multiplies each query by a number that depends on its position."""

    changes: ClassVar[str] = "query scale"

    def scale(self, n: Tensor, trained: int) -> Tensor:
        """The multiplier for queries at positions n, counted from 1 (float tensor, any shape)."""
        raise NotImplementedError

    def scale_on(self, n: Tensor, trained: int, head_dim: int) -> Tensor:
        """The multiplier in heads of this dimension."""
        return self.scale(n, trained)


@dataclass(frozen=True)
class AttentionRule(Method):
    """A method that multiplies each query by a number that depends on its own scores.

    It goes with frequency methods and query scales, whose scores it sees, and with no distance.
    """

    changes: ClassVar[str] = "attention rule"

    def sharper(self, scores: Tensor, place: Tensor, trained: int) -> Tensor:
        """The multipliers of queries [b, h, n, 1], exactly 1 for one that sees T keys at most.

        Args:
            scores: of all keys [b, h, n, m], as softmax would have them; of those that are not
                seen anything finite.
            place: of each key among those that its query sees, counted from 1, 0 where it does
                not [b or 1, 1, n, m].
            trained: T in tokens.
        """
        raise NotImplementedError
