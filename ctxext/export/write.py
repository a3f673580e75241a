"""From a model folder and a spec to a new folder, complete and proven or not there at all."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ctxext import methods
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.export import reach
from ctxext.export.card import Facts, write_card
from ctxext.export.carried import pin_tokenizer, write_carried
from ctxext.export.files import choose, put, read_config
from ctxext.export.fitted import Fitted, fit
from ctxext.export.native import is_latent, overrides, write_native
from ctxext.export.proof import Proof, prove
from ctxext.export.staging import staged
from ctxext.export.weights import check_weights
from ctxext.methods import Spec
from ctxext.models.adapter import MERGE
from ctxext.models.contents import ADAPTER, CONFIG, WEIGHTS, index_name
from ctxext.models.loading import Source, load_config
from ctxext.models.mark import MARK, plain_line
from ctxext.models.rope import is_scaled
from ctxext.models.small import small_model
from ctxext.models.trained import Trained

CARRIED = "carried code"


@dataclass(frozen=True)
class Order:
    """What to export, from where and how.

    Attributes:
        source: a local model folder.
        spec: any methods; frequency methods alone go into a config that any engine reads, where
            the model allows, and all else into code that the folder carries.
        length: L in tokens, the new `max_position_embeddings` unless T is longer.
        out: the new folder; it must not exist, or be empty, unless `force`.
        name: what the user calls the model; for the card.
        hub_id: where on the Hub the folder was fetched from; None for one that was there.
        train_len: T in tokens where the config's is not right.
        own_scaling: whether methods "keep" or "replace" the model's own rope scaling.
        trust_remote_code: whether code that comes with the model may run, and is copied.
        native_only: refuse rather than carry code.
        link: link the weight files instead of copying them.
        config_only: leave the weights out.
        allow_pickle: take weights that are only there as pickles.
        force: replace a folder that is there.
        full: prove it with the model's own weights instead of small random ones.
        gguf: a file for llama.cpp instead of a folder for transformers.
        notes: what a user should know of the source, a line each.
    """

    source: Path
    spec: Spec
    length: int
    out: Path
    name: str = ""
    hub_id: str | None = None
    train_len: int | None = None
    own_scaling: str = "keep"
    trust_remote_code: bool = False
    native_only: bool = False
    link: bool = False
    config_only: bool = False
    allow_pickle: bool = False
    force: bool = False
    full: bool = False
    gguf: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        spec: resolved, with all parameters.
        expression: how the config says it, such as "yarn", or CARRIED.
        files: their names.
        proof: what a fresh process found; None for GGUF, which is read back instead.
        notes: what a user should know about this model with this method, a line each.
        trained: T in tokens, and what it was taken from.
        own_scaling: what became of the model's own rope scaling; None where it has none.
    """

    spec: str
    expression: str
    files: tuple[str, ...]
    proof: Proof | None
    notes: tuple[str, ...]
    trained: Trained
    own_scaling: str | None

    def line(self) -> str:
        """How it was written, and what the proof found, in a few words."""
        how = "with code of its own" if self.expression == CARRIED else f"as {self.expression}"
        if self.proof is None:
            return f"written {how}"
        worst = max(figure.value for figure in self.proof.figures)
        return f"written {how}; a fresh process finds it off by {worst:.1g} at most"

    def to_record(self, out: Path) -> dict[str, Any]:
        """All of it, for JSON."""
        figures = self.proof.figures if self.proof is not None else ()
        return {
            "out": str(out),
            "method": self.spec,
            "expression": self.expression,
            "files": list(self.files),
            "proof": [asdict(figure) for figure in figures],
            "notes": list(self.notes),
            "trained_length": self.trained.tokens,
            "trained_from": self.trained.why,
            "own_scaling": self.own_scaling,
        }


@dataclass(frozen=True)
class _Patched:
    """The model that an order is for, made small, and what the spec meets in it."""

    raw: dict[str, Any]  # its config.json
    config: Any
    small: Any
    fitted: Fitted
    notes: tuple[str, ...]


def export(order: Order) -> Exported:
    """Write a folder that other tools load as the patched model.

    Raises:
        UsageError: a spec, folder or file that does not do; the message says what would.
        UnsupportedModelError: the model cannot take the spec, or be exported with it, or what
            was written is not the patched model.
    """
    check(order)
    beside = _check_adapter(order)
    patched = _examine(order)
    chosen = choose(
        order.source,
        code=order.trust_remote_code,
        allow_pickle=order.allow_pickle,
        weights=not order.config_only,
    )
    fitted = patched.fitted
    anatomy, trained = fitted.anatomy, fitted.trained
    notes = [*order.notes, *beside, *patched.notes]
    if anatomy.changed or not anatomy.layers:  # else no layer sees so far
        notes += reach.note(fitted.longest, trained.tokens, order.length)
    if chosen.weights:
        notes += check_weights(chosen.weights, patched.config, order.trust_remote_code)
    with staged(order.source, order.out, force=order.force) as stage:
        proof = None
        if order.gguf:
            expression = _write_gguf(stage, order, patched)
        else:
            expression = _write_config(stage, order, patched)
            put(chosen, order.source, stage, link=order.link)
            if expression == CARRIED:
                code = order.trust_remote_code
                pin_tokenizer(stage, patched.raw, type(patched.config), code=code)
            proof = _prove(stage, order, fitted.spec, expression == CARRIED)
        facts = Facts(
            public_name(order.name, order.source),
            order.hub_id,
            order.source,
            fitted.spec,
            order.length,
            trained.tokens,
            expression,
            carried=expression == CARRIED,
            weights=not order.config_only,
            latent=is_latent(patched.config),
            gguf=next((path.name for path in stage.glob("*.gguf")), None),
            proof=proof,
            notes=tuple(notes),
            overrides={} if order.gguf or expression == CARRIED else _told(patched, stage),
        )
        write_card(stage, facts)
        files = sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file())
    own = order.own_scaling if is_scaled(patched.config) else None
    found = tuple(files), proof, facts.notes
    return Exported(fitted.spec.full(), expression, *found, trained, own)


def public_name(name: str, folder: Path) -> str:
    """What to call the model in public: of a folder, its name, and not where it is."""
    return folder.resolve().name if not name or os.path.isdir(name) else name


def check(order: Order) -> None:
    """UsageError for options that do not go together, before anything is read."""
    others = [method.name for method in order.spec.methods if method.changes != "frequency"]
    for option, on in (("--native-only", order.native_only), ("--format gguf", order.gguf)):
        if on and others:
            can = [c.name for c in methods.REGISTRY.classes() if c.changes == "frequency"]
            raise UsageError(
                f"{str(order.spec)!r} cannot be expressed in a config, since "
                f"{' and '.join(others)} changes attention itself: leave out {option}, or take "
                f"of {', '.join(can)}"
            )
        if on and (at_hand := ", ".join(order.spec.at_hand)):
            raise UsageError(
                f"{str(order.spec)!r} cannot be expressed in a config, since {at_hand} goes by the "
                f"length of each sequence: leave out {option}, or give a number in place of auto"
            )
        if on and (by_layer := ", ".join(order.spec.by_layer)):
            raise UsageError(
                f"{str(order.spec)!r} cannot be expressed in a config, since {by_layer} has a "
                f"factor for each layer: leave out {option}, or give factor in place of layers"
            )
    others += [*order.spec.at_hand, *order.spec.by_layer]
    if order.config_only and others:
        raise UsageError(
            f"{str(order.spec)!r} needs code that lies beside its weights: use --link instead of "
            "--config-only"
        )
    needless = [
        (order.config_only, order.link, "--config-only leaves out the weights that --link links"),
        (order.config_only, order.full, "--config-only has no weights for --verify full"),
        (order.gguf, order.config_only, "--format gguf writes weights: leave out --config-only"),
        (order.gguf, order.link, "--format gguf writes its weights anew: leave out --link"),
        (order.gguf, order.full, "--format gguf is read back, and takes no --verify full"),
    ]
    for one, other, message in needless:
        if one and other:
            raise UsageError(message)


def _check_adapter(order: Order) -> list[str]:
    """What becomes of an adapter beside a model; UsageError for one alone, or that is loaded."""
    folder = order.source
    if not os.path.lexists(folder / ADAPTER):
        return []
    if not os.path.lexists(folder / CONFIG) or not any(
        os.path.lexists(folder / name)
        for weights in WEIGHTS
        for name in (weights, index_name(weights))
    ):
        raise UsageError(
            f"{str(folder)!r} holds a PEFT adapter ({ADAPTER}) and no whole model: merge it first "
            f"({MERGE}), and export the result"
        )
    if order.full:
        raise UsageError(
            f"{str(folder)!r} has a PEFT adapter ({ADAPTER}) beside its weights, which would be "
            "loaded with them: leave out --verify full, or take it out of the folder"
        )
    return [
        f"the PEFT adapter beside the weights ({ADAPTER}) is left out: to have it in, merge it "
        f"first ({MERGE})"
    ]


def _examine(order: Order) -> _Patched:
    """Read the config, and learn from a small model of it what the spec meets."""
    trust = order.trust_remote_code
    raw = read_config(order.source)
    mark = raw.pop(MARK, None)
    if not trust:
        raw.pop("auto_map", None)
    source = Source(os.path.realpath(order.source), trust_remote_code=trust)
    config = load_config(replace(source, train_len=order.train_len))
    config.name_or_path = str(order.source)
    small, _ = small_model(config, trust_remote_code=trust)
    fitted = fit(small, order.spec, order.length, order.train_len, order.own_scaling)
    notes = () if mark is None else (plain_line(order.name or str(order.source), mark),)
    notes = (*fitted.anatomy.notes(fitted.spec), *notes)
    return _Patched(raw, config, small, fitted, notes)


def _write_config(stage: Path, order: Order, patched: _Patched) -> str:
    """Write the config, and code where no stock config does; how."""
    trust, fitted, length = order.trust_remote_code, patched.fitted, order.length
    raw, config, spec = patched.raw, patched.config, fitted.spec
    try:
        return write_native(
            stage, raw, config, fitted.anatomy, spec, length, trust_remote_code=trust
        )
    except UnsupportedModelError as error:
        if order.native_only or order.config_only:
            option = "--native-only" if order.native_only else "--config-only"
            raise UnsupportedModelError(
                f"{error}: leave out {option} for a folder that carries its own code"
            ) from error
    classes = type(patched.small), type(config)
    write_carried(stage, raw, *classes, spec, length, fitted.trained.tokens, order.own_scaling)
    return CARRIED


def _told(patched: _Patched, stage: Path) -> dict[str, Any]:
    """What engines that load the source's own config are told in place of the one written."""
    return overrides(patched.raw, read_config(stage))


def _write_gguf(stage: Path, order: Order, patched: _Patched) -> str:
    """Write the GGUF file; how it says the spec."""
    from ctxext.export.gguf import write_gguf

    config, fitted = patched.config, patched.fitted
    freqs, spec = fitted.only_axis(config.model_type), fitted.spec
    title = f"{public_name(order.name, order.source)}-{spec}"
    name = f"{re.sub('[^A-Za-z0-9._=-]+', '-', title).strip('-.')[:120]}.gguf"
    longest = max(order.length, fitted.trained.tokens)
    return write_gguf(order.source, stage / name, config, spec, freqs, longest, order.hub_id)


def _prove(stage: Path, order: Order, spec: Spec, carried: bool) -> Proof:
    return prove(
        order.source,
        stage,
        spec,
        order.length,
        train_len=order.train_len,
        own_scaling=order.own_scaling,
        trust_remote_code=order.trust_remote_code,
        carried=carried,
        full=order.full,
    )
