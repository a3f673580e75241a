"""`ctxext tune --method longrope`: λ by the pair, searched for from what other methods make."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_eval import Ran, Run, folders, here, letters, scored  # noqa: F401
from test_tune import Drawn, Given

from ctxext.advise.tune.lambdas import FIRST, Lambdas, asked
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
