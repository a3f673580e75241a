"""LongBench's prompts, limits, truncation and data, against the official rules written out here."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import transformers
from test_eval import Ran, Run

from ctxext import tasks
from ctxext.errors import UsageError
from ctxext.tasks.base import Sample, Score
from ctxext.tasks.longbench import prompts, questions
from ctxext.tasks.longbench.task import LongBench
from ctxext.tasks.longbench_e import LongBenchE
from ctxext.tasks.scoring import longbench as scoring

SHARED = Path(os.environ.get("CTXEXT_SHARED", Path(__file__).parents[2] / "shared"))
TINY = Path(__file__).parents[1] / "ctxext" / "models" / "shipped" / "tiny"

# From the official config/dataset2maxlen.json, and the SHA-256 of the texts in dataset2prompt.json,
# with {context} and {input} as they stand there.
OFFICIAL = {
    "narrativeqa": (128, "aada7ed24b06abace5b0045ac3bcfe06fc831a6cf434f0ecfd99fb7b3d299e1c"),
    "qasper": (128, "0fbdd123fe7f83d6d6a9c583ca28cb29d68e523bf8fec01a0cf2dcd11037775d"),
    "multifieldqa_en": (64, "20b4666a2de8a1f701bdb6c4e015fa9f8758d64b361d841f7766df6c9ceba770"),
    "multifieldqa_zh": (64, "344b3a4e557cd5470c661b3d6b374339717e1257a6c01f628d22322d4a554b94"),
    "hotpotqa": (32, "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb"),
    "2wikimqa": (32, "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb"),
    "musique": (32, "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb"),
    "dureader": (128, "ae53329f51b17908e08b8c6bf366987282b8b38c0ee35275ebd7b79e9b30eff2"),
    "gov_report": (512, "91c25d585b189ced91c9280efcb4ecb5dcff9548cd4e3bfae66c68025b569e95"),
    "qmsum": (512, "dca23b678fe0183bbd9555b57947022aed1b85739da5ad7e1b4708dd0c71c409"),
    "multi_news": (512, "2af3f28c40b902e6535d4910510d51653613c49de9b2fc287c5958395061101d"),
    "vcsum": (512, "3e5d8241bc9b512eb4929c1ba80882a44f50b446bc2b1d9d79eff030dd10dc27"),
    "trec": (64, "0eff8bebdba99d91e9d7d91b6ab39455ac74648bea92c9255c9f68c62175b2db"),
    "triviaqa": (32, "00a802e6377e72fca39b169cf6c28893bedf23ba7286b03ecd15867c3e27a7c4"),
    "samsum": (128, "a68d884234907eefcaa0eacf7b2997f60fa46603988dceae6a44f9b49f045b3f"),
    "lsht": (64, "f3edabdf7fae53d6cadfa7a10f3574d114302161c46dacecd5d30763204bbbf3"),
    "passage_count": (32, "986550b6c61009c629a4535766d94b7b51e2b2b9e1ed169e4ecb54417466e964"),
    "passage_retrieval_en": (
        32,
        "39b96b7fa52bdd2aa2bde34ea199158505201b9a0a2c3ce94e80249293f60431",
    ),
    "passage_retrieval_zh": (
        32,
        "c1e2346e245eb365bc33a1503cde2e473948a2aad51c3e4c72893e61ab074d60",
    ),
    "lcc": (64, "6a1f24cf0bb83cd90f1fca8f0dd24801626c2aaea29db834ddc83b950e71190e"),
    "repobench-p": (64, "ee9ec182ea5ffeb70a7140d55baea97264a8612d88226d323afa90859c36240c"),
}
WITHOUT_TEMPLATE = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
BARE = "Summarize the dialogue into a few short sentences. The following are some examples."
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TINY)


def tokenizer_with_start(chat: str | None) -> Any:
    """One byte, one token; `<s>` before every text; special tokens of chats."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    words = {word: index for index, word in enumerate([*special, *letters])}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", chat_template=chat,
        additional_special_tokens=special[2:], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def row(context: str, question: str = "What?", **more: Any) -> dict[str, Any]:
    return {"input": question, "context": context, "answers": ["a"], "length": len(context.split()),
            "dataset": "", "language": "en", "all_classes": ["a", "b"], "_id": f"{len(context):x}",
            **more}  # fmt: skip


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def samples(
    task: LongBench, tokenizer: Any, length: int, path: Path, limit: int | None = None
) -> list[Sample]:
    return task.prompts(tokenizer, length, task.read(str(path)), 0, limit)


def prose(words: int, seed: int = 0) -> str:
    pick = random.Random(seed)
    return " ".join(pick.choice(["north", "of", "the river", "déjà", "段落", "x"])
                    for _ in range(words))  # fmt: skip


def published(tokenizer: Any, prompt: str, budget: int) -> list[int]:
    """pred.py's rule, for a model without a template."""
    tokenized = tokenizer(prompt, truncation=False).input_ids
    if len(tokenized) > budget:
        half = int(budget / 2)
        head = tokenizer.decode(tokenized[:half], skip_special_tokens=True)
        prompt = head + tokenizer.decode(tokenized[-half:], skip_special_tokens=True)
    return tokenizer(prompt, truncation=False).input_ids


@pytest.mark.parametrize("task", OFFICIAL)
def test_prompts_and_limits_are_the_official_ones(task: str) -> None:
    limit, digest = OFFICIAL[task]
    text = prompts.prompt(task).render("{context}", "{input}")
    assert hashlib.sha256(text.encode()).hexdigest() == digest, text
    assert LongBench(task).generates == limit


def test_what_stands_in_a_row_is_never_a_template() -> None:
    text = prompts.prompt("samsum").render("{{ 1 + 1 }}{% if %}\n", "{input}<b>&\n")
    assert text == BARE + "\n\n{{ 1 + 1 }}{% if %}\n\n\n{input}<b>&\n"


def test_members_and_metrics_are_the_official_ones() -> None:
    assert set(LongBench.members()) == set(OFFICIAL)
    assert len(LongBenchE.members()) == 13
    assert set(LongBenchE.members()) <= set(OFFICIAL)
    assert tasks.parse("longbench:hotpotqa").metric == "qa_f1_score"
    assert tasks.parse("longbench-e:lcc").metric == "code_sim_score"
    assert "rouge_score" in LongBench.describe()["metric"]
    assert "chat=true|false" in LongBench.describe()["parameters"]
    assert "vcsum" not in LongBenchE.describe()["task"]


@pytest.mark.parametrize("spec", ["longbench:vcsum", "longbench-e:lcc,chat=false"])
def test_specs_parse_back(spec: str) -> None:
    assert str(tasks.parse(spec)) == spec
    assert tasks.parse(spec) == tasks.parse(str(tasks.parse(spec)))


def test_unknown_tasks_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'hotpotqa'"):
        tasks.parse("longbench:hotpotq")
    with pytest.raises(UsageError, match="unknown longbench-e task 'vcsum'"):
        tasks.parse("longbench-e:vcsum")


def test_only_samsum_stops_at_a_line_break(tokenizer: Any) -> None:
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    for task in OFFICIAL:
        stops = list(LongBench(task).stops(tokenizer))
        assert stops == ([newline] if task == "samsum" else [])
        assert LongBench(task).at_least == int(task == "samsum")


def test_scores_are_the_scorer_s(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def score(task: str, rows: Any, extended: bool = False) -> Score:
        called.append((task, rows, extended))
        return Score(1.0, None)

    monkeypatch.setattr(scoring, "score", score)
    LongBench("lcc").score([{"pred": "x"}])
    LongBenchE("lcc").score([{"pred": "y"}])
    assert called == [("lcc", [{"pred": "x"}], False), ("lcc", [{"pred": "y"}], True)]


@pytest.mark.parametrize("start", [False, True])
def test_truncation_is_the_published_rule(tokenizer: Any, tmp_path: Path, start: bool) -> None:
    """Where the published result fits, it is taken as it is; the byte tokenizer's always does."""
    used = tokenizer_with_start(None) if start else tokenizer
    rows = [row(prose(n, n), _id=str(n)) for n in (0, 3, 40, 200, 1000)]
    data, exact = write(tmp_path / "hotpotqa.jsonl", *rows), 0
    text = prompts.prompt("hotpotqa")
    for length in (100, 301, 512, 5000):
        for sample, one in zip(samples(LongBench("hotpotqa"), used, length, data), rows,
                               strict=True):  # fmt: skip
            whole = text.render(one["context"], one["input"])
            wanted = published(used, whole, length - 32)
            assert len(sample.ids) <= length - 32
            assert sample.facts["truncated"] == (len(used(whole).input_ids) > length - 32)
            if len(wanted) <= length - 32:
                exact += 1
                assert list(sample.ids) == wanted
    assert exact >= 15


@pytest.mark.parametrize("task", ["qmsum", "trec", "lcc"])
def test_templates_wrap_what_is_left_and_all_fits(task: str, tmp_path: Path) -> None:
    """Ids of the byte tokenizer are letters: what a prompt says can be read off."""
    used = tokenizer_with_start(CHATML)
    limit, length = OFFICIAL[task][0], OFFICIAL[task][0] + 300
    context = " ".join(str(n) for n in range(400))
    text = prompts.prompt(task).render(context, "What?")
    data = write(tmp_path / f"{task}.jsonl", row(context))
    sample = samples(LongBench(task), used, length, data)[0]
    said = used.decode(sample.ids)
    assert len(sample.ids) <= length - limit
    assert sample.facts["truncated"]
    if task in WITHOUT_TEMPLATE:
        kept = 150  # <s> takes one of the first half
        assert said == "<s>" + text[: kept - 1] + text[-kept:]
    else:
        head, tail = "<s><|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        assert said.startswith(head + text[:20])
        assert said.endswith(text[-20:] + tail)
        assert len(sample.ids) >= length - limit - 3  # the excess, no more, is taken off
    short = samples(LongBench(task), used, 20_000, data)[0]
    assert not short.facts["truncated"]
    assert text in used.decode(short.ids)


def test_templates_that_write_the_start_do_not_get_a_second(tmp_path: Path) -> None:
    data = write(tmp_path / "qasper.jsonl", row("A study."))
    for template in (CHATML, "{{ bos_token }}" + CHATML):
        used = tokenizer_with_start(template)
        ids = list(samples(LongBench("qasper"), used, 4096, data)[0].ids)
        assert ids[0] == used.bos_token_id
        assert ids.count(used.bos_token_id) == 1


def test_chat_says_whether_the_template_is_used(tokenizer: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "qasper.jsonl", row("A study."))
    used = tokenizer_with_start(CHATML)

    def said(chat: bool | None) -> str:
        return used.decode(samples(LongBench("qasper", chat=chat), used, 4096, data)[0].ids)

    assert said(None) == said(True) != said(False)
    assert "im_start" not in said(False)
    with pytest.raises(UsageError, match="has no chat template: leave chat=true out"):
        samples(LongBench("qasper", chat=True), tokenizer, 4096, data)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no\nuser') }}", "{% for %}", "{{ messages[7].content }}"]
)
def test_broken_templates_are_one_line(template: str, tmp_path: Path) -> None:
    data = write(tmp_path / "qasper.jsonl", row("A study."))
    with pytest.raises(UsageError, match=r"chat template cannot be used.*give chat=false") as error:
        samples(LongBench("qasper"), tokenizer_with_start(template), 4096, data)
    assert "\n" not in str(error.value)


def test_every_length_fits_or_says_the_least_that_does(tmp_path: Path) -> None:
    used = tokenizer_with_start(CHATML)
    data = write(tmp_path / "hotpotqa.jsonl", row(prose(200)))
    task, said, works = LongBench("hotpotqa"), {}, []
    for length in range(1, 400):
        try:
            sample = samples(task, used, length, data)[0]
        except UsageError as error:
            said[length] = str(error)
        else:
            works.append(length)
            assert 0 < len(sample.ids) <= length - 32
    least = min(works)
    assert works == list(range(least, 400))
    assert len(said) == least - 1
    for length, message in said.items():
        assert f"longbench:hotpotqa: a length of {length} tokens is too short" in message
        assert message.endswith(f"give {least} or more")
    assert 32 < least < 100


def test_lengths_without_room_for_an_answer_are_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(UsageError, match=r"512 tokens is too short.*give 514 or more"):
        LongBench("multi_news").resolve(512, [4096, 512])
    assert LongBench("multi_news").resolve(512, [514]) == LongBench("multi_news")


def test_no_prompt_is_tokenised_more_often_than_it_must(tokenizer: Any, tmp_path: Path) -> None:
    """Once where it fits; twice, the halves being anew, where it is cut."""
    data = write(tmp_path / "qasper.jsonl", row("A study."), row(prose(900)))
    texts: list[str] = []

    class Counting:
        chat_template = None

        def __call__(self, text: str, **options: Any) -> Any:
            texts.extend([text] if "\n" in text else [])  # a word shows what the tokenizer adds
            assert options["verbose"] is False
            return tokenizer(text, **options)

        def decode(self, ids: Any, **options: Any) -> Any:
            return tokenizer.decode(ids, **options)

    assert len(samples(LongBench("qasper"), Counting(), 900, data)) == 2
    assert len(texts) <= 4
    texts.clear()
    samples(LongBench("qasper"), Counting(), 100_000, data)
    assert len(texts) == 2


def test_names_and_facts_of_rows(tokenizer: Any, tmp_path: Path) -> None:
    rows = [row("one", _id="x"), row("two", _id="y", all_classes=None, length=7)]
    data = write(tmp_path / "qasper.jsonl", *rows)
    first, second = samples(LongBench("qasper"), tokenizer, 4096, data)
    assert (first.name, second.name) == ("x", "y")
    assert first.answers == ["a"]
    assert second.facts == {
        "all_classes": None,
        "length": 7,
        "_id": "y",
        "truncated": False,
        "chat": False,
    }
    assert [s.name for s in samples(LongBench("qasper"), tokenizer, 4096, data, limit=1)] == ["x"]
    write(data, rows[0], {**rows[1], "_id": "x"})
    names = [s.name for s in samples(LongBench("qasper"), tokenizer, 4096, data)]
    assert names == ["00000", "00001"]
    assert [s.name for s in samples(LongBench("qasper"), tokenizer, 4096, data, 1)] == ["00000"]


def test_question_is_another_name_of_input(tmp_path: Path) -> None:
    old = row("one", "Why?\u2028\n")
    new = {("question" if key == "input" else key): value for key, value in old.items()}
    read = [LongBench("qasper").read(str(write(tmp_path / "q.jsonl", r))).rows for r in (old, new)]
    assert read[0] == read[1]
    assert read[0][0]["input"] == "Why?\u2028\n"


def test_data_may_be_compressed_and_its_endings_upper_case(tmp_path: Path) -> None:
    lines = write(tmp_path / "plain", row("plain")).read_bytes()
    (tmp_path / "QASPER.JSONL.gz").write_bytes(gzip.compress(lines))
    with zipfile.ZipFile(tmp_path / "DATA.ZIP", "w") as archive:
        archive.writestr("data/qasper.jsonl.gz", gzip.compress(lines))
    for where in (tmp_path, tmp_path / "QASPER.JSONL.gz", tmp_path / "DATA.ZIP"):
        data = LongBench("qasper").read(str(where))
        assert data.rows[0]["context"] == "plain"
        assert data.sha256 == hashlib.sha256(lines).hexdigest()
    (tmp_path / "QASPER.JSONL.gz").write_bytes(gzip.compress(lines)[:-9])
    with pytest.raises(UsageError, match="cannot be read: Compressed file ended"):
        LongBench("qasper").read(str(tmp_path))


def test_data_is_a_folder_a_file_or_the_archive(tmp_path: Path) -> None:
    plain = write(tmp_path / "qasper.jsonl", row("plain"))
    extended = write(tmp_path / "qasper_e.jsonl", row("extended"))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(plain, "data/qasper.jsonl")
        archive.write(extended, "data/qasper_e.jsonl")
    for where in (tmp_path, tmp_path / "data.zip"):
        for task, file in ((LongBench, plain), (LongBenchE, extended)):
            data = task("qasper").read(str(where))
            assert data.name == str(where)
            assert data.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
            assert data.rows[0]["context"] == file.stem.replace("qasper_e", "extended").replace(
                "qasper", "plain"
            )
    extended.unlink()
    assert LongBenchE("qasper").read(str(tmp_path)).rows[0]["context"] == "plain"
    assert LongBench("qasper").read(str(plain)).rows[0]["context"] == "plain"


def test_without_data_the_official_archive_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    file = write(tmp_path / "qasper.jsonl", row("plain"))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(file, "data/qasper.jsonl")
    asked = []

    def download(*what: str, **how: str) -> str:
        asked.append((what, how))
        return str(tmp_path / "data.zip")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    data = LongBench("qasper").read(None)
    assert asked == [(("zai-org/LongBench", "data.zip"), {"repo_type": "dataset"})]
    assert data.name == questions.HUB
    assert data.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_without_a_network_what_to_download_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: str, **__: str) -> str:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    wanted = r"`hf download zai-org/LongBench data.zip --repo-type dataset.*\.jsonl.*\(no network\)"
    with pytest.raises(UsageError, match=wanted):
        LongBench("qasper").read(None)


GOOD = json.dumps(row("one"))
BROKEN = {
    "not JSON": (b"{", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "number": (b"1" * 5000, "not JSON"),
    "list": (b"[1]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "no context": (b'{"input": "", "answers": []}', "no 'context'.*columns: 'input', 'answers'"),
    "no input": (b'{"context": "", "answer": []}', r"no 'input' \(or 'question'\).*'answer'"),
    "no answers": (b'{"context": "", "input": ""}', "no 'answers'"),
    "context": (b'{"context": 1, "input": "", "answers": []}', "'context' is not a string"),
    "input": (b'{"context": "", "input": null, "answers": []}', "'input' is not a string"),
    "answers": (b'{"context": "", "input": "", "answers": "a"}', "'answers' is not a list"),
    "answer": (b'{"context": "", "input": "", "answers": [1]}', "'answers' is not a list of str"),
    "length": (GOOD.replace('"length": 1', '"length": "1"').encode(), "'length' is not a whole"),
    "classes": (GOOD.replace('["a", "b"]', "[1]").encode(), "'all_classes' is not a list"),
    "surrogate": (GOOD.replace("one", "\\ud800").encode(), "half a surrogate pair"),
    "baked": (GOOD.replace("language", "answer_prefix").encode(), "already written into"),
    "another's": (GOOD.replace('"dataset": ""', '"dataset": "lcc"').encode(), "a row of lcc"),
    "latin-1": ("é".encode("latin-1"), "not UTF-8"),
    "empty object": (b"{}", "no 'context'.*columns: none"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_lines_name_file_and_line(case: str, tmp_path: Path) -> None:
    line, wanted = BROKEN[case]
    path = tmp_path / "qasper.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\n" + line + b"\n")
    with pytest.raises(UsageError, match=wanted) as error:
        LongBench("qasper").read(str(tmp_path))
    assert "qasper.jsonl', line 3: " in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_files_that_are_not_there_or_not_read(tmp_path: Path) -> None:
    task = LongBench("qasper")
    with pytest.raises(UsageError, match=r"no \.jsonl file in it"):
        task.read(str(tmp_path))
    write(tmp_path / "lcc.jsonl", row("one"))
    with pytest.raises(UsageError, match=r"has no qasper\.jsonl: there are lcc\.jsonl"):
        task.read(str(tmp_path))
    (tmp_path / "qasper.jsonl").write_text("\n \n")
    with pytest.raises(UsageError, match="is empty"):
        task.read(str(tmp_path))
    (tmp_path / "bad.zip").write_bytes(b"PK")
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "qasper.jsonl").mkdir()
    for name in ("bad.zip", "folder.zip", "none", "none.jsonl", "x", "\0", "a" * 5000):
        with pytest.raises(UsageError) as error:
            task.read(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_rows_that_cannot_be_scored_are_refused_before_they_are_answered(tmp_path: Path) -> None:
    write(tmp_path / "trec.jsonl", row("one"), row("two", all_classes=None))
    with pytest.raises(UsageError, match=r"trec\.jsonl.*row 2.*'all_classes'"):
        LongBench("trec").read(str(tmp_path / "trec.jsonl"))
    write(tmp_path / "lcc.jsonl", row("one", all_classes=None, length=None))
    with pytest.raises(UsageError, match=r"row 1.*'length'"):
        LongBenchE("lcc").read(str(tmp_path))
    assert LongBench("lcc").read(str(tmp_path)).rows[0]["length"] is None
    write(tmp_path / "lcc.jsonl", row("one", answers=[]))
    with pytest.raises(UsageError, match=r"row 1.*'answers'"):
        LongBench("lcc").read(str(tmp_path))


@pytest.mark.parametrize(
    ("task", "answer", "count"), [("passage_retrieval_zh", "段落27", 40), ("multi_news", "", 40)]
)
def test_real_rows(task: str, answer: str, count: int, tokenizer: Any) -> None:
    if not (SHARED / "longbench" / f"{task}.jsonl").exists():
        pytest.skip(f"needs {SHARED / 'longbench'}")
    one = LongBench(task)
    data = one.read(str(SHARED / "longbench"))
    found = one.prompts(tokenizer, 8192, data, 0, 3)
    assert len(data.rows) == len(set(data.names())) == count
    assert found[0].answers[0].startswith(answer)
    assert max(len(sample.ids) for sample in found) <= 8192 - one.generates
    official = prompts.prompt(task).render(data.rows[0]["context"], data.rows[0]["input"])
    wanted = published(tokenizer, official, 8192 - one.generates)
    assert len(wanted) > 8192 - one.generates or list(found[0].ids) == wanted


# The whole way.


def scored_again(run: Run, ran: Ran, out: Path) -> None:
    """`ctxext score` on the folders that were written gives each record's numbers."""
    assert ran.code == 0, ran.err
    folders: dict[Path, list[dict[str, Any]]] = {}
    for record in ran.records:
        assert record["status"] == "ok"
        folders.setdefault((out / record["predictions"]).parent, []).append(record)
    assert len(folders) == len({r["requested"] for r in ran.records})
    for folder, records in folders.items():
        again = run("score", folder, "--json", *(["--e"] if "-e:" in records[0]["task"] else []))
        assert again.code == 0, again.err
        results = {result["task"]: result for result in again.records}
        names = [record["task"].partition(":")[2].partition(",")[0] for record in records]
        assert sorted(results) == sorted(names) == sorted(p.stem for p in folder.iterdir())
        for name, record in zip(names, records, strict=True):
            for field in ("metric", "value", "stderr", "n", "also", "parts"):
                assert results[name][field] == record[field], field


def test_eval_and_score_agree_on_a_folder_of_ones_own(run: Run, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    text = "The river flows north. 段落1：北京 is a city. " * 40
    write(data / "qasper.jsonl", *(row(text, f"{i}?", answers=["north", "the"]) for i in range(3)))
    write(data / "lcc.jsonl", *(row(f"def f{i}():\n    return 1\n" * 30) for i in range(3)))
    write(
        data / "passage_retrieval_zh.jsonl",
        row(text, answers=["段落1"], _id=None, all_classes=None, length=None),
    )
    write(data / "trec.jsonl", *(row("Type: one\n" * 9, all_classes=["one", "two"]) for _ in "ab"))
    tasks = ",".join(f"longbench:{file.stem}" for file in sorted(data.glob("*.jsonl")))
    asked = ("--task", tasks, "--len", "512", "--method", "rerope", "--json", "--out", out)
    ran = run("eval", "--model", "tiny", "--data", data, *asked, "--limit", 2)
    assert len(ran.records) == 8
    scored_again(run, ran, out)
    by_task = {r["task"].partition(":")[2]: r for r in ran.records}
    assert {name: r["n"] for name, r in by_task.items()} == {
        "lcc": 2, "passage_retrieval_zh": 1, "qasper": 2, "trec": 2
    }  # fmt: skip
    assert {name: r["truncated"] for name, r in by_task.items()} == {
        "lcc": 0, "passage_retrieval_zh": 1, "qasper": 2, "trec": 0
    }  # fmt: skip
    assert not any(record["chat"] for record in ran.records)
    (path,) = {out / r["predictions"] for r in ran.records if "qasper" in r["task"]} - {
        out / by_task["qasper"]["predictions"]
    }
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [r["answers"] for r in rows] == [["north", "the"]] * 2
    assert all(r["length"] == len(text.split()) for r in rows)
    assert run("eval", "--model", "tiny", "--data", data, *asked, "--limit", 2).out == ran.out


def test_eval_and_score_agree_on_longbench_e(run: Run, tmp_path: Path) -> None:
    rows = [row("def f():\n    return 1\n" * 9, length=n) for n in (100, 5000, 9000, 200)]
    write(tmp_path / "lcc_e.jsonl", *rows)
    out = tmp_path / "out"
    for task in ("longbench-e:lcc", "longbench-e:lcc,chat=false"):
        asked = ("--task", task, "--len", "512", "--json", "--out", out)
        ran = run("eval", "--model", "tiny", "--data", tmp_path, *asked)
        scored_again(run, ran, out)
        assert [part["n"] for part in ran.records[0]["parts"]] == [2, 1, 1]
    assert len(list((out / "predictions").iterdir())) == 2


def test_eval_and_score_agree_on_real_rows(run: Run, tmp_path: Path) -> None:
    names = ("multi_news", "passage_retrieval_zh")
    if not all((SHARED / "longbench" / f"{name}.jsonl").exists() for name in names):
        pytest.skip(f"needs {SHARED / 'longbench'}")
    ran = run(
        *("eval", "--model", "tiny", "--data", SHARED / "longbench", "--limit", 2, "--len", "2k"),
        *("--task", ",".join(f"longbench:{name}" for name in names)),
        *("--json", "--out", tmp_path),
    )
    assert len(ran.records) == 2
    assert all(record["n"] == 2 for record in ran.records)
    scored_again(run, ran, tmp_path)
