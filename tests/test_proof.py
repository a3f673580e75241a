"""A proof holds for an export that is the patched model, and for no other."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import transformers
from conftest import TRAINED, checked_here, random_model
from families import tiny_model
from transformers import AutoConfig

import ctxext
from ctxext import patches
from ctxext.engine import patch
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.export import check, figures, fresh, job, proof
from ctxext.export.carried import write_carried
from ctxext.export.figures import Figure
from ctxext.export.proof import Proof, prove
from ctxext.export.write import Order, export
from ctxext.methods.base import Span
from ctxext.models.frequency_sets import find_frequency_sets
from ctxext.models.layout import head_dim
from ctxext.models.loading import Source
from ctxext.models.sizes import merge
from ctxext.models.small import small_model

LENGTH = 4 * TRAINED


def folder(path: Path, model: Any) -> Path:
    model.save_pretrained(path)
    return path


def edited(source: Path, stage: Path, **changes: object) -> Path:
    """A folder with the source's config, some keys of it changed, and no weights."""
    stage.mkdir(exist_ok=True)
    raw = json.loads((source / "config.json").read_text()) | changes
    (stage / "config.json").write_text(json.dumps(raw))
    return stage


def run(source: Path, stage: Path, spec: str, length: int = LENGTH, **options: Any) -> Proof:
    given = {"train_len": None, "trust_remote_code": False, "carried": False, "full": False}
    return prove(source, stage, patches.parse(spec), length, **{**given, **options})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs in this process, which takes a tenth of the time."""
    monkeypatch.setattr(proof, "fresh", checked_here)


# Native exports ----------------------------------------------------------------------------------

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = PLAIN | {"rope_type": "linear", "factor": 4.0}
LONG = {  # which divides by 4 too
    **PLAIN,
    "rope_type": "longrope",
    "factor": 1.0,
    "attention_factor": 1.0,
    "short_factor": [4.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 256,
    "partial_rotary_factor": 0.5,
}
HALF, QUARTER = {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.25}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # rotation of each; with pi
    **dict.fromkeys(("llama", "qwen3", "mixtral", "cohere", "gemma2"), (PLAIN, LINEAR)),
    "deepseek_v3": (PLAIN, LINEAR),
    "phi3": (PLAIN | HALF, LONG),
    "gpt_neox": (PLAIN | QUARTER, LINEAR | QUARTER),
    "gemma3_text": (
        {"sliding_attention": PLAIN, "full_attention": PLAIN},
        {"sliding_attention": PLAIN, "full_attention": LINEAR},
    ),
}
WINDOWS = {"gemma2": {"sliding_window": 128}, "gemma3_text": {"sliding_window": 16}}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", FAMILIES)
def test_families_prove_right(kind: str, tmp_path: Path) -> None:
    own, rope = FAMILIES[kind]
    model = tiny_model(kind, rope_parameters=own, **WINDOWS.get(kind, {}))
    source = folder(tmp_path / "source", model)
    stage = edited(source, tmp_path / "stage", rope_parameters=rope)
    found = run(source, stage, "pi:factor=4", 256)
    assert all(figure.value == 0 for figure in found.figures), found.rows()
    assert found.moved is not None
    assert found.moved > proof.FAR * figures.EXACT
    assert found.notes == ()
    with pytest.raises(UnsupportedModelError, match="is not the patched"):
        run(source, edited(source, stage), "pi:factor=4", 256)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return folder(tmp_path / "source", random_model())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("changes", "named"),
    {
        "theta": ({"rope_theta": 10001.0}, "frequencies"),
        "a factor forgotten": ({"rope_type": "default"}, "frequencies"),
        "a factor nearly right": ({"factor": 4.00001}, "frequencies"),
        "attention scaled": (
            {
                "rope_type": "longrope",
                "factor": 1.0,
                "attention_factor": 1.001,
                "short_factor": [4.0] * 8,
                "long_factor": [4.0] * 8,
                "original_max_position_embeddings": LENGTH,
            },
            "cos and sin",
        ),
        "other beyond T": (
            {
                "rope_type": "longrope",
                "factor": 1.0,
                "attention_factor": 1.0,
                "short_factor": [4.0] * 8,
                "long_factor": [5.0] * 8,
                "original_max_position_embeddings": TRAINED,
            },
            "frequencies",
        ),
    }.values(),
    ids=str,
)
def test_wrong_rotations_are_found(
    changes: dict[str, Any], named: str, llama: Path, tmp_path: Path
) -> None:
    stage = edited(llama, tmp_path / "stage", rope_parameters=LINEAR | changes)
    with pytest.raises(UnsupportedModelError, match=f"the patched llama model: .*{named}") as found:
        run(llama, stage, "pi:factor=4")
    assert "\n" not in str(found.value)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": 30.0}),
        ("gemma2", {"final_logit_softcapping": 31.0}),
        ("gemma2", {"query_pre_attn_scalar": 255}),
        ("gemma2", {"sliding_window": 16}),
        ("llama", {"rms_norm_eps": 1e-5}),
        ("llama", {"head_dim": 8}),
        ("llama", {"num_hidden_layers": 3}),
        ("llama", {"vocab_size": 96}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("llama", {"eos_token_id": 5}),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}),
        ("gemma2", {"sliding_window": 4095}),
    ],
    ids=str,
)
def test_other_settings_are_found(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(kind, rope_parameters=PLAIN, **WINDOWS.get(kind, {}))
    source = folder(tmp_path / "source", model)
    edited(source, tmp_path / "stage", rope_parameters=LINEAR)
    run(source, tmp_path / "stage", "pi:factor=4", 256)
    edited(source, tmp_path / "stage", rope_parameters=LINEAR, **changes)
    with pytest.raises(UnsupportedModelError) as found:
        run(source, tmp_path / "stage", "pi:factor=4", 256)
    assert "\n" not in str(found.value)


@pytest.mark.usefixtures("here")
def test_a_rounding_of_the_base_is_found(llama: Path, tmp_path: Path) -> None:
    base = 10000.0 * 4 ** (16 / 14)
    stage = edited(llama, tmp_path / "stage", rope_parameters=PLAIN | {"rope_theta": base})
    found = run(llama, stage, "ntk:factor=4", 2**14)
    assert all(figure.value == 0 for figure in found.figures)
    edited(llama, stage, rope_parameters=PLAIN | {"rope_theta": base * (1 + 2**-20)})
    with pytest.raises(UnsupportedModelError, match="frequencies"):
        run(llama, stage, "ntk:factor=4", 2**14)


@pytest.mark.usefixtures("here")
def test_scalings_that_go_by_the_length_are_written_as_fixed(tmp_path: Path) -> None:
    lists = {"short_factor": [1.5] * 8, "long_factor": [4.0] * 8}
    before = {"original_max_position_embeddings": TRAINED, "partial_rotary_factor": 1.0}
    base = 10000.0 * torch.tensor(4.0 * LENGTH / TRAINED - 3) ** (16 / 14)
    for rope, fixed in (
        ({"rope_type": "dynamic", "factor": 4.0}, {"rope_theta": float(base)}),
        (
            {"rope_type": "longrope", "factor": 4.0, **lists, **before},
            {"rope_type": "longrope", "factor": 4.0, **lists, **before, "short_factor": [4.0] * 8},
        ),
    ):
        source = folder(tmp_path / "source", random_model(rope_parameters=PLAIN | rope))
        stage = edited(source, tmp_path / "stage", rope_parameters=PLAIN | fixed)
        found = run(source, stage, "rope")
        assert all(figure.value == 0 for figure in found.figures)
        assert found.moved is None
        with pytest.raises(UnsupportedModelError, match=r"frequencies|tokens"):
            run(source, edited(source, tmp_path / "stage"), "rope")


@pytest.mark.usefixtures("here")
def test_a_method_that_moves_nothing_is_said_to(llama: Path, tmp_path: Path) -> None:
    stage = edited(llama, tmp_path / "stage")
    found = run(llama, stage, "pi:factor=1")
    assert found.moved == 0
    assert "says little" in found.notes[0]


@pytest.mark.usefixtures("here")
def test_long_tables_are_read_in_part(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "POSITIONS", 100)
    stage = edited(llama, tmp_path / "stage", rope_parameters=LINEAR)
    names = [figure.what for figure in run(llama, stage, "pi:factor=4", 2**20).figures]
    assert "cos and sin at 100 of 1048576 positions" in names
    assert "logits at positions up to 1048576, of the largest" in names


def test_spread_has_the_ends() -> None:
    for length, count in ((5, 9), (9, 9), (10, 9), (2**21, 2**17)):
        some = check.spread(length, count)
        assert len(some.unique()) == len(some) == min(length, count)
        assert (some[0], some[-1]) == (0, length - 1)


def test_rows_are_for_a_table() -> None:
    found = Proof((Figure("logits", 0.0, 1e-5), Figure("x", 1.234e-7, 4e-7)), 1.0, "", "", 1.0)
    assert found.rows() == [("logits", "0", "1e-05"), ("x", "1.2e-07", "4e-07")]
    assert not Figure("logits", float("nan"), 1.0).holds


# The fresh process -------------------------------------------------------------------------------


def test_a_fresh_process_proves_an_export(llama: Path, tmp_path: Path) -> None:
    stage = edited(llama, tmp_path / "stage", rope_parameters=LINEAR)
    found = run(llama, stage, "pi:factor=4")
    assert all(figure.value <= 1e-6 for figure in found.figures)
    assert f"transformers {transformers.__version__}" in found.versions


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL .*memory"),
        ("print('no')", "sent what is no result"),
        ("import sys; sys.exit('one\\ntwo\\n')", "exit code 1: two"),
        ("import os; os._exit(3)", "exit code 3: it said nothing"),
        ("print('[]')", "sent what is no result"),
        ("print('{}')", "sent no frequencies"),
        ('print(\'{"what": "frequencies", "of": "float32", "shape": [-1]}\')', "no result"),
        ('print(\'{"what": "frequencies", "of": "float32", "shape": [9]}\')', "exit code 0"),
        ("import time; time.sleep(60)", "did not finish in 1 seconds"),
    ],
)
def test_deaths_are_told(
    code: str, said: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.py").write_text(code)
    monkeypatch.setattr(check, "__file__", str(tmp_path / "script.py"))
    monkeypatch.setattr(proof, "PATIENCE", 1.0 if "time" in code else 60.0)
    with pytest.raises(UnsupportedModelError, match=said) as found:
        run(llama, edited(llama, tmp_path / "stage"), "rope")
    assert "\n" not in str(found.value)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"model_type": "none"}', "{}"])
def test_configs_that_do_not_load(text: str, llama: Path, tmp_path: Path) -> None:
    stage = edited(llama, tmp_path / "stage")
    (stage / "config.json").write_text(text)
    with pytest.raises(UnsupportedModelError) as found:
        run(llama, stage, "rope")
    assert "\n" not in str(found.value)


def test_an_interrupt_leaves_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:
        started.append(real(*args, **options))
        return started[0]

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(check, "measure", interrupt)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "box"))
    (tmp_path / "box").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(llama, edited(llama, tmp_path / "stage"), "rope")
    assert started[0].poll() == -signal.SIGKILL
    assert list((tmp_path / "box").iterdir()) == []


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    """One whose input is closed ends, whatever it is at."""
    stage = carry(
        folder(tmp_path / "source", random_model()), tmp_path, "import time; time.sleep(60)"
    )
    job = {"trust_remote_code": True, "kept": {}, "folder": str(stage), "threads": 1, "options": {}}
    with fresh.fresh(tmp_path, job, 50) as other:
        other._process.stdin.close()
        with pytest.raises(UnsupportedModelError, match="exit code 1: it said nothing"):
            other.end()


# Carried code ------------------------------------------------------------------------------------

CODE = """
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
{0}

class DividedRotaryEmbedding(LlamaRotaryEmbedding):
    def forward(self, x, position_ids):
        return super().forward(x, position_ids / self.config.divisor)

class Carried(transformers.LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.rotary_emb = DividedRotaryEmbedding(config)
"""

WITHOUT = """
try:
    import ctxext
except ModuleNotFoundError:
    pass
else:
    raise RuntimeError("ctxext is there")
"""


def carry(source: Path, stage: Path, code: str = "", divisor: float = 1.0) -> Path:
    """A folder whose code divides all positions."""
    stage.mkdir(exist_ok=True)
    (stage / "modeling_carried.py").write_text(CODE.format(code))
    auto = {"AutoModelForCausalLM": "modeling_carried.Carried"}
    return edited(source, stage, auto_map=auto, divisor=divisor)


def test_carried_code_is_run_without_ctxext(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though this process has it, its path has it, and its start-up looks for `lm_eval`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(ctxext.__file__).parents[1]))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "lm_eval"))
    (tmp_path / "lm_eval").mkdir()
    stage = carry(llama, tmp_path / "stage", WITHOUT, divisor=4.0)
    found = run(llama, stage, "pi:factor=4", carried=True)
    assert [figure.what for figure in found.figures] == [
        "of 16 tokens generated after 64, differ",
        "logits at 32 tokens, of the largest",
        "logits at 128 tokens, of the largest",
        "logits at 5 places up to position 128, of the largest",
    ]
    assert all(figure.value <= 1e-6 for figure in found.figures)
    assert (found.moved or 0) > 0.01
    assert list((tmp_path / "lm_eval").iterdir()) == []


@pytest.mark.usefixtures("here")
def test_wrong_code_is_found(llama: Path, tmp_path: Path) -> None:
    stage = carry(llama, tmp_path / "stage", divisor=3.0)
    with pytest.raises(UnsupportedModelError, match=r"is not the patched llama model: .*differ"):
        run(llama, stage, "pi:factor=4", carried=True)
    stage = carry(llama, stage, "import nowhere", divisor=4.0)
    with pytest.raises(UnsupportedModelError, match=r"cannot load or run it: .*nowhere"):
        run(llama, stage, "pi:factor=4", carried=True)


def carried(source: Path, stage: Path, spec: str, length: int, trained: int) -> Path:
    """A folder with the config and the code that an export with the spec has."""
    stage.mkdir()
    raw = json.loads((source / "config.json").read_text())
    resolved = patches.parse(spec).resolve(Span(trained, length))
    classes = transformers.LlamaForCausalLM, transformers.LlamaConfig
    write_carried(stage, raw, *classes, resolved, length, trained)
    return stage


RE, GROUPS, CHUNKS = "rerope:window=512+logn", "self-extend:window=512", "dca:chunk=1024,local=512"
FAULTS = {  # a spec, the file that is wrong, what stands in it and what in its place
    "window": (RE, "config.json", "window=512", "window=513"),
    "trained length": (RE, "config.json", '"trained": 2048', '"trained": 2049'),
    "far turn": (RE, "methods_rerope", "q * 0 + w", "q * 0 + w + 1"),
    "border": (RE, "methods_rerope", "Part(w, None", "Part(w + 1, None"),
    "old keys": (RE, "methods_rerope", "Part(w, None", "Part(w, 15000"),
    "long sequences": (RE, "methods_logn", "math.log(trained)", "math.log(trained + n // 9e3)"),
    "group": (GROUPS, "methods_self_extend", "k // group", "(k + 1) // group"),
    "old chunks": (CHUNKS, "methods_dca", "Part(2, None", "Part(2, 14"),
    "step in a chunk": (CHUNKS, "methods_dca", "step < local", "step <= local"),
    "sinks": ("streaming:sinks=4", "methods_streaming", "first=self.sinks", "first=5"),
    "turned keys": (RE, "engine_chunked", "turn(k, k_at)", "turn(k, k_at // 2)"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_carried_code_that_show_far_out_are_found(fault: str, tmp_path: Path) -> None:
    """The tokens that are read are few, and L eight times T."""
    spec, name, right, wrong = FAULTS[fault]
    source = folder(tmp_path / "source", random_model(max_position_embeddings=2048))
    stage = carried(source, tmp_path / "stage", spec, 2**14, 2048)
    (file,) = (path for path in stage.iterdir() if name in path.name)
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))
    with pytest.raises(UnsupportedModelError, match=r"is not the patched llama model|cannot load"):
        run(source, stage, spec, 2**14, carried=True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("spec", [RE, GROUPS, CHUNKS, "streaming:sinks=4"])
def test_a_proof_reads_few_tokens(spec: str, tmp_path: Path, monkeypatch: Any) -> None:
    source = folder(tmp_path / "source", random_model(max_position_embeddings=2**15))
    stage = carried(source, tmp_path / "stage", spec, 2**16, 2**15)
    read, forward = [], transformers.LlamaModel.forward

    def count(model: Any, input_ids: Any = None, **given: Any) -> Any:
        read.append(input_ids.numel())
        return forward(model, input_ids, **given)

    monkeypatch.setattr(transformers.LlamaModel, "forward", count)
    found = run(source, stage, spec, 2**16, carried=True)
    assert all(figure.value == 0 for figure in found.figures)
    assert f"up to position {2**16}" in found.figures[-1].what
    assert sum(read) < 2**14


# The real weights --------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_full_proofs_load_the_weights(llama: Path, tmp_path: Path) -> None:
    """Weights of the export are taken; where it has none, those of the source."""
    stage = edited(llama, tmp_path / "stage", rope_parameters=LINEAR)
    found = run(llama, stage, "pi:factor=4", 1024, full=True)
    mine = [figure for figure in found.figures if figure.what.startswith("the weights: ")]
    assert [figure.value for figure in mine] == [0, 0]
    assert "the weights" in found.loaded
    random_model(seed=1).save_pretrained(stage)
    edited(llama, stage, rope_parameters=LINEAR)
    with pytest.raises(UnsupportedModelError, match="the weights: logits"):
        run(llama, stage, "pi:factor=4", 1024, full=True)


# Small models ------------------------------------------------------------------------------------

LARGE: dict[str, Any] = {
    "llama": {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "eos_token_id": [128001, 128009],
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "mixtral": {
        "hidden_size": 6144,
        "num_hidden_layers": 56,
        "num_attention_heads": 48,
        "intermediate_size": 16384,
        "max_position_embeddings": 65536,
    },
    "deepseek_v3": {"max_position_embeddings": 163840},
    "gemma2": {
        "hidden_size": 4608,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
    "gemma3": {},
    "gemma3n_text": {},
    "gpt_neox": {},
    "qwen2": {"max_window_layers": 28, "use_sliding_window": True, "sliding_window": 4096},
    "qwen3_moe": {"head_dim": 128},
    "cohere2": {"num_hidden_layers": 40},
}


@pytest.mark.parametrize("kind", LARGE)
def test_large_models_are_made_small(kind: str) -> None:
    config = AutoConfig.for_model(kind, **LARGE[kind])
    model, changes = small_model(config)
    assert sum(weight.numel() for weight in model.parameters()) < 3e7
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    small, text = model.config.get_text_config(), config.get_text_config()
    unchanged = (
        *("rope_parameters", "max_position_embeddings", "sliding_window", "hidden_act"),
        *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
        *("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rms_norm_eps"),
    )
    for key in unchanged:
        assert getattr(small, key, None) == getattr(text, key, None), key
    assert head_dim(small) == head_dim(text)
    kinds = [set(getattr(c, "layer_types", None) or ()) for c in (small, text)]
    assert kinds[0] == kinds[1]
    assert small.num_hidden_layers >= 2
    for part in (model.config, small):
        ids = [v for k, v in part.to_dict().items() if k.endswith("_token_id") and v is not None]
        flat = [i for each in ids for i in (each if isinstance(each, list) else [each])]
        assert all(-1 <= i < small.vocab_size for i in flat)
    again = type(config).from_dict(merge(config.to_dict(), changes)).get_text_config().to_dict()
    assert again | {"dtype": "float32"} == small.to_dict()


def test_frequencies_of_a_small_model_are_those_of_the_large_one() -> None:
    """By the formula that the config states: base^(−2i/d), d half of a head's 80."""
    config = AutoConfig.for_model(
        "phi",
        hidden_size=2560,
        num_attention_heads=32,
        num_hidden_layers=32,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.4,
        },
    )
    (source,) = find_frequency_sets(small_model(config)[0])
    want = torch.tensor([1e4 ** (-2 * i / 32) for i in range(16)])
    torch.testing.assert_close(source.inv_freq, want, rtol=1e-6, atol=0)


def test_tiny_models_are_left_as_they_are(llama: Path) -> None:
    config = AutoConfig.from_pretrained(llama)
    model, changes = small_model(config)
    assert changes == {}
    assert sum(weight.numel() for weight in model.parameters()) < 1e5


def test_what_cannot_be_made_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("llama", **LARGE["llama"])
    monkeypatch.setattr("ctxext.models.small.STEPS", (("vocabulary",), ()))
    with pytest.raises(UnsupportedModelError, match=r"llama: .*more than 100,000,000 parameters"):
        small_model(config)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", 4096), ("num_hidden_layers", 3), ("vocab_size", 1000)]
)
def test_sizes_that_a_small_model_hides_are_compared(
    key: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = AutoConfig.for_model("llama", **LARGE["llama"])
    large.save_pretrained(tmp_path / "source")
    rope = PLAIN | {"rope_theta": 5e5}
    large.rope_parameters = rope
    source = edited(tmp_path / "source", tmp_path / "source", rope_parameters=rope)
    run(source, edited(source, tmp_path / "stage"), "rope", 2048, train_len=1024)
    with pytest.raises(UnsupportedModelError, match=f"its {key} is {value} and not"):
        run(source, edited(source, tmp_path / "stage", **{key: value}), "rope", 2048)


def test_a_disk_that_is_full_is_told(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(UsageError, match="No space left on device: make room"):
        run(llama, edited(llama, tmp_path / "stage"), "rope")


def test_a_disk_that_fills_up_while_weights_are_saved_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are written by safetensors, whose errors are its own."""
    source = folder(tmp_path / "in", random_model("llama-gqa"))

    def fail(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", fail)
    with pytest.raises(
        UsageError, match=r"no proof can be made beside the export: .*: make room there$"
    ):
        run(source, edited(source, tmp_path / "out"), "rope")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("spec", ["rerope:window=9", "yarn:factor=2+rerope:window=9+logn"])
def test_carried_code_that_leaves_some_of_a_scaling_is_found(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latent attention has a softmax scaling by its own yarn; both sides would be wrong alike."""
    own = {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0}
    own |= {"rope_theta": 10000.0, "original_max_position_embeddings": TRAINED}
    source = folder(tmp_path / "source", tiny_model("deepseek_v3", rope_parameters=own))
    order = Order(source, patches.parse(spec), LENGTH, tmp_path / "out", own_scaling="replace")
    done = export(order)
    assert all(figure.value == 0 for figure in done.proof.figures)
    *_, figure = done.proof.figures
    given = Source("", own_scaling="replace")
    model = small_model(AutoConfig.from_pretrained(source))[0]
    assert list(figures.of_stock(model, order.spec, LENGTH, given)) == [figure]
    monkeypatch.setattr(patch, "apply_numbers", lambda *_: None)
    (wrong,) = figures.of_stock(model, order.spec, LENGTH, given)
    assert not wrong.holds
    assert "against a stock model's" in wrong.what
