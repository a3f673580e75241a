"""The card of an export shows what it is given as text, whoever wrote that."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ctxext import patches
from ctxext.export.card import Facts, source_metadata, write_card
from ctxext.export.write import public_name
from ctxext.methods.base import Span

SPEC = patches.parse("pi").resolve(Span(512, 2048))
FACTS = Facts("m", None, Path("m"), SPEC, 2048, 512, "linear", False, True, False, None, None, ())
BOMB = "".join(f"x{i}: &x{i} [{f'*x{i - 1},' * 9 if i else 'mit'}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("front", "kept"),
    [
        ("license: mit\nlanguage: [en, de]", {"license": "mit", "language": ["en", "de"]}),
        ("license: mit\r\nlanguage: en\r", {"license": "mit", "language": "en"}),
        ('license: "mit\\n---\\n# mine"', {}),
        ('license: "m\\u202eit"\nlanguage: [en, 5, {a: b}, [de]]', {"language": ["en"]}),
        ("license: 5\nlanguage: [no]", {}),
        (f"license: {'m' * 300}", {}),
        (f"{BOMB}license: *x11", {}),
        (f"license: {'[' * 3000}", {}),
        ("license: mit\nmodel-index: 5", {"license": "mit"}),
        ("base_model: org/base", {"base_model": "org/base"}),
        ("base_model: /home/me/base", {}),
        ("base_model: [org/a, org/b]", {}),
        ("- license", {}),
        ("license: !!python/object/apply:os.getcwd []", {}),
        (f"license: mit\nx: {'m' * 2**20}", {}),
    ],
)
def test_of_the_sources_card_only_short_lines_are_kept(
    front: str, kept: object, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n", newline="")
    assert source_metadata(tmp_path) == kept
    (tmp_path / "out").mkdir()
    write_card(tmp_path / "out", replace(FACTS, source=tmp_path))
    _, head, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert body.lstrip().startswith("# m, pi:factor=4, 2048 tokens")


def test_a_card_without_metadata_or_none_at_all_says_nothing(tmp_path: Path) -> None:
    assert source_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"# A model\n\xff\n---\nlicense: mit\n---\n")
    assert source_metadata(tmp_path) == {}


def test_code_in_the_card_names_the_model_as_it_is(tmp_path: Path) -> None:
    write_card(tmp_path, replace(FACTS, hub_id="org/my_model", weights=False))
    text = (tmp_path / "README.md").read_text()
    assert 'from_pretrained("org/my_model", config=config)' in text
    assert "vllm serve org/my_model --hf-config-path" in text


@pytest.mark.parametrize("name", ["smollm2", "llama", "org/name", "tiny"])
def test_a_folders_name_is_no_claim(name: str, tmp_path: Path) -> None:
    """What the card of the folder says is known; the name of the folder says nothing."""
    write_card(tmp_path, replace(FACTS, name=name, source=tmp_path / "none"))
    text = (tmp_path / "README.md").read_text()
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])
    (tmp_path / "of").mkdir()
    (tmp_path / "of" / "README.md").write_text("---\nbase_model: org/base\n---\n")
    for hub_id, base in ((None, "org/base"), ("org/own", "org/own")):
        facts = replace(FACTS, name=name, hub_id=hub_id, source=tmp_path / "of", weights=False)
        write_card(tmp_path, facts)
        text = (tmp_path / "README.md").read_text()
        assert yaml.safe_load(text.split("---\n")[1])["base_model"] == base
        assert ("vllm serve org/own" in text) is (hub_id is not None)


def test_a_card_says_how_to_serve_the_model_as_it_is(tmp_path: Path) -> None:
    told = {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "text_config": "it's"}
    facts = replace(FACTS, hub_id="org/m", overrides=told)
    write_card(tmp_path, facts)
    card = (tmp_path / "README.md").read_text()
    for option in ("--hf-overrides", "--json-model-override-args"):
        (line,) = (line for line in card.splitlines() if option in line)
        words = shlex.split(line)
        assert json.loads(words[words.index(option) + 1]) == told
        assert words[-1] == "2048"
        assert "org/m" in words
    for changes in ({"carried": True}, {"latent": True}, {"overrides": {}}):
        write_card(tmp_path, replace(facts, **changes))
        assert "--hf-overrides" not in (tmp_path / "README.md").read_text()


def test_a_gguf_files_card_has_a_modelfile(tmp_path: Path) -> None:
    write_card(tmp_path, replace(FACTS, gguf="m.gguf"))
    card = (tmp_path / "README.md").read_text()
    assert "llama-server -m m.gguf -c 2048" in card
    assert "FROM ./m.gguf\nPARAMETER num_ctx 2048\n" in card


def test_where_a_folder_lies_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert public_name(str(tmp_path / "mine"), tmp_path / "mine") == "mine"
    assert public_name("", tmp_path / "mine") == "mine"
    assert public_name("org/name", tmp_path) == "org/name"


def test_engines_that_read_the_config_otherwise_are_not_named(tmp_path: Path) -> None:
    for latent, said in ((False, "vllm serve"), (True, "vLLM and SGLang read `linear` otherwise")):
        write_card(tmp_path, replace(FACTS, latent=latent))
        card = (tmp_path / "README.md").read_text()
        assert said in card
        assert ("vllm serve" in card) is not latent
