"""How far an export is from the patched model, by what both of them measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ctxext.engine.anatomy import examine
from ctxext.engine.patch import patched
from ctxext.engine.stock import config_with, stock_ropes, unheard
from ctxext.errors import UnsupportedModelError
from ctxext.export import check
from ctxext.export.fresh import Fresh
from ctxext.export.job import PLAIN, ROWS, Job, options
from ctxext.methods import Spec, parse
from ctxext.methods.base import Span
from ctxext.models.frequency_sets import find_frequency_sets
from ctxext.models.loading import Source
from ctxext.models.trained import ORIGINAL, explain_trained
from ctxext.text import counted

EXACT = 1e-5  # of the largest logit


@dataclass(frozen=True)
class Figure:
    """How far the export is from the patched model in one respect, and how far it may be."""

    what: str
    value: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is near enough, which what is no number never is."""
        return self.value <= self.allowed


@dataclass
class Found:
    """What two sides measured, as far as it came in."""

    job: Job
    figures: dict[str, Figure] = field(default_factory=dict)  # the worst by what it is of
    logits: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # ours, theirs

    def compare(self, ours: Iterable[check.Measured], other: Fresh) -> None:
        """Take both sides' measurements one by one; UnsupportedModelError where one lacks."""
        tables, table = iter(self.job["tables"]), {}
        for what, mine in ours:
            theirs = other.receive(what)
            if mine.shape != theirs.shape:
                sizes = f"{list(theirs.shape)} and not {list(mine.shape)}"
                raise UnsupportedModelError(f"the export's {what} have the shape {sizes}")
            off = float((mine - theirs).abs().max())
            if what == "frequencies":
                table = next(tables)
                kind = f" ({table['kind']})" if table["kind"] else ""
                self.add(f"rotary frequencies{kind}", off, 0.0)
            elif what == "table":
                self.add(_name(table), off, 0.0)
            elif what == "logits":
                self.logits.append((mine, theirs))
            else:
                prompt = self.job["generate"]["length"]
                off = float((mine != theirs).sum())
                self.add(f"of {mine.numel()} tokens generated after {prompt}, differ", off, 0.0)

    def add(self, what: str, value: float, allowed: float) -> None:
        """A figure, unless there is a worse one of the same."""
        new, old = Figure(what, value, allowed), self.figures.get(what)
        if old is None or (old.holds and (not new.holds or new.value > old.value)):
            self.figures[what] = new


def _name(table: dict[str, Any]) -> str:
    kind = f" ({table['kind']})" if table["kind"] else ""
    length, count = table["length"], table["count"]
    where = f"at {length} tokens" if length <= count else f"at {count} of {length} positions"
    return f"cos and sin{kind} {where}"


def logit_figures(found: Found, allowed: float) -> list[Figure]:
    """The logits' figures, of all places far out the worst."""
    worst = replace(found, figures={})
    probes = found.job["probes"]
    places = [probe["at"] for probe in probes if probe["at"]]
    for probe, (mine, theirs) in zip(probes, found.logits, strict=True):
        last, length = probe["jump"], probe["length"]
        where = f"positions up to {last}" if last else f"{length} tokens"
        if probe["at"]:
            where = f"{len(places)} places up to position {places[-1] + length}"
        worst.add(f"logits at {where}, of the largest", distance(theirs, mine), allowed)
    return list(worst.figures.values())


def distance(theirs: Tensor, mine: Tensor) -> float:
    """How far logits are apart, of the largest."""
    off, largest = float((theirs - mine).abs().max()), float(mine.abs().max())
    return off / largest


def of_stock(model: Any, spec: Spec, length: int, given: Source) -> Iterator[Figure]:
    """How far the model is, with the rotation of the spec alone, from stock transformers' one.

    Carried code is compared with the code that it was made of. Where a scaling is taken off, what
    they have in common is compared with a model that never had one; if there is one, which layers
    that are left alone, or frequencies that no rope parameters say, preclude.
    """
    span = Span(explain_trained(model.config, given.own_scaling, given.train_len).tokens, length)
    alone = Spec(spec.resolve(span).frequencies) if spec.frequencies else parse("pi:factor=1")
    freq_sets = find_frequency_sets(model, **options(given), length=length)
    found = examine(model, freq_sets, alone)
    if found.alone or alone.by_layer or not any(freqs.replaced for freqs in found.changed):
        return
    ropes = {}
    for freqs in found.changed:
        stock = next(stock_ropes(freqs, alone, length), None)
        if stock is None:
            return
        beside = {ORIGINAL: freqs.rope.get(ORIGINAL), **dict.fromkeys(freqs.beside, 0)}
        ropes[freqs] = stock.rope | (beside if freqs.beside else {})
    with unheard():
        stock = type(model)(config_with(model, ropes)).eval()
    stock.load_state_dict(model.state_dict())
    vocabulary = model.config.get_text_config().vocab_size
    probe = {"vocabulary": vocabulary, "rows": ROWS, "jump": 0, "at": 0}
    probe["length"] = min(length, PLAIN)
    theirs = check.logits(stock, probe)
    with patched(model, alone, length, **options(given)):
        off = distance(theirs, check.logits(model, probe))
    what = f"logits of its rotation alone against a stock model's at {probe['length']} tokens"
    yield Figure(f"{what}, of the largest", off, EXACT)


def require(figures: list[Figure], kind: str) -> None:
    """UnsupportedModelError that names the first figure that does not hold, if there is one."""
    wrong = [figure for figure in figures if not figure.holds]
    if wrong:
        first = wrong[0]
        more = f" (and {counted(len(wrong) - 1, 'figure')} more)" if len(wrong) > 1 else ""
        raise UnsupportedModelError(
            f"the export is not the patched {kind} model: {first.what}: off by {first.value:.2g}, "
            f"where {first.allowed:.2g} is allowed{more}: use ctxext.patch at run time"
        )
