"""The regression gate: what each method gains and costs on the shipped models stays as pinned."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import gate
import pytest
from filelock import FileLock

from ctxext import patches

PINS = json.loads(gate.PINS.read_text(encoding="utf-8"))
PAIRS = [(name, pair) for name, pairs in gate.COMPARISONS.items() for pair in pairs]
KEYS = [(name, spec) for name, specs in gate.RETRIEVAL.items() for spec in specs]
REPIN = "run `make pins`"
reader = functools.cache(gate.Reader)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def read_once(
    folder: Path, name: str, spec: str, length: int, repeated: bool
) -> dict[str, gate.Reading]:
    """A reading, made by the first process of this run that asks for it."""
    key = hashlib.sha256(repr((name, spec, length, repeated)).encode()).hexdigest()
    path = folder / f"reading-{key}.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_text(json.dumps(reader(name).read(spec, length, repeated)))
    found = json.loads(path.read_text())
    return {document: gate.Reading(*values) for document, values in found.items()}


def of_these_weights(name: str) -> dict[str, Any]:
    """The model's pins; skips where they are another model's, of which one test tells."""
    if PINS.get(name, {}).get("weights") != gate.weights(name):
        pytest.skip(f"no pins of these weights of {name}: {REPIN}")
    return PINS[name]


@pytest.mark.parametrize("name", gate.COMPARISONS)
def test_the_pins_are_of_the_shipped_weights(name: str) -> None:
    found, pinned = gate.weights(name), PINS.get(name, {}).get("weights")
    assert found == pinned, f"{name}: the weights are {found}, the pins of {pinned}: {REPIN}"


@pytest.mark.skipif(not (3, 10) <= sys.version_info < (3, 14), reason="another Python's texts")
@pytest.mark.parametrize("name", gate.COMPARISONS)
def test_some_windows_hold_the_pinned_tokens(name: str) -> None:
    """Else a tokenizer or a text that went wrong would turn the tight tolerance into the wide."""
    found, pinned = reader(name).texts(), of_these_weights(name)["windows"]
    same = [document for document in found if found[document] == pinned.get(document)]
    assert same, f"{name}: none of {sorted(pinned)} is as pinned: {REPIN}"


@pytest.mark.parametrize("name", gate.COMPARISONS)
def test_the_pins_are_those_that_the_gate_asks_for(name: str) -> None:
    asked = {str(pair) for pair in gate.COMPARISONS[name]}
    assert asked == PINS[name]["differences"].keys(), REPIN
    assert set(gate.RETRIEVAL[name]) == PINS[name]["keys"].keys(), REPIN


def test_every_method_has_a_pin() -> None:
    specs = [spec for _, pair in PAIRS for spec in (pair.spec, pair.other)]
    pinned = {method.name for spec in specs for method in patches.parse(spec).methods}
    missing = set(patches.names()) - pinned - gate.LEFT_OUT.keys()
    assert not missing, f"add {sorted(missing)} to BEYOND in tests/regression/gate.py, and {REPIN}"
    assert not pinned & gate.LEFT_OUT.keys()


@pytest.mark.parametrize(("name", "pair"), [(n, pair) for n, pair in PAIRS if pair.better], ids=str)
def test_a_published_ordering_is_pinned_as_published(name: str, pair: gate.Comparison) -> None:
    pin = of_these_weights(name)["differences"][str(pair)]
    assert pin["nll"]["mean"] < 0 < pin["accuracy"]["mean"]


@pytest.mark.parametrize(("name", "pair"), PAIRS, ids=str)
def test_a_difference_is_as_pinned(name: str, pair: gate.Comparison, folder: Path) -> None:
    pins = of_these_weights(name)
    texts = reader(name).texts()
    same = {document for document in texts if texts[document] == pins["windows"].get(document)}
    found = gate.differences(pair, functools.partial(read_once, folder, name))
    pin = pins["differences"][str(pair)]
    for metric in gate.METRICS:
        if line := gate.moved(pair, metric, pin[metric], found[metric], same):
            pytest.fail(f"{name}: {line}", pytrace=False)


@pytest.mark.parametrize(("name", "spec"), KEYS)
def test_as_many_pass_keys_are_found_as_pinned(name: str, spec: str) -> None:
    pinned, found = of_these_weights(name)["keys"][spec], reader(name).keys_found(spec)
    assert found == pinned, f"{name}: {spec} finds {found} of 5 keys, pinned are {pinned}"


def figure(*windows: float) -> gate.Figure:
    """A figure of windows named by their numbers, with a standard error of 0.01."""
    named = {str(i): x for i, x in enumerate(windows)}
    return {"mean": sum(windows) / len(windows), "stderr": 0.01, "windows": named}


def test_only_the_pinned_tokens_count_where_there_are_some() -> None:
    pair, most = gate.Comparison("ntk", "rope"), gate.DRIFT
    pin, far = figure(1.0, 2.0), figure(1.0, 9.0)
    assert gate.moved(pair, "nll", pin, far, {"0"}) is None
    assert gate.moved(pair, "nll", pin, figure(1 + 0.9 * most, 9.0), {"0"}) is None
    line = gate.moved(pair, "nll", pin, figure(1 + 1.1 * most, 9.0), {"0"})
    assert line is not None
    assert re.search(r"nll of ntk − rope at 4096 moved from \+1\.0+ to \+1\.0", line)


def test_another_text_may_differ_by_so_many_standard_errors() -> None:
    """Both texts have two windows and an error of 0.01, so that their difference has √2·0.01."""
    pair, most = gate.Comparison("ntk", "rope"), gate.ERRORS * 2**0.5 * 0.01
    pin = figure(1.0, 2.0)
    assert gate.moved(pair, "nll", pin, figure(1 + 0.9 * most, 2 + 0.9 * most), ()) is None
    assert gate.moved(pair, "nll", pin, figure(1 + 1.2 * most, 2 + 1.2 * most), ()) is not None
