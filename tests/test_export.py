"""An exported folder, loaded by stock transformers, is the patched model.

The proof of an export, in a process of its own, is left out here but in the tests that say so:
`test_proof.py` has its tests, and what it would find is found in this process.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import oracle
import pytest
import torch
import transformers
from conftest import TRAINED, fitted, pairs_of, random_model, tokens
from families import tiny_model
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import ctxext
from ctxext import patches
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.export import carried, reach, write
from ctxext.export import native as module
from ctxext.export.figures import Figure
from ctxext.export.proof import Proof
from ctxext.export.write import CARRIED, Exported, Order, export
from ctxext.methods.base import Span

LENGTH = 4 * TRAINED
PROOF = Proof((Figure("logits", 0.0, 1e-5),), 0.5, "a model", "torch", 1.0, ())
SPECS = {  # and how a config says them
    "rope": "unchanged",
    "pi": "linear",
    "ntk": "rope_theta",
    "ntk-old:factor=3": "rope_theta",
    "ntk-fixed": "longrope",
    "beta-radix": "longrope",
    "yarn": "yarn",
    "ntk+beta-radix": "longrope",
    "llama3": "llama3",
    "dynamic-ntk:factor=2": "rope_theta",
    "longrope+llama3:factor=2": "longrope",
}
FAMILIES = (
    "llama-gqa",
    "qwen3-qk-norm",
    "gpt_neox-partial-inside",
    "glm-interleaved-partial",
    "cohere-interleaved",
)


def saved(folder: Path, family: str = "llama-gqa", **changes: object) -> Path:
    """A random model's folder, with a tokenizer's files and others around it."""
    return around(random_model(family, **changes), folder)


def around(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model", "LICENSE", "chat_template.jinja"):
        (folder / name).write_bytes(name.encode() + b"\x00\xff\r\n")
    return folder


def edit(folder: Path, drop: tuple[str, ...] = (), **changes: object) -> dict[str, object]:
    """Change keys of a folder's config.json."""
    raw = json.loads((folder / "config.json").read_text())
    raw = {k: v for k, v in raw.items() if k not in drop} | changes
    (folder / "config.json").write_text(json.dumps(raw))
    return raw


def load(folder: Path, **options: object) -> transformers.PreTrainedModel:
    options = {"dtype": "float32", **options}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def run(source: Path, spec: str, out: Path, length: int = LENGTH, **options: object) -> Exported:
    return export(Order(source, patches.parse(spec), length, out, **options))


@torch.no_grad()
def assert_same(
    source: Path,
    spec: str,
    out: Path,
    length: int = LENGTH,
    own_scaling: str = "keep",
    **options: object,
) -> None:
    """Transformers on `out` gives the logits of the patched source, bit for bit.

    Both run the same operators on the same numbers, frequencies included.
    """
    theirs, ours = load(out, **options), load(source, **options)
    ctxext.patch(ours, spec, length, own_scaling=own_scaling)
    trained = length // 4
    for n in (trained, trained + 1, length):
        ids = tokens(n)
        want = ours(ids).logits
        torch.testing.assert_close(theirs(ids).logits, want, rtol=0, atol=0)


@pytest.fixture(autouse=True)
def without_proof(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "proof" not in request.keywords:
        monkeypatch.setattr(write, "prove", lambda *_, **__: PROOF)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "a 'quoted' \"llama\"")


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_gives_the_patched_logits(family: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", family)
    pairs = pairs_of(random_model(family))
    for i, (name, expression) in enumerate(SPECS.items()):
        spec, out = fitted(name, pairs), tmp_path / str(i)
        assert run(source, spec, out).expression == expression
        assert_same(source, spec, out)
        assert load(out).config.max_position_embeddings == LENGTH


def test_parameters_and_trained_length_are_carried(llama: Path, tmp_path: Path) -> None:
    spec = "yarn:factor=4,beta_fast=8,beta_slow=2"
    done = run(llama, spec, tmp_path / "a")
    assert (done.spec, done.expression) == (spec, "yarn")
    assert_same(llama, spec, tmp_path / "a")
    assert run(llama, "pi", tmp_path / "b", train_len=16).spec == "pi:factor=8"
    assert run(llama, "pi", tmp_path / "c", length=TRAINED // 2).spec == "pi:factor=1"
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["max_position_embeddings"] == TRAINED


def test_snapshot_of_the_hubs_cache(tmp_path: Path) -> None:
    model = tmp_path / "models--me--llama"
    blobs, snapshot = model / "blobs", model / "snapshots" / "0123abc"
    random_model().save_pretrained(blobs, max_shard_size="60KB")
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    done = run(snapshot, "beta-radix", tmp_path / "out")
    assert sum(name.endswith(".safetensors") for name in done.files) > 1
    written = list((tmp_path / "out").iterdir())
    assert {p.name for p in written} == set(done.files)
    assert not any(p.is_symlink() for p in written)
    assert_same(blobs, "beta-radix", tmp_path / "out")


def test_nothing_of_the_config_is_lost(llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    new = {"torch_dtype": "bfloat16", "mine": {"a": [1]}, "auto_map": {"x": "y.Z"}}
    before = edit(source, drop=("dtype",), **new)
    run(source, "beta-radix", tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    changed = {"rope_parameters", "max_position_embeddings", "auto_map"}
    changed |= {"rope_theta", "rope_scaling"}  # for engines on transformers 4
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert "auto_map" not in after  # its code is not copied
    assert load(tmp_path / "out").config.dtype == torch.float32


def test_code_of_the_model(llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    ran = f"open({str(tmp_path / 'ran')!r}, 'a').write(__file__ + chr(10))\n"
    config = "from transformers import LlamaConfig\nclass X(LlamaConfig):\n    model_type = 'x'\n"
    (source / "configuration_x.py").write_text(ran + config)
    (source / "modeling_x.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_x import X\n"
        "class XForCausalLM(LlamaForCausalLM):\n    config_class = X\n"
    )
    code = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    edit(source, model_type="x", auto_map=code)
    with pytest.raises(UsageError, match="--trust-remote-code"):
        run(source, "pi", tmp_path / "out")
    assert not (tmp_path / "ran").exists()

    for spec in ("pi", "beta-radix"):
        done = run(source, spec, tmp_path / spec, trust_remote_code=True)
        assert {"configuration_x.py", "modeling_x.py"} < set(done.files)
        assert_same(source, spec, tmp_path / spec, trust_remote_code=True)
    assert "/.ctxext-" not in (tmp_path / "ran").read_text()


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}])
def test_a_config_of_transformers_4(scaling: object, llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    edit(source, drop=("rope_parameters",), rope_theta=5000.0, rope_scaling=scaling)
    for spec in ("rope", "ntk", "pi", "yarn", "beta-radix"):
        run(source, spec, tmp_path / spec)
        assert_same(source, spec, tmp_path / spec)
        raw = json.loads((tmp_path / spec / "config.json").read_text())
        if spec == "rope":
            assert raw["rope_scaling"] == scaling
            continue
        assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
        assert raw["rope_scaling"] in (None, raw["rope_parameters"])
        assert (raw["rope_scaling"] is None) == (spec == "ntk" and scaling is None)


def test_old_names_of_gpt_neox(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", "gpt_neox-partial-inside")
    edit(source, drop=("rope_parameters",), rotary_emb_base=3000, rotary_pct=0.5)
    done = run(source, "ntk-old:factor=2", tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (raw["rotary_emb_base"], raw["rotary_pct"], done.expression) == (6000, 0.5, "rope_theta")
    assert_same(source, "ntk-old:factor=2", tmp_path / "out")


BEFORE = {"original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LISTS = {
    "short_factor": [1.0 + i / 40 for i in range(8)],
    "long_factor": [1.0 + i for i in range(8)],
}
MSCALE = {"mscale": 0.7, "mscale_all_dim": 1.2}
OWN: dict[str, tuple[str, dict[str, object]]] = {
    "linear": ("llama", {"rope_type": "linear", "factor": 2.0}),
    "llama3": ("llama", {**LLAMA3, **BEFORE}),
    "dynamic": ("llama", {"rope_type": "dynamic", "factor": 2.0}),
    "longrope": ("llama", {"rope_type": "longrope", "factor": 2.0, **LISTS, **BEFORE}),
    "yarn": ("llama", {"rope_type": "yarn", "factor": 2.0, "truncate": False, **MSCALE, **BEFORE}),
    "latent": ("deepseek_v3", {"rope_type": "yarn", "factor": 2.0, **MSCALE, **BEFORE}),
}


@pytest.mark.parametrize("name", OWN)
def test_the_models_own_scaling(name: str, tmp_path: Path) -> None:
    """Composed with the method, or taken off first; of those by the length, that of L tokens."""
    kind, rope = OWN[name]
    model = tiny_model(kind, rope_parameters={"rope_theta": 10000.0, **rope})
    source = around(model, tmp_path / "source")
    for own in ("keep", "replace"):
        for spec in ("rope", "ntk", "yarn:factor=4", "beta-radix+pi:factor=1.5"):
            out = tmp_path / f"{own} {spec}"
            done = run(source, spec, out, own_scaling=own, native_only=True)
            assert_same(source, spec, out, own_scaling=own)
            fixed = name in ("dynamic", "longrope")
            assert (done.expression == "unchanged") == (spec == "rope" and not fixed)
            assert [name for name in done.notes if rope["rope_type"] in name] or spec == "rope"


def small(name: str, **settings: object) -> transformers.PreTrainedModel:
    """A random model of a family that conftest has not."""
    shared = random_model().config.to_dict()
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "pad_token_id")
    keep += ("num_attention_heads", "num_key_value_heads", "initializer_range")
    config = getattr(transformers, f"{name}Config")(
        **{key: shared[key] for key in keep}, max_position_embeddings=TRAINED, **settings
    )
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


KINDS = {  # and what a config says for pi, ntk, yarn and beta-radix
    "phi3": ("longrope", "rope_theta", "longrope", "longrope"),
    "gemma2": ("linear", "rope_theta", "yarn", "longrope"),
    "gemma3_text": ("linear", "rope_theta", "yarn", "longrope"),
    "qwen3": ("linear", "rope_theta", "yarn", "longrope"),
}
WIDE = {
    "phi3": {"original_max_position_embeddings": 64, "partial_rotary_factor": 0.5},
    "gemma2": {"sliding_window": 4096},
    "gemma3_text": {"sliding_window": 16},  # these layers have frequencies of their own
}


@pytest.mark.parametrize("kind", KINDS)
def test_families(kind: str, tmp_path: Path) -> None:
    source = around(tiny_model(kind, **WIDE.get(kind, {})), tmp_path / "source")
    for spec, how in zip(("pi", "ntk", "yarn", "beta-radix"), KINDS[kind], strict=True):
        assert run(source, spec, tmp_path / spec, length=256).expression == how
        assert_same(source, spec, tmp_path / spec, length=256)


def test_only_the_layers_that_see_far_are_changed(tmp_path: Path) -> None:
    source = around(tiny_model("gemma3_text", sliding_window=16), tmp_path / "source")
    before = json.loads((source / "config.json").read_text())["rope_parameters"]
    run(source, "pi", tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
    assert after["sliding_attention"] == before["sliding_attention"]
    assert after["full_attention"]["rope_type"] == "linear"


def test_engines_on_transformers_4_read_the_same(llama: Path, tmp_path: Path) -> None:
    for spec, scaled in (("yarn", True), ("ntk", False), ("beta-radix+yarn", True)):
        run(llama, spec, tmp_path / spec)
        raw = json.loads((tmp_path / spec / "config.json").read_text())
        assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
        assert raw["rope_scaling"] == (raw["rope_parameters"] if scaled else None)
    factor = 0.1 * math.log(4) + 1
    assert raw["rope_scaling"]["short_mscale"] == raw["rope_scaling"]["long_mscale"]
    assert raw["rope_scaling"]["long_mscale"] == pytest.approx(factor, rel=1e-12)  # in vLLM
    assert raw["rope_scaling"]["original_max_position_embeddings"] == LENGTH


def test_yarn_of_another_factor(llama: Path, tmp_path: Path) -> None:
    """vLLM's table would end at factor · T, and transformers 4 would take another factor."""
    for spec in ("yarn:factor=2", "yarn:factor=8"):
        assert run(llama, spec, tmp_path / spec).expression == "longrope"
        assert_same(llama, spec, tmp_path / spec)


def test_mixtral_has_no_head_dim_in_its_config(tmp_path: Path) -> None:
    source = around(small("Mixtral", num_local_experts=2), tmp_path / "source")
    for spec, how in (("yarn", "yarn"), ("beta-radix", "longrope")):
        assert run(source, spec, tmp_path / spec).expression == how
        assert_same(source, spec, tmp_path / spec)


def test_one_pair_of_dimensions(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", head_dim=2)
    for spec in ("ntk", "ntk-old", "pi", "beta-radix", "dynamic-ntk", "llama3"):
        run(source, spec, tmp_path / spec)
        assert_same(source, spec, tmp_path / spec)


def test_pairs_that_do_not_turn(llama: Path, tmp_path: Path) -> None:
    """A config says so of all the slowest, by the share of the others, and has no other way."""
    if "proportional" in ROPE_INIT_FUNCTIONS:
        assert run(llama, "p-rope:keep=0.5", tmp_path / "p").expression == "proportional"
        assert_same(llama, "p-rope:keep=0.5", tmp_path / "p")
    assert run(llama, "cope:clip=3", tmp_path / "c").expression == CARRIED
    assert "Infinity" not in (tmp_path / "c" / "config.json").read_text()
    assert_same(llama, "cope:clip=3", tmp_path / "c", trust_remote_code=True)


def test_what_a_config_cannot_express(llama: Path, tmp_path: Path) -> None:
    for spec in ("rerope:window=8", "logn", "ntk+logn"):
        with pytest.raises(
            UsageError, match=r"leave out --native-only.*beta-radix, .*, ntk"
        ) as error:
            run(llama, spec, tmp_path / "out", native_only=True)
        assert "rerope" not in str(error.value).partition("take of")[2]
    for name, reads in (("Ministral3", "llama_4_scaling_beta"), ("Bloom", "no rotary embeddings")):
        source = around(small(name, head_dim=16), tmp_path / name)
        with pytest.raises(UnsupportedModelError, match=reads):
            run(source, "pi", tmp_path / "out", native_only=True)
    assert not (tmp_path / "out").exists()


def test_a_wrong_expression_is_passed_over(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pi = patches.REGISTRY.get("pi")
    for wrong in ({"rope_theta": 10001.0}, {"rope_type": "dynamic", "factor": 4.0}):
        monkeypatch.setattr(pi, "stock", lambda *_, wrong=wrong: wrong)
        assert run(llama, "pi", tmp_path / str(len(wrong))).expression == "longrope"
    monkeypatch.setattr(module, "stock_ropes", lambda *_: iter(()))
    with pytest.raises(UnsupportedModelError, match="cannot express"):
        run(llama, "pi", tmp_path / "out", native_only=True)
    assert not (tmp_path / "out").exists()


def test_layers_that_a_config_cannot_change_alone(tmp_path: Path) -> None:
    source = around(tiny_model("gemma2", sliding_window=16), tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match=r"layers that see.*--native-only"):
        run(source, "pi", tmp_path / "out", native_only=True)
    assert not (tmp_path / "out").exists()
    for spec in ("pi", "beta-radix"):
        assert run(source, spec, tmp_path / spec, length=256).expression == CARRIED
        assert_same(source, spec, tmp_path / spec, length=256, trust_remote_code=True)


def test_layers_that_all_see_no_further(tmp_path: Path) -> None:
    source = around(tiny_model("mistral", sliding_window=16), tmp_path / "source")
    done = run(source, "pi", tmp_path / "out", length=256)
    assert done.expression == "unchanged"
    assert "changes nothing" in done.notes[0]
    assert done.notes[0] in (tmp_path / "out" / "README.md").read_text()


BAD = {
    b"": "no readable JSON",
    b"\x80\x02binary\x00": "no readable JSON",
    b"[" * 100_000: "no readable JSON",
    b"[1]": "holds a list",
    b'{"model_type": "no-such"}': "cannot be loaded.*no-such",
    b'{"model_type": "llama", "hidden_size": "x"}': "cannot be loaded",
    b'{"model_type": "clip_vision_model"}': "no causal language model of type clip",
    b" " * 2**25: "too large",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:20]))
def test_bad_configs(text: bytes, llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    (source / "config.json").write_bytes(text)
    with pytest.raises(UsageError, match=BAD[text]) as error:
        run(source, "pi", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    for name in ("model.safetensors", "config.json"):
        (source / name).unlink()
        with pytest.raises(UsageError, match=r"no (weights|config\.json)"):
            run(source, "pi", tmp_path / "new" / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_no_carried_folder_depends_on_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"short_factor": [1.0], "long_factor": [2.0]}')
    parsed = patches.parse(f"longrope:factors=@{tmp_path}/f.json+rerope")
    spec = parsed.resolve(Span(512, 4096))
    with pytest.raises(UnsupportedModelError, match="'longrope' reads a file of its own"):
        carried._code(spec)


# What is said of an export -----------------------------------------------------------------------

DISTANCES = (  # specs at T = 16, their distance method as the oracle takes it, and k
    ("rerope:window=8", ("rerope", {"window": 8}), 1),
    ("rerope:window=20+logn", ("rerope", {"window": 20}), 1),
    ("ntk:factor=2+rerope:window=20", ("rerope", {"window": 20}), 2),
    ("leaky-rerope:window=8,leak=4", ("leaky-rerope", {"window": 8, "leak": 4.0}), 1),
    ("leaky-rerope", ("leaky-rerope", {"window": 4, "leak": 15.0}), 1),
    (
        "pi:factor=1.5+leaky-rerope:window=8,leak=4",
        ("leaky-rerope", {"window": 8, "leak": 4.0}),
        1.5,
    ),
    ("self-extend:window=4,group=3", ("self-extend", {"window": 4, "group": 3}), 1),
    ("self-extend", ("self-extend", {"window": 4, "group": 5}), 1),
    ("dca", ("dca", {"chunk": 12, "local": 4}), 1),
    ("dca:chunk=4", ("dca", {"chunk": 4, "local": 12}), 1),
    ("window:window=30", ("window", {"window": 30}), 1),
    ("lm-infinite", ("lm-infinite", {"window": 16, "sinks": 10}), 1),
    ("streaming:window=20,sinks=3", ("streaming", {"window": 20, "sinks": 3}), 1),
)


@pytest.mark.parametrize(("text", "distance", "k"), DISTANCES, ids=[d[0] for d in DISTANCES])
def test_distances_reach_as_far_as_their_relative_positions_say(
    text: str, distance: tuple[str, dict[str, object]], k: float
) -> None:
    method = {"T": 16, "distance": distance}
    far = oracle.effective_positions(64, method).masked_fill(~oracle.seen(64, method), 0)
    beyond = far.amax(1) > k * 16
    want = int(beyond.int().argmax()) if beyond.any() else 64
    assert reach.reach(patches.parse(text).resolve(Span(16, 64)), 16, 64) == want


@pytest.mark.parametrize(
    ("spec", "covered"),
    {
        "yarn:factor=2": 1024,
        "pi:factor=2+ntk:factor=1.5": 1536,
        "dynamic-ntk:sequence=2048": 2048,
        "llama3:factor=3+logn": 1536,
        "longrope:sequence=700": 700,
        "longrope:sequence=100": 512,
        "logn": 512,
        "rope": 512,
    }.items(),
)
def test_frequencies_reach_as_far_as_they_stretch(spec: str, covered: int) -> None:
    resolved = patches.parse(fitted(spec, 8)).resolve(Span(512, 4096))
    assert reach.reach(resolved, 512, 4096) == covered
    (line,) = reach.note(resolved, 512, 4096)
    assert f"reaches {covered} tokens and not 4096" in line


SHARPEN = ("query scale", "attention rule")
UNSCALED = [n for n in patches.names() if patches.REGISTRY.get(n).changes not in SHARPEN]


@pytest.mark.parametrize("name", [n for n in UNSCALED if n != "rope"])
def test_every_method_reaches_the_length_by_default(name: str) -> None:
    """But for one that is for training, one that is for lengths around T, and none at all."""
    for trained, length in ((512, 4096), (3000, 10000), (37, 1001)):
        spec = patches.parse(fitted(name, 8)).resolve(Span(trained, length))
        assert (reach.reach(spec, trained, length) == length) is (
            name not in ("inv-leaky-rerope", "string")
        )


def test_a_spec_that_does_not_reach_the_length_is_told(llama: Path, tmp_path: Path) -> None:
    for spec, told in (("yarn:factor=2", True), ("yarn", False), ("yarn:factor=8", False)):
        done = run(llama, spec, tmp_path / spec)
        card = (tmp_path / spec / "README.md").read_text()
        for text in (card, *done.notes[-1:]):
            assert (f"reaches {2 * TRAINED} tokens and not {LENGTH}" in text) is told
    inside = around(tiny_model("mistral", sliding_window=16), tmp_path / "inside")
    assert not any("reaches" in n for n in run(inside, "pi:factor=2", tmp_path / "out", 256).notes)
