"""What a prompt's token ids are: nothing after its end, one start, and chat templates."""

from __future__ import annotations

import gc
import json
import weakref
from array import array
from pathlib import Path
from typing import Any

import pytest
import transformers
from test_eval import BOS, Run, runner, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from ctxext import tasks
from ctxext.errors import UsageError
from ctxext.measure.inputs import Inputs
from ctxext.measure.tokens import start_token
from ctxext.models.prompting import Frame, Prompter, frame
from ctxext.tasks.base import Sample
from ctxext.tasks.lm_eval.padding import padding
from ctxext.tasks.longbench.questions import Questions
from ctxext.tasks.passkey import PassKey
from ctxext.tasks.ruler.task import Ruler

START, END, TURN = 0, 1, 2
FRAMES = {
    "$A": ([], []),
    "<s> $A": ([START], []),
    "$A </s>": ([], [END]),
    "<s> $A </s>": ([START], [END]),
    "<s> <t> $A </s> </s>": ([START, TURN], [END, END]),
}
CHAT = (
    "{% for m in messages %}<t>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)
THINKS = CHAT + "{% if enable_thinking is defined and not enable_thinking %}<off>{% endif %}"
SPECS = ["passkey:samples=1,depths=2", "kv:samples=1,depths=2", "ruler:vt,samples=1",
         "ruler:niah_single_1,samples=1", "ruler:fwe,samples=1"]  # fmt: skip


def letters(around: str = "$A", chat: str | None = None) -> Any:
    """One byte, one token, and what the template of the post-processor says."""
    special = ["<s>", "</s>", "<t>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({w: n for n, w in enumerate([*special, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(word, n) for n, word in enumerate(special)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=chat,
        additional_special_tokens=["<t>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def drawn(spec: str, tokenizer: Any, length: int, data: Any = None) -> list[Sample]:
    task = tasks.parse(spec)
    return task.prompts(tokenizer, length, data or task.read(None), 0, None)  # type: ignore[attr-defined]


def asked(context: str) -> Questions:
    return Questions("q", "0", ({"context": context, "input": "Why?", "answers": ["a"]},))


@pytest.mark.quick
@pytest.mark.parametrize("around", FRAMES)
def test_what_a_tokenizer_adds_is_seen(around: str) -> None:
    before, after = FRAMES[around]
    assert frame(letters(around)) == Frame(tuple(before), tuple(after))
    assert start_token(letters(around)) == (START if before else None)
    prompt = Prompter(letters(around))
    assert prompt.ids("word", " on") == [*before, *letters().encode("word on")]
    assert prompt.ids("") == before
    assert prompt.ids("ends</s>")[-1] == END  # its own


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("around", FRAMES)
def test_no_prompt_goes_on_behind_its_end(around: str, spec: str) -> None:
    """A prompt is that of a tokenizer that adds nothing, as long as the start leaves it."""
    before, _ = FRAMES[around]
    length = 4000 if spec.startswith("ruler") else 1600
    found = drawn(spec, letters(around), length + len(before))
    plain = drawn(spec, letters(), length)
    assert [list(s.ids) for s in found] == [[*before, *s.ids] for s in plain]


@pytest.mark.parametrize("around", FRAMES)
@pytest.mark.parametrize("budget", [0, 1, 2, 500, 4000])
def test_what_loses_its_middle_has_no_seam_of_special_tokens(around: str, budget: int) -> None:
    """A cut to the token: a byte is a token, so what is left has the length asked for."""
    before, _ = FRAMES[around]
    text = " ".join(map(str, range(700)))
    budget += 300
    (sample,) = drawn("longbench:hotpotqa", letters(around), budget + 32, asked(text))
    ids = list(sample.ids)
    assert ids[: len(before)] == before
    assert not {START, END, TURN} & set(ids[len(before) :])
    assert len(ids) == (budget - budget % 2 if sample.facts["truncated"] else len(ids)) <= budget
    assert sample.facts["truncated"] == (budget < 3500)


@pytest.mark.parametrize("around", FRAMES)
def test_lm_eval_sees_no_end_either(around: str) -> None:
    """Where an answer begins lm_eval finds by the length of the prompt alone."""
    import torch

    model = torch.nn.Module()
    model.get_input_embeddings = lambda: torch.nn.Embedding(300, 2)  # type: ignore[assignment]
    before, _ = FRAMES[around]
    used = letters(around)
    copied = padding(used, model)
    assert copied("word").input_ids == [*before, *letters().encode("word")]
    assert copied(["a", "word"], padding=True).input_ids[1] == copied("word").input_ids
    assert frame(used) == Frame(*map(tuple, FRAMES[around]))  # only the copy is another


@pytest.mark.quick
@pytest.mark.parametrize("around", FRAMES)
def test_a_template_that_writes_the_start_gets_no_second(around: str) -> None:
    before, _ = FRAMES[around]
    said = letters().decode(before)
    body = "<t>user\nHello</s><t>assistant\n"
    for template in (CHAT, said + CHAT):
        ids = Prompter(letters(around, template), True).ids("Hello", "So")
        assert letters().decode(ids) == f"{said}{body}So"
    # an end that is written after a turn is no start
    same = letters("</s> $A", CHAT)
    assert Prompter(same, True).ids("Hello")[0] == END


@pytest.mark.parametrize("spec", [*SPECS, "longbench:hotpotqa"])
def test_thinking_is_off_where_the_template_has_such_a_mode(spec: str) -> None:
    data = asked("short") if "longbench" in spec else None
    for template, facts in ((CHAT, {"chat": True}), (THINKS, {"chat": True, "thinking": False})):
        (sample, *_) = drawn(f"{spec},chat=true", letters("<s> $A", template), 4000, data)
        assert {k: v for k, v in sample.facts.items() if k in ("chat", "thinking")} == facts
        assert letters().decode(sample.ids).count("<off>") == ("thinking" in facts)


def test_an_answer_begins_behind_the_generation_prompt() -> None:
    """As in RULER's own scripts: the template around the task, then the answer's beginning."""
    starts = {
        "passkey:samples=1": " The pass key is",
        "kv:samples=1": "Corresponding value:",
        "ruler:vt,samples=1": " Answer: According to the chain(s)",
        "ruler:niah_single_1,samples=1": " The special magic number for ",
        "ruler:fwe,samples=1": " Answer: According to the coded text above,",
    }
    for spec, start in starts.items():
        task = tasks.parse(spec)
        chats, plain = (
            drawn(f"{spec},chat={'true' if chat else 'false'}", letters("<s> $A", CHAT), 4000)
            for chat in (True, False)
        )
        user, answer = letters().decode(chats[0].ids).split("</s><t>assistant\n")
        assert user.startswith("<s><t>user\n")
        assert answer.startswith(start)
        assert letters().decode(plain[0].ids).endswith(answer)
        room = 4000 - task.generates - len(chats[0].ids)  # type: ignore[attr-defined]
        assert 0 <= room <= 100
        without = drawn(spec, letters("<s> $A"), 4000)
        assert not without[0].facts["chat"]
        assert list(without[0].ids) == list(plain[0].ids)
        with pytest.raises(UsageError, match="no chat template: leave chat=true out"):
            drawn(f"{spec},chat=true", letters(), 4000)


def test_defaults_are_those_of_the_published_scripts() -> None:
    used = letters("<s> $A", CHAT)
    for spec, chat in (("passkey", False), ("kv", True), ("ruler:vt", True)):
        assert drawn(spec, used, 4000)[0].facts["chat"] is chat


def test_records_say_how_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer that appends an end reads the same prompts, and finds as many keys."""
    run: Run = runner(monkeypatch, capsys)
    plain = save_model(tmp_path / "plain", bos=True)
    closing = save_model(tmp_path / "closing", bos=True)
    file = closing / "tokenizer.json"
    core = json.loads(file.read_text())
    core["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    core["post_processor"]["special_tokens"]["</s>"] = {
        "id": "</s>", "ids": [BOS + 1], "tokens": ["</s>"]
    }  # fmt: skip
    file.write_text(json.dumps(core))
    found = []
    for folder in (plain, closing):
        ran = run("eval", "--model", folder, "--len", 400, "--task", "passkey:samples=1,depths=2",
                  "--out", tmp_path / "out", "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        (record,) = ran.records
        assert (record["chat"], record["thinking"]) == (False, None)
        rows = (tmp_path / "out" / record["predictions"]).read_text().splitlines()
        found.append([(json.loads(row)["prompt"], json.loads(row)["pred"]) for row in rows])
    assert found[0] == found[1]


def test_prompts_are_made_for_one_cell_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once for all methods, when the first of them comes to it; those before are let go of. What
    cannot be made is the failure of its cells."""
    run: Run = runner(monkeypatch, capsys)
    folder, out = save_model(tmp_path / "plain", bos=True), tmp_path / "out"
    made: list[tuple[int, int]] = []
    alive: list[tuple[int, weakref.ref[Sample]]] = []
    make, take = PassKey.prompts, Inputs.samples

    def prompts(self: PassKey, tokenizer: Any, length: int, *more: Any) -> list[Sample]:
        made.append((length, len(list(out.glob("*.json")))))
        if length == 420:
            raise UsageError("no luck")
        return make(self, tokenizer, length, *more)

    def samples(self: Inputs, cell: Any) -> Any:
        found = take(self, cell)
        gc.collect()
        assert all(one() is None for length, one in alive if length != cell.length)
        if isinstance(found, list):
            assert isinstance(found[0].ids, array)
            alive.extend((cell.length, weakref.ref(sample)) for sample in found)
        return found

    monkeypatch.setattr(PassKey, "prompts", prompts)
    monkeypatch.setattr(Inputs, "samples", samples)
    ran = run("eval", "--model", folder, "--len", "400,420,440", "--task",
              "ppl,passkey:samples=1,depths=2", "--method", "ntk:factor=4", "--limit", 2,
              "--data", save_text(tmp_path), "--out", out, "--json")  # fmt: skip
    assert ran.code == 1
    assert [r["status"] for r in ran.records] == [*["ok"] * 3, "error", *["ok"] * 2] * 2
    assert {r["reason"] for r in ran.records} == {None, "no luck"}
    keyed = [(r["requested"], r["length"], r["metric"]) for r in ran.records]
    methods, lengths = ("rope", "ntk:factor=4"), (400, 420, 440)
    assert keyed == [
        (m, n, what) for m in methods for n in lengths for what in ("perplexity", "passkey")
    ]
    assert made == [(400, 6), (420, 8), (440, 10)]


def test_a_dry_run_makes_no_prompts_that_fill_a_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for one of each depth, where what they have in common is read once."""
    run: Run = runner(monkeypatch, capsys)
    folder, limits = save_model(tmp_path / "plain", bos=True), []
    make = PassKey.prompts

    def prompts(self: Any, tokenizer: Any, length: int, data: Any, seed: int, limit: int) -> Any:
        limits.append(limit)
        return make(self, tokenizer, length, data, seed, limit)

    monkeypatch.setattr(PassKey, "prompts", prompts)
    monkeypatch.setattr(Ruler, "prompts", None)
    monkeypatch.setenv("CTXEXT_CACHE", str(tmp_path / "cache"))
    ran = run("eval", "--model", folder, "--len", "4096", "--method", "ntk:factor=200", "--task",
              "ruler:fwe,niah_single_1,samples=30,passkey:depths=2", "--out", tmp_path / "out",
              "--dry-run", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert not (tmp_path / "cache").exists()
    assert limits == [2, 2]
    tokens = {record["task"]: record["tokens"] for record in ran.records}
    assert tokens["ruler:fwe,samples=30"] == 30 * (4096 - 50)
    assert abs(tokens["passkey:depths=2"] - 40 * (4096 - 8)) < 40 * 5
    short = run("eval", "--model", folder, "--len", "200", "--task", "ruler:vt,samples=1",
                "--out", tmp_path / "out")  # fmt: skip
    assert "does not fit into length 200: give --len" in short.err


def save_text(folder: Path) -> Path:
    (folder / "t.txt").write_text("the cat sat on the mat " * 200)
    return folder / "t.txt"
