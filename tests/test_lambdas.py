"""`ctxext tune`: λ by the pair for `longrope`, and factors by layer for `pi:layers`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_eval import Ran, Run, folders, here, letters, scored  # noqa: F401
from test_tune import Drawn, Given

from ctxext.advise.tune.by_layer import Layers
from ctxext.advise.tune.by_layer import asked as asked_by_layer
from ctxext.advise.tune.curves import FIRST
from ctxext.advise.tune.lambdas import Lambdas, asked
from ctxext.errors import UsageError
from ctxext.methods import parse
from ctxext.methods.base import Rotary, Span

SPAN, PAIRS = Span(512, 4096), 32
ROTARY = Rotary(tuple(1e4 ** (-i / PAIRS) for i in range(PAIRS)), 1e4, 512)


def scales(spec: Any) -> list[float]:
    return spec.resolve(SPAN).scales(ROTARY)


def test_every_point_is_a_file_with_rising_factors(tmp_path: Path) -> None:
    space = Lambdas(parse("longrope+logn"), SPAN, ROTARY, tmp_path)
    for seed in range(30):
        spec = space.draw(Drawn(seed))
        found = scales(spec)
        assert found == sorted(found)
        assert 1 <= found[0] <= found[-1] <= 16.01  # twice what L needs, and a rounding
        assert str(spec).endswith("+logn")
        name = str(spec).partition("@")[2].partition(",")[0]
        assert json.loads(Path(name).read_text()) == {
            "short_factor": [1.0] * PAIRS,
            "long_factor": found,
        }


def test_the_guesses_are_points(tmp_path: Path) -> None:
    """λ of other methods are the space's at the pairs that are drawn, and near it between them."""
    space = Lambdas(parse("longrope"), SPAN, ROTARY, tmp_path)
    guesses = list(space.defaults())
    assert [str(one.spec) for one in guesses][:4] == ["rope", "pi", "ntk", "yarn"]
    for guess in guesses[1:4]:
        point = space.draw(Given(guess.drawn))
        ratios = [a / b for a, b in zip(scales(point), scales(guess.spec), strict=True)]
        assert ratios[0] == pytest.approx(1, rel=1e-3)
        assert ratios[-1] == pytest.approx(1, rel=1e-3)
        assert max(abs(math.log(ratio)) for ratio in ratios) < 0.4  # of yarn's ramp
        wanted = guess.spec.resolve(SPAN).attention_factor()
        assert point.resolve(SPAN).attention_factor() == pytest.approx(wanted, rel=1e-3)
    others = list(space.mutants())
    assert len(guesses) + len(others) == FIRST
    assert others == list(space.mutants())
    assert all(scales(space.draw(Given(drawn))) for drawn in others)


def test_what_is_given_stays(tmp_path: Path) -> None:
    space = Lambdas(parse("longrope:attention=1.25"), SPAN, ROTARY, tmp_path)
    assert space.draw(Drawn(1)).attention_factor() == 1.25
    assert all("attention" not in one.drawn for one in space.defaults())


def test_searched_for_alone(tmp_path: Path) -> None:
    assert asked(["ntk", "longrope:factors=@x.json"]) is None
    assert str(asked(["longrope+logn"])) == "longrope+logn"
    with pytest.raises(UsageError, match=r"searched for by themselves: give --method 'longrope'"):
        asked(["longrope", "ntk"])
    with pytest.raises(UsageError, match="give it no comma nor plus"):
        Lambdas(parse("longrope"), SPAN, ROTARY, tmp_path / "a,b")


def tune(run: Run) -> Ran:
    given = ["--model", "plain", "--data", "t.txt", "--limit", 1, "--out", "out", "--len", 64]
    return run("tune", *given, "--method", "longrope", "--trials", 2, "--tax", 9, "--json")


def test_a_search(run: Run, here: Path, scored: list[int]) -> None:  # noqa: F811
    """The guesses are tried as they are, and a search that is begun again reads nothing anew."""
    ran = tune(run)
    assert ran.code == 0, ran.err
    found = sorted(ran.records, key=lambda record: record["trial"])
    guesses = [record["method"].partition(":")[0] for record in found if record["default"]]
    assert guesses[:4] == ["rope", "pi", "ntk", "yarn"]
    drawn = [record for record in found if not record["default"]]
    assert len(drawn) == 2
    for record in drawn:
        assert record["method"].startswith("longrope:factors=@out/factors/")
        assert record["value"] > 0
        parse(record["method"]).resolve(Span(32, 64))
    count = sum(scored)
    assert tune(run).records == ran.records
    assert sum(scored) == count


# Factors by layer --------------------------------------------------------------------------------


def test_the_space_of_factors_by_layer() -> None:
    span, found = Span(512, 4096), asked_by_layer(["pi : layers + logn"])
    assert found is not None
    space = Layers(found, span, 30)
    defaults, others = list(space.defaults()), list(space.mutants())
    assert [str(one.spec) for one in defaults] == ["rope", "pi+logn"]
    assert len(defaults) + len(others) == FIRST
    assert others == list(space.mutants())
    points = [space.draw(Given(drawn)) for drawn in (defaults[1].drawn, others[3])]
    assert str(points[0]) == f"pi:layers={'/'.join(['8'] * 30)}+logn"
    falling = str(points[1].methods[0]).partition("=")[2].split("/")
    assert [float(falling[0]), float(falling[-1])] == [8, 1]
    assert sorted(map(float, falling), reverse=True) == [*map(float, falling)]
    for seed in range(20):
        (method, _) = space.draw(Drawn(seed)).resolve(span).methods
        factors = [method.at_layer(layer).k for layer in range(30)]
        assert min(factors) >= 1
        assert max(factors) <= 16.01  # twice what L needs, and a rounding


def test_factors_by_layer_are_searched_for_alone() -> None:
    assert asked_by_layer(["pi", "longrope", "pi:layers=4/1.5"]) is None
    found = asked_by_layer(["logn+yarn:beta_fast=16,layers"])
    assert found is not None
    assert (str(found.spec), found.place) == ("logn+yarn:beta_fast=16", 1)
    for texts, said in (
        (["pi:layers", "ntk"], "searched for by themselves: give --method 'pi:layers' alone"),
        (["pi:layers+yarn:layers"], "searched for by themselves"),
        (["rerope:layers"], "rerope has no factors by layer"),
        (["pi:layers,factor=3"], "no factors by layer"),
        (["pi:layers+rerope"], "do not go with rerope"),
    ):
        with pytest.raises(UsageError, match=said):
            asked_by_layer(texts)


def test_a_search_by_layer(run: Run, here: Path, scored: list[int]) -> None:  # noqa: F811
    """One that is begun again reads nothing anew."""

    def tune() -> Ran:
        given = ["--model", "plain", "--data", "t.txt", "--limit", 1, "--out", "out", "--len", 64]
        return run("tune", *given, "--method", "pi:layers", "--trials", 2, "--tax", 9, "--json")

    ran = tune()
    assert ran.code == 0, ran.err
    found = sorted(ran.records, key=lambda record: record["trial"])
    assert [record["method"] for record in found] == [
        *("rope", "pi:factor=2"),
        *("pi:layers=1.414/2", "pi:layers=2/1.414"),
    ]
    count = sum(scored)
    assert json.dumps(tune().records) == json.dumps(ran.records)
    assert sum(scored) == count
