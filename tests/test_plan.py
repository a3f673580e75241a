"""`ctxext plan`: memory against hand counts and what torch takes, methods, engines, commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import random_model
from families import tiny_config, tiny_model
from test_eval import Run, folders, here  # noqa: F401 - fixtures

from ctxext import methods
from ctxext.engine.patch import patched
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.export import gguf_rope
from ctxext.export.engines import ENGINES, express
from ctxext.measure.bench.timed import Generation
from ctxext.measure.costs.counted import NotCountedError, count
from ctxext.measure.memory import allocated_peak, capacity
from ctxext.methods.base import Rotary
from ctxext.models.frequency_sets import find_frequency_sets
from ctxext.models.outline import outline
from ctxext.models.small import small_model
from ctxext.notation import parse_bytes

pytestmark = pytest.mark.quick

# As their config.json on the Hub have them.
LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936,
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "rope_theta": 1000000, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SMOLLM2_135M: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": True,
}  # fmt: skip
# The peak of torch's allocator, in bytes, as `allocated_peak` (and so `ctxext bench`) counts it,
# over a prefill of 16384 tokens with their cache, in float32 on a CPU.
SMOLLM2_PEAK = 1_754_670_592


def config_of(settings: dict[str, Any]) -> Any:
    given = {key: value for key, value in settings.items() if key != "model_type"}
    return transformers.AutoConfig.for_model(settings["model_type"], **given)


def saved(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def planned(run: Run, *argv: Any) -> dict[str, Any]:
    ran = run("plan", *argv, "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records
    return record


# Memory.


@pytest.mark.parametrize(
    ("settings", "weights", "cache"),
    [
        (  # embeddings and head; q and o, k and v, the MLP, two norms a layer; the last norm
            LLAMA3_8B,
            2 * (2 * 128256 * 4096 + 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
                 + (2 * 32 + 1) * 4096),
            32 * 2 * 8 * 128 * 2 * 32768,
        ),
        (  # … and norms of queries and keys
            QWEN3_8B,
            2 * (2 * 151936 * 4096 + 36 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 12288)
                 + (2 * 36 + 1) * 4096 + 36 * 2 * 128),
            36 * 2 * 8 * 128 * 2 * 32768,
        ),
    ],
)  # fmt: skip
def test_weights_and_cache_are_a_hand_count(
    settings: dict[str, Any], weights: int, cache: int
) -> None:
    found = count(config_of(settings), 32768, dtype="bfloat16")
    assert found.cache == cache
    assert weights <= found.weights <= weights + 1024  # and the frequencies
    assert found.activations >= 32768 * 2 * 2 * settings["intermediate_size"]


def test_what_was_measured_on_smollm2_is_met() -> None:
    found = count(config_of(SMOLLM2_135M), 16384)
    assert found.together == pytest.approx(SMOLLM2_PEAK, rel=0.15)
    assert found.cache == 30 * 2 * 3 * 64 * 4 * 16384


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gemma3_text", "deepseek_v3"])
def test_a_prefill_takes_what_is_counted(kind: str, dtype: str) -> None:
    model = tiny_model(kind).to(getattr(torch, dtype))
    model.set_attn_implementation("sdpa")
    ids = torch.zeros(2, 150, dtype=torch.long)

    def prefill() -> None:
        with torch.no_grad():
            Generation(model, ids)()

    found = count(model.config, 150, 2, dtype=dtype)
    real = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert found.weights == pytest.approx(real, abs=2048)  # what stays float32 when it is loaded
    peak = allocated_peak(model, prefill)
    assert peak is not None
    assert peak - real == pytest.approx(found.cache + found.activations, rel=0.01)


def test_windows_and_latent_attention_keep_less() -> None:
    sliding = tiny_config("gemma3_text", sliding_window=20)
    kinds, head = sliding.layer_types, 2 * 2 * 16 * 4  # k and v of 2 heads of 16 in float32
    whole, windows = kinds.count("full_attention"), kinds.count("sliding_attention")
    assert windows > 0 < whole
    kept = head * (150 * whole + 19 * windows)  # which with the next one are the window
    assert count(sliding, 150).cache == pytest.approx(kept, abs=16 * windows)  # and counters
    latent = tiny_config("deepseek_v3")
    each = {16 + 8, 4 * (16 + 16)}  # latents and rotated keys, or all heads' keys and values
    assert count(latent, 150).cache in {4 * 150 * 4 * size for size in each}


def test_a_model_whose_forward_goes_by_values_is_refused_by_name() -> None:
    with pytest.raises(NotCountedError, match=r"^dbrx: what its forward takes cannot be counted"):
        count(tiny_config("dbrx"), 64)


def test_scalings_that_go_by_the_length_are_counted_too() -> None:
    config = random_model().config
    plain = count(config, 64)
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert count(config, 64).cache == plain.cache
    assert config.rope_parameters["rope_type"] == "dynamic"


def test_the_machine_has_memory() -> None:
    assert 2**27 < (capacity("cpu") or 0) < 2**60
    assert capacity("meta") is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5 gib", 3 * 2**29), ("512MiB", 2**29)],
)
def test_sizes_in_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24", "24G", "-1GiB", "0GiB", "1e3GiB", "9999999TiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="malformed size"):
        parse_bytes(text)


# The command.


def test_a_config_alone_is_enough(run: Run, tmp_path: Path) -> None:
    folder = saved(tmp_path / "llama-3-8b", LLAMA3_8B)
    argv = ("--model", folder, "--len", "32k", "--dtype", "bfloat16", "--out", tmp_path / "none")
    found = planned(run, *argv, "--gpu", "24GiB")
    assert (found["trained_length"], found["trained_from"]) == (8192, "max_position_embeddings")
    assert (found["stretch"], found["own_scaling"]) == (4.0, None)
    assert found["parameters"] == 8_030_261_248
    (memory,) = found["memory"]
    assert memory["cache_bytes"] == 4 * 2**30
    assert memory["fits"] is True
    assert memory["bytes"] == sum(
        memory[f"{part}_bytes"] for part in ("weights", "cache", "activations")
    )
    assert found["time"] is None  # of a device that need not be here
    assert [m["method"] for m in found["methods"]] == ["yarn", "ntk", "rerope", "self-extend"]
    assert {m["basis"] for m in found["methods"]} == {"nature"}
    yarn, _, rerope, _ = found["methods"]
    assert "interpolated" in yarn["why"]
    assert {name: yarn["engines"][name]["takes"] for name in ENGINES} == dict.fromkeys(
        ENGINES, True
    )
    assert not any(rerope["engines"][name]["takes"] for name in ENGINES[1:])
    words = shlex.split(yarn["commands"]["vLLM"])
    assert words[:3] == ["vllm", "serve", str(folder)]
    told = json.loads(words[words.index("--hf-overrides") + 1])
    assert told["rope_parameters"] == {
        "rope_theta": 500000.0, "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    assert words[-2:] == ["--max-model-len", "32768"]
    assert (
        "--rope-scaling yarn --yarn-orig-ctx 8192 --rope-scale 4" in yarn["commands"]["llama.cpp"]
    )
    assert {*rerope["commands"]} == {"ctxext eval", "ctxext export"}


def test_what_there_is_decides_what_fits(run: Run, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", {**SMOLLM2_135M, "num_hidden_layers": 2})
    argv = ("--model", folder, "--len", "8k", "--no-time", "--out", tmp_path / "none")
    found = planned(run, *argv, "--gpu", "300MiB", "--task", "ppl")
    assert {m["dtype"]: m["fits"] for m in found["memory"]} == {
        "float32": False, "bfloat16": True, "float16": True,
    }  # fmt: skip
    assert {m["cache_bytes"] for m in found["memory"]} == {0}  # which ppl does not keep
    (rope,) = found["methods"]
    assert (rope["method"], rope["commands"]["ctxext eval"]) == (
        "rope",
        f"ctxext eval --model {folder} --len 8k --task ppl",
    )
    text = run("plan", *argv)
    assert (text.code, text.err) == (0, "")
    assert "together" in text.out
    assert "8k is 1 × T" in text.out


def test_records_of_the_family_choose(
    run: Run,
    here: Path,  # noqa: F811
) -> None:
    measured = ("--method", "window", "--method", "rerope", "--method", "ntk", "--method", "pi")
    done = run("eval", "--model", "plain", "--data", "t.txt", "--limit", "3", "--len", "128",
               *measured, "--out", "kept/one", "--json")  # fmt: skip
    values = {r["requested"]: r["value"] for r in done.records}
    saved(here / "other", {**LLAMA3_8B, "num_hidden_layers": 2, "hidden_size": 64,
                           "intermediate_size": 64, "num_attention_heads": 4,
                           "num_key_value_heads": 2})  # fmt: skip
    argv = ("--model", "other", "--len", "32k", "--gpu", "24GiB", "--dtype", "float32")
    found = planned(run, *argv, "--out", "kept")
    better = [m for m in ("rerope", "ntk", "pi") if values[m] < values["rope"]]
    assert better
    best = min(better, key=values.__getitem__)
    first = found["methods"][0]
    assert (first["method"], first["basis"]) == (best, "records")
    assert f"perplexity {values[best]:.4g} at 128, 4 × T, on plain" in first["why"]
    assert "window" not in {m["method"] for m in found["methods"]}  # it hides keys
    timed = planned(run, "--model", "plain", "--len", "64", "--out", "kept/one")
    assert timed["time"]["basis"] == "a record of it at 128"
    plain = planned(run, "--model", "plain", "--len", "64", "--out", "none", "--method", "logn")
    assert plain["time"]["basis"].startswith("forwards of")
    assert plain["time"]["read"] > 0 < plain["time"]["step"]
    assert [(m["method"], m["basis"]) for m in plain["methods"]] == [("logn", "asked")]


def test_a_gguf_file_is_known_by_its_header(run: Run, tmp_path: Path) -> None:
    done = run("export", "--model", "tiny", "--method", "rope", "--len", "512", "--format", "gguf",
               "--out", tmp_path / "made")  # fmt: skip
    assert done.code == 0, done.err
    (file,) = (tmp_path / "made").glob("*.gguf")
    argv = ("--len", "2k", "--no-time", "--out", tmp_path / "none", "--method", "ntk")
    found = planned(run, "--model", file, *argv)
    folder = planned(run, "--model", "tiny", *argv)
    for name in ("parameters", "trained_length", "memory"):
        if name == "memory":
            one, two = ([m["cache_bytes"] for m in each[name]] for each in (found, folder))
            assert one == two
        else:
            assert found[name] == folder[name]
    (ntk,) = found["methods"]
    assert f"llama-server -m {file} -c 2048 --rope-freq-base" in ntk["commands"]["llama.cpp"]
    assert "--override-kv llama.context_length=int:2048" in ntk["commands"]["llama.cpp"]
    assert "--hf-overrides" not in ntk["commands"]["vLLM"]
    assert any("as they are" in line for line in found["notes"])


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": None},
        {"model_type": "no-such"},
        {"model_type": 3},
        {"model_type": "bert"},
        {"hidden_size": -64},
        {"hidden_size": "wide"},
        {"hidden_size": 2**70},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -1},
        {"head_dim": 10**8},
        {"hidden_size": 10**9},
        {"num_hidden_layers": "many"},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": -1},
        {"vocab_size": -5},
        {"max_position_embeddings": 0},
        {"max_position_embeddings": "8k"},
        {"rope_theta": -1},
        {"rope_scaling": "yarn"},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"head_dim": -2},
        {"intermediate_size": [1]},
        {"layer_types": ["full_attention"]},
    ],
)
def test_a_config_that_is_none_is_one_line(
    changes: dict[str, Any],
    run: Run,
    tmp_path: Path,
) -> None:
    small = {**SMOLLM2_135M, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
             "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 99}  # fmt: skip
    settings = {k: v for k, v in {**small, **changes}.items() if v is not None}
    folder = saved(tmp_path / "bad", settings)
    argv = ("--model", folder, "--len", "16k", "--no-time", "--out", tmp_path / "none")
    ran = run("plan", *argv, "--method", "ntk", "--gpu", "1GiB")
    assert (ran.code, ran.out) == (2, ""), ran
    assert len(ran.err.splitlines()) == 1
    assert "a fault of ctxext" not in ran.err


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", "null"])
def test_a_folder_without_a_config_is_one_line(
    content: str,
    run: Run,
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(content)
    ran = run("plan", "--model", tmp_path, "--len", "16k")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1), ran


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--gpu", "big"), "malformed size 'big'"),
        (("--gpu", "8GiB", "--device", "cpu"), "leave out --device cpu"),
        (("--device", "cudda"), "device 'cudda' is not available"),
        (("--len", "1"), "bad value 1 for --len"),
        (("--method", "yran"), "did you mean 'yarn'"),
        (("--task", "pppl"), "did you mean 'ppl'"),
        (("--dtype", "fp32"), "unknown dtype 'fp32'"),
        (("--batch-size", "0"), "bad value 0 for --batch-size"),
        (("--train-len", "x"), "malformed length 'x'"),
    ],
)
def test_bad_options(argv: tuple[str, ...], said: str, run: Run) -> None:
    ran = run("plan", "--model", "tiny", *(() if "--len" in argv else ("--len", "1k")), *argv)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1), ran
    assert said in ran.err


# Engines.


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("spec", ["ntk:factor=4", "yarn:factor=4", "beta-radix:factor=4"])
def test_overrides_make_the_patched_model(kind: str, spec: str) -> None:
    config, length = tiny_config(kind), 256
    small, _ = small_model(config)
    found = express(config, small, methods.parse(spec), length)
    if not found.overrides:
        assert kind == "gemma3"
        assert not found.support["vLLM"].takes
        return
    told = json.loads(json.dumps(found.overrides))
    text = told.pop("text_config", {})
    config.update(told)
    config.get_text_config().update(text)
    with patched(small, spec, length):
        wanted = [(s.layer_type, s.inv_freq.clone(), s.factor) for s in find_frequency_sets(small)]
    for made, (layer_type, inv_freq, factor) in zip(
        find_frequency_sets(outline(config)), wanted, strict=True
    ):
        assert made.layer_type == layer_type
        assert torch.equal(made.inv_freq, inv_freq)
        assert made.factor == pytest.approx(factor)


@pytest.mark.parametrize("spec", ["pi", "ntk", "yarn", "ntk-old"])
def test_llama_cpp_options_say_the_rotation(spec: str) -> None:
    own = Rotary(tuple(1e6 ** (-i / 32) for i in range(32)), 1e6, 4096)
    config = transformers.Qwen3Config(
        hidden_size=64, head_dim=64, num_attention_heads=1, num_key_value_heads=1,
        num_hidden_layers=1, intermediate_size=8, vocab_size=8, max_position_embeddings=4096,
        rope_theta=1e6,
    )  # fmt: skip
    (freqs,) = find_frequency_sets(outline(config))
    resolved = methods.parse(f"{spec}:factor=8")
    wanted = gguf_rope.wanted(freqs, resolved)
    words = gguf_rope.options(wanted, own)
    assert words is not None
    given = dict(zip(words[::2], words[1::2], strict=True))
    k = float(given.get("--rope-scale", 1))
    ramp = gguf_rope.Ramp(k, int(given["--yarn-orig-ctx"])) if "yarn" in words else None
    read = gguf_rope.Expression(
        "", float(given.get("--rope-freq-base", own.base)), k,
        float(given.get("--yarn-attn-factor", 1)), ramp,
    )  # fmt: skip
    assert read.rotation(32).is_close(wanted)


def test_a_method_that_a_model_does_not_take_is_told(tmp_path: Path) -> None:
    config = tiny_config("axk2")  # whose attention chooses keys
    small, _ = small_model(config)
    found = express(config, small, methods.parse("rerope"), 256)
    assert not any(each.takes for each in found.support.values())
    assert "axk2 does not take rerope" in found.support["transformers"].how


def test_a_model_that_cannot_be_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="bad num_hidden_layers 5000"):
        count(tiny_config("llama", num_hidden_layers=5000), 16)
