"""The variants that scripts/train_tiny.py trains beside the shipped models."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import typer

import ctxext
from ctxext import patches
from ctxext.engine.watch import watching
from ctxext.errors import UnsupportedModelError
from ctxext.methods.base import Span
from ctxext.models.aliases import ASSETS, SHIPPED
from ctxext.records import Record, Store
from ctxext.tasks.windows import cut

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
train: Any = importlib.import_module("train_tiny")
table: Any = importlib.import_module("lab_table")
lab: Any = importlib.import_module("lab")
entropy: Any = importlib.import_module("lab_entropy")
LAB = [name for name in train.VARIANTS if name not in SHIPPED]
TEXT = (ROOT / "LICENSE").read_text(encoding="utf-8") * 20


def fresh(name: str) -> Any:
    """A variant with its first weights, not patched."""
    torch.manual_seed(0)
    variant = train.VARIANTS[name]
    return variant.model(train.build_config(variant)).eval()


def words(n: int = 300) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 2048, (1, n)))


def attention(name: str, layer: int, x: torch.Tensor) -> tuple[Any, Any, Any, torch.Tensor]:
    """Query, key and value [heads, n, d] of a layer as it projects them, and what it gives."""
    model = fresh(name)
    site = model.model.layers[layer].self_attn
    n = x.shape[1]
    tables = model.model.rotary_emb(x, torch.arange(n)[None])
    mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
    heads = [p(x).view(n, 3, 64).transpose(0, 1) for p in (site.q_proj, site.k_proj, site.v_proj)]
    apply = sys.modules[transformers.LlamaForCausalLM.__module__].apply_rotary_pos_emb
    q, k = (y[0] for y in apply(heads[0][None], heads[1][None], *tables))
    return q, k, heads[2], site(x, position_embeddings=tables, attention_mask=mask)[0][0]


def out(name: str, layer: int, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    site = fresh(name).model.layers[layer].self_attn
    given: torch.Tensor = site.o_proj((weights @ value).transpose(0, 1).flatten(1))
    return given


@pytest.mark.parametrize("name", LAB)
def test_a_variant_begins_as_tiny_does(name: str, tmp_path: Path) -> None:
    model, tiny = fresh(name), fresh("tiny")
    assert model.state_dict().keys() == tiny.state_dict().keys()
    assert all(x.equal(tiny.state_dict()[key]) for key, x in model.state_dict().items())
    own, same = (m(words()).logits for m in (model, tiny))
    assert not torch.allclose(own, same, atol=1e-2)
    other = words()
    other[:, -1] = 1
    assert torch.equal(model(other).logits[:, :-1], own[:, :-1])
    model.save_pretrained(tmp_path)
    loaded, _ = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, trust_remote_code=True, attn_implementation="sdpa", output_loading_info=True
    )
    assert torch.equal(loaded(words()).logits, own)


@torch.no_grad()
def test_keys_have_one_length_and_queries_their_own() -> None:
    x = torch.randn(1, 40, 192, generator=torch.manual_seed(1))
    query, key, value, given = attention("key-norm", 1, x)
    plain = fresh("tiny").model.layers[1].self_attn.q_proj(x).view(40, 3, 64).transpose(0, 1)
    torch.testing.assert_close(query.norm(dim=-1), plain.norm(dim=-1))
    unit = key / key.norm(dim=-1, keepdim=True)
    scores = (query @ unit.mT).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(given, out("key-norm", 1, scores.softmax(-1), value))


@pytest.mark.parametrize("n", [40, 1100])
@pytest.mark.parametrize("name", ["relu2", "relu2-norm"])
@torch.no_grad()
def test_relu2_is_as_published(name: str, n: int) -> None:
    x = torch.randn(1, n, 192, generator=torch.manual_seed(1))
    query, key, value, given = attention(name, 1, x)
    weights = (query @ key.mT).div(8).tril().relu().square()
    weights = weights / (512 if name == "relu2" else weights.sum(-1, keepdim=True).clamp(min=1e-9))
    torch.testing.assert_close(given, out(name, 1, weights, value), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "full"), [("hwfa", 3), ("hwfa2", 2)])
@torch.no_grad()
def test_one_layer_sees_all_and_it_alone_is_scaled_by_log_n(name: str, full: int) -> None:
    model = fresh(name)
    ids, far = words(700), words(700)
    far[:, 0] = 1
    seen: list[list[bool]] = [[], []]
    for layer, block in enumerate(model.model.layers):
        given: list[torch.Tensor] = []
        hook = block.self_attn.register_forward_hook(lambda m, a, o, g=given: g.append(o[0]))
        model(ids)
        model(far)
        with ctxext.patched(model, "logn:clip=false", 700):
            model(ids)
        hook.remove()
        reach = (given[0] != given[1]).any(-1)[0].nonzero().max().item()
        seen[0].append(reach == 699 if layer >= full else reach == 127 * (layer + 1))
        if layer <= full:
            seen[1].append(torch.equal(given[0], given[-1]) == (layer < full))
    assert seen == [[True] * 4, [True] * (full + 1)]
    rotated = [bool(block.self_attn.use_rope) for block in model.model.layers]
    assert rotated == [name == "hwfa2" or layer != full for layer in range(4)]


def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train.tokenizers.Tokenizer.from_file(str(ASSETS / "tiny" / "tokenizer.json"))
    ids = np.array(tokenizer.encode(TEXT).ids, np.uint16)
    kinds = ("code", "books", "held_out")
    corpus = train.Corpus(tokenizer, dict.fromkeys(kinds, ids), dict.fromkeys(kinds, TEXT), {})

    def build(books: Path, work: Path) -> Any:
        work.mkdir(parents=True, exist_ok=True)
        return corpus

    monkeypatch.setattr(train, "build_corpus", build)
    monkeypatch.setattr(train, "check", lambda *_: {})
    monkeypatch.setattr(train, "PHASES", (train.Phase(0, 1, 0.5, 0.5, 0.0, 0.0),))
    handlers: list[Any] = []
    monkeypatch.setattr(train.signal, "signal", lambda _, handler: handlers.append(handler))

    def run(folder: str) -> None:
        train.main(ROOT, "key-norm", tmp_path / folder / "out", tmp_path / folder, 6 * 512,
                   threads=torch.get_num_threads())  # fmt: skip

    run("whole")
    steps, step = [], train.train_step

    def stopped(*given: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            handlers[-1](signal.SIGTERM, None)
        return step(*given)

    monkeypatch.setattr(train, "train_step", stopped)
    with pytest.raises(typer.Exit) as stop:
        run("halves")
    assert stop.value.exit_code == 143
    assert not (tmp_path / "halves" / "out").exists()
    run("halves")
    assert len(steps) == 6
    files = [tmp_path / folder / "out" / "model.safetensors" for folder in ("whole", "halves")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("spec", ["rerope", "window", "entropy-cap", "ntk+entropy-cap"])
@pytest.mark.parametrize("name", ["relu2", "relu2-norm"])
def test_what_rests_on_softmax_is_refused_where_attention_is_another(name: str, spec: str) -> None:
    model = fresh(name)
    with pytest.raises(UnsupportedModelError, match="'relu2' is not softmax"):
        ctxext.patch(model, spec, 1024)
    assert model.config._attn_implementation == "relu2"


@pytest.mark.parametrize("name", ["relu2", "relu2-norm"])
@torch.no_grad()
def test_relu2_takes_what_changes_queries_and_keys_alone(name: str) -> None:
    model, given = fresh(name), {}
    for spec in ("rope", "ntk", "logn"):
        with ctxext.patched(model, spec, 700):
            given[spec] = model(words(700)).logits
    assert not torch.allclose(given["ntk"], given["rope"], atol=1e-3)
    # where weights add up to 1, what multiplies a query's scores cancels: nothing sharpens them
    assert torch.allclose(given["logn"], given["rope"], atol=1e-4) == (name == "relu2-norm")


@torch.no_grad()
def test_another_attention_that_is_softmax_is_taken() -> None:
    transformers.AttentionInterface.register("other", transformers.AttentionInterface()["sdpa"])
    given, model = [], fresh("tiny")
    for attention in ("sdpa", "other"):
        model.config._attn_implementation = attention
        with ctxext.patched(model, "rerope", 700):
            given.append(model(words(700)).logits)
    assert torch.equal(*given)


@torch.no_grad()
def test_a_rule_is_for_layers_without_positions_too() -> None:
    model = fresh("hwfa")
    plain = model(words(900)).logits
    with ctxext.patched(model, "entropy-cap", 900):
        given = model(words(900)).logits
    assert torch.equal(given[:, :512], plain[:, :512])
    assert not torch.allclose(given[:, 512:], plain[:, 512:], atol=1e-4)


# What is made of the records --------------------------------------------------------------------


def record(place: Any, value: float, **facts: Any) -> Record:
    n, hits = [1000] * 4, [round(1000 * value) + extra for extra in (-30, -10, 10, 30)]
    tail = place.task == table.TAIL
    return {
        "model": table.BY_NAME[place.model].known_as,
        "model_sha256": "w",
        "requested": str(patches.parse(place.spec)),
        "task": place.task,
        "metric": "perplexity" if tail else "accuracy",
        "length": place.length,
        "value": 9.0 if tail else value,
        "stderr": 0.01,
        "status": "ok",
        "dtype": "float32",
        "limit": None,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2"},
        "device": "cpu",
        "data": {"name": "stdlib", "sha256": "a", "tokens": table.TOKENS.get(place.task, 0)},
        "by_window": {"n": n, "nll": [2000.0] * 4, "hits": hits},
        **facts,
    }


def all_records(names: tuple[str, ...] = tuple(table.BY_NAME)) -> list[Record]:
    return [record(p, 0.4) for name in names for p in table.places(table.BY_NAME[name])]


def test_the_laboratory_s_models_are_those_that_are_trained() -> None:
    names = {model.folder.name for model in table.MODELS}
    assert names == set(train.VARIANTS)
    for model in table.MODELS:
        assert train.VARIANTS[model.folder.name].method in (model.plain, *train.SHIPPED.parts) or (
            model.name == "tiny-inv-leaky"
        )
        for place in table.places(model):
            patches.parse(place.spec).resolve(Span(512, place.length))


def test_claims_are_of_what_is_measured_and_hold_for_the_published_figures() -> None:
    for claim in table.claims():
        for length in claim.lengths:
            ends = [table.Place(*x, claim.task, length) for x in (claim.above, claim.below)]
            for end in ends:
                assert end in list(table.places(table.BY_NAME[end.model]))
            figures = claim.published or (50.0, 40.0)
            found = table.Found([record(x, y / 100) for x, y in zip(ends, figures, strict=True)])
            assert table.verdict(found, claim, length).startswith("held (+")
            swapped = [record(x, y / 100) for x, y in zip(ends, figures[::-1], strict=True)]
            assert "**not held** (-" in table.verdict(table.Found(swapped), claim, length)
            assert table.verdict(table.Found(swapped[:1]), claim, length) == "–"


def test_a_difference_within_its_error_is_said_to_be() -> None:
    claim = table.claims()[1]
    ends = [table.Place(*x, claim.task, 4096) for x in (claim.above, claim.below)]
    ours, theirs = record(ends[0], 0.4), record(ends[1], 0.4)
    ours["by_window"]["hits"] = [380, 420, 440, 364]
    ours["value"] = 0.401
    said = table.verdict(table.Found([ours, theirs]), claim, 4096)
    error = 100 * np.std(np.array([380, 420, 440, 364]) - [370, 390, 410, 430], ddof=1) / 2000
    assert said == f"held (+0.10 ± {error:.2f}, within two standard errors of 0)"


def test_the_table_names_what_is_not_trained() -> None:
    found = table.Found(all_records(("tiny", "hwfa", "relu2-n")))
    text = table.summary(found)
    assert "| key-norm | not trained, or not measured |" in text
    assert "| hwfa | `logn:clip=false` | 40.00 | 40.00 | 40.00 | 40.00 | 40.00 | 2.197 |" in text
    assert "| hwfa | `entropy-cap+logn:clip=false` | 40.00 | 40.00 | 40.00 | – | – |" in text
    assert "relu2-n (w)" in lab.document(found)
    strange = [record(p, 0.9, created="2027", **facts)
               for p in table.places(table.BY_NAME["hwfa"])
               for facts in ({"status": "oom"}, {"dtype": "float16"}, {"limit": 3}, {"task": "ppl"},
                             {"model": "hwfa"})]  # fmt: skip
    assert table.summary(table.Found(all_records(("tiny", "hwfa", "relu2-n")) + strange)) == text


def test_what_the_seed_s_table_has_is_taken_over_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "OUT", tmp_path)
    monkeypatch.setattr(lab, "SEED", ROOT / "results" / "seed-table")
    lab.adopt()
    records, problems = Store(tmp_path).read_all()
    assert not problems
    found = table.Found(records)
    assert len(found.records) == len(records) > 30
    assert found.at(table.Place("tiny-logn", "logn:clip=false", "acc-repeat", 16384)) is not None
    lab.adopt()
    assert len(Store(tmp_path).read_all()[0]) == len(records)


def test_only_what_has_weights_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "OUT", tmp_path)
    lab.main(untrained=True)
    assert capsys.readouterr().out.split() == LAB
    fresh("relu2").save_pretrained(tmp_path / "relu2")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "relu2" / file).write_bytes((ASSETS / "tiny" / file).read_bytes())
    asked = {
        (r.source.name, str(spec), str(task), length)
        for r in lab.requests()
        for spec in r.methods
        for task in r.tasks
        for length in r.lengths
    }
    names = (*SHIPPED, "relu2", "relu2-n")
    wanted = {(table.BY_NAME[n].known_as, str(patches.parse(p.spec)), p.task, p.length)
              for n in names for p in table.places(table.BY_NAME[n])}  # fmt: skip
    assert wanted <= asked
    assert {name for name, *_ in asked} == {table.BY_NAME[n].known_as for n in names}
    own = next(r.source.held.model for r in lab.requests() if r.source.held)
    model = fresh("relu2")
    assert model.config.relu2_length == 512
    model.config.relu2_length = 300
    assert torch.equal(own(words(300)).logits, model(words(300)).logits)


@torch.no_grad()
def test_the_entropy_of_relu2_is_that_of_its_weights_over_their_sum() -> None:
    ids = words(700)
    model = fresh("relu2")
    found = entropy.measure_relu2(model, cut(ids[0], 700, None, 1))
    assert found.nats.shape == (4, 700)
    x = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    query, key, *_ = attention("relu2", 0, x)
    shares = (query @ key.mT).tril().relu().square()
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
    naive = -(shares * shares.clamp(min=1e-30).log()).sum(-1).mean(0)
    torch.testing.assert_close(torch.from_numpy(found.nats[0]).float(), naive, atol=1e-4, rtol=1e-4)
    assert found.ceiling[0, -1] == pytest.approx(np.log(700))


def test_entropy_is_measured_once_for_weights_and_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "OUT", tmp_path)
    for name, value in (("LENGTH", 1024), ("WINDOWS", 1), ("specs", lambda model: [model.plain])):
        monkeypatch.setattr(entropy, name, value)
    for name in ("tiny", "tiny-logn"):
        entropy.keep(table.BY_NAME[name], lab.source(table.BY_NAME[name]))
    inside, beyond = ((one["nats"][1], one["nats"][-1]) for one in entropy.read())
    assert 0 < inside[0] < inside[1] < np.log(1024)
    assert 0 < beyond[0] < beyond[1] < inside[1]  # log n, which was trained with it, grows less
    text = entropy.grid(entropy.read())
    assert "| model | method | 0 to 512 | 512 to 1024 |" in text
    assert text.count("\n") == 1 + 2 + 1
    monkeypatch.setattr(entropy.loading, "load_model", None)
    entropy.keep(table.BY_NAME["tiny"], lab.source(table.BY_NAME["tiny"]))


def test_entropy_of_another_attention_is_not_made_up() -> None:
    with (
        pytest.raises(UnsupportedModelError, match=r"relu2.*--no-entropy"),
        watching(fresh("relu2"), lambda *_: None),
    ):
        pass
