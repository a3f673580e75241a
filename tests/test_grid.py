"""Grid files: what each key means, and what is refused."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest

from ctxext.cli.eval import evaluate
from ctxext.errors import UsageError
from ctxext.models.loading import Source
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.grid import read_grid
from ctxext.request.options import OPTIONS

pytestmark = pytest.mark.quick

BASE = EvaluationRequest(Source("tiny", device="cpu"), (), (), (), limit=7, out=Path("here"))
#: A list of two lists of two lists …: 2^40 of them, were they told apart.
ENDLESS = "&l0 [1], " + ", ".join(f"&l{n} [*l{n - 1}, *l{n - 1}]" for n in range(1, 41))


def read(tmp_path: Path, text: str) -> tuple[EvaluationRequest, ...]:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return read_grid(path, BASE)


def test_every_key(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        models: [tiny, {model: org/name, revision: v1, dtype: bfloat16, train-len: 4k}]
        methods: [ntk, "rerope:window=64+logn", ntk]
        lengths: [4k, 512]
        tasks: [ppl, "passkey:samples=2"]
        seeds: [3, 1]
        data: [a.txt, b.txt]
        limit: 5
        tokens: 64k
        """,
    )
    assert [(r.source.name, r.data) for r in found] == [
        ("tiny", "a.txt"),
        ("tiny", "b.txt"),
        ("org/name", "a.txt"),
        ("org/name", "b.txt"),
    ]
    other = found[2].source
    assert (other.revision, other.dtype, other.train_len) == ("v1", "bfloat16", 4096)
    for request in found:
        assert list(map(str, request.methods)) == ["rope", "ntk", "rerope:window=64+logn"]
        assert request.lengths == (512, 4096)
        assert list(map(str, request.tasks)) == ["ppl", "passkey:samples=2"]
        assert (request.seeds, request.limit, request.tokens) == ((3, 1), 5, 65536)
        assert (request.source.device, request.out) == ("cpu", Path("here"))


def test_how_a_model_is_run_is_said_for_all_or_for_one(tmp_path: Path) -> None:
    plain, own = read(
        tmp_path,
        """
        models: [a/b, {model: c/d, device: cuda, load-in: 4bit, attn: eager, own-scaling: keep}]
        lengths: 512
        attn: sdpa
        dtype: float16
        own-scaling: replace
        batch-size: 3
        """,
    )
    assert plain.batch_size == own.batch_size == 3
    assert plain.source == replace(
        BASE.source, name="a/b", attn="sdpa", dtype="float16", own_scaling="replace"
    )
    assert own.source == replace(
        plain.source, name="c/d", device="cuda", load_in="4bit", attn="eager", own_scaling="keep"
    )


def test_every_option_of_eval_but_those_of_the_run_has_its_key() -> None:
    """What may run code of others is said on the command line alone."""
    options = {name.replace("_", "-") for name in inspect.signature(evaluate).parameters}
    run = {"context", "grid", "launcher", "out", "force", "dry-run", "as-json"}
    run |= {"trust-remote-code"}
    assert options - run == {"length" if name == "len" else name for name in OPTIONS}


def test_one_value_needs_no_list_and_the_rest_has_defaults(tmp_path: Path) -> None:
    (found,) = read(tmp_path, "lengths: 512\nmethods: ntk")
    assert found.source == BASE.source
    assert found.lengths == (512,)
    assert list(map(str, found.tasks)) == ["ppl"]
    assert (found.seeds, found.data, found.limit, found.tokens) == ((0,), None, 7, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methods: ntk", "lengths are missing"),
        ("lengths: 512\nmethod: ntk", "unknown key 'method'"),
        ("lengths: [512, 0]", "malformed length '0'"),
        ("lengths: 1.5", "bad value '1.5' in lengths"),
        ("lengths: true", "bad value 'True' in lengths"),
        ("lengths: []", "lengths is empty"),
        ("lengths: 512\nmethods: nkt", "did you mean 'ntk'"),
        ("lengths: 512\nseeds: [-1]", "bad value -1 for --seed"),
        ("lengths: 512\nlimit: [1, 2]", "limit has 2 values"),
        ("lengths: 512\nlimit: 0", "bad value 0 for limit"),
        ("lengths: 512\nmodels: {name: x}", "unknown key 'name'"),
        ("lengths: 512\nmodels: {dtype: float32}", "a model has no name"),
        ("lengths: 512\nmodels: []", "models is empty"),
        ("lengths: 512\nattn: flahs", "did you mean 'flash'"),
        ("lengths: 512\nbatch-size: 0", "bad value 0 for batch-size"),
        ("lengths: 512\ndevice-map: auto", "leave out --device cpu"),
        ("lengths: 512\nmodels: {model: x, own-scaling: no}", "bad value 'False' in own-scaling"),
        ("lengths: 512\nlengths: 4k", "lengths is there twice"),
        (f"lengths: 512\nseeds: 0x{'f' * 5000}", "bad value '…' in seeds"),
        (f"lengths: 512\n? 0x{'f' * 5000}\n: 1", "unknown key '…'"),
        (f"lengths: 512\nmethods: [&list [{ENDLESS}]]", "bad value '…' in methods"),
        ("- lengths", "is no mapping"),
        ("lengths: [512", "cannot read the grid"),
        ("lengths: !!python/object:os.system x", "cannot read the grid"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)
    assert "grid.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path, Path("a\0b")):
        with pytest.raises(UsageError, match="cannot read the grid"):
            read_grid(path, BASE)
