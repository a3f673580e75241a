"""What the shipped model trains on: the corpus, its tokenizer, and rows of 513 tokens.

A row is library source, a book, a document that states something and asks for it, or a passage
said more than once; each is a function of the generator it is given, and so of (seed, step).
"""

from __future__ import annotations

import hashlib
import math
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from ctxext.tasks.data import stdlib_documents

CONTEXT, VOCABULARY = 512, 2048
EOS, EOS_ID = "<|endoftext|>", 0  # the first of the vocabulary, also for padding
BOOK_CHARS = 65536  # of each book, from its first quarter on
ANSWER_WEIGHT, ECHO_WEIGHT, UNKNOWABLE_WEIGHT, GRASS_WEIGHT = 8.0, 2.0, 0.1, 0.1

# What a token is, for the log of losses: the answers are what the model must look up.
CODE, BOOKS, ANSWER, COPY, OTHER = range(5)
KINDS = ("code", "books", "answer", "copy", "other")

HEADER = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
    "them. I will quiz you about the important information there."
)
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
# (statement, question, answer) of one key k and value v; the answer ends the document.
PAIR_FORMS = (
    ("One of the special magic numbers for {k} is: {v}.",
     "What is the special magic number for {k} mentioned in the provided text? "
     "The special magic number for {k} mentioned in the provided text is", " {v}"),
    ('"{k}": "{v}",', 'The value of "{k}" is:\n"{k}": "', '{v}"'),
    ("The {k} is {v}.", "What is the {k}? The {k} is", " {v}"),
    ("{k} = {v}", ">>> {k}\n", "{v}"),
    ("Remember that {k} means {v}.", "Question: what does {k} mean?\nAnswer: {k} means", " {v}"),
)  # fmt: skip

Piece = tuple[str, float, int]  # text, loss weight, kind
Row = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Phase:
    """From a step on: the rows per step, their shares, and whether to practise on short distances.

    Looking things up is learnt sooner where there is little to look through. So it starts with
    short passages said many times and short documents, several to a row.
    """

    step: int
    rows: int
    code: float
    books: float
    retrieval: float
    repetition: float
    short: bool = False
    packed: float = (
        0.0  # of code and book rows, the share made of pieces that have nothing in common
    )


@dataclass
class Corpus:
    """The tokenised training text, the held-out text, and the tokenizer made from the former."""

    tokenizer: tokenizers.Tokenizer
    ids: dict[str, npt.NDArray[np.uint16]]  # code, books, held_out
    text: dict[str, str]  # code, books
    hashes: dict[str, str]


def read_books(source: Path) -> Iterable[tuple[str, str]]:
    """(name, text) of the ``*.txt`` in a folder or a tar archive, by name."""
    if source.is_dir():
        for path in sorted(source.rglob("*.txt")):
            yield path.name, path.read_text(encoding="utf-8", errors="replace")
        return
    with tarfile.open(source) as archive:
        files = {m.name: archive.extractfile(m) for m in archive if m.name.endswith(".txt")}
        texts = {name: file.read() for name, file in files.items() if file}
    for name in sorted(texts):
        yield Path(name).name, texts[name].decode("utf-8", errors="replace")


def sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", errors="replace") + b"\0")
    return digest.hexdigest()


def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE, digits one by one, nothing added and nothing lost."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_corpus(books: Path, work: Path) -> Corpus:
    """Read, hash, tokenise; the tokens are kept in the work folder for the next start."""
    documents = {
        "code": [t for n, t in stdlib_documents(False) if not n.startswith("module:encodings.")],
        "books": [t[len(t) // 4 :][:BOOK_CHARS] for _, t in read_books(books)],
        "held_out": [text for _, text in stdlib_documents(True)],
    }
    hashes = {name: sha256(texts) for name, texts in documents.items()}
    cache = work / f"corpus-{sha256(hashes.values())[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    saved = cache / "tokenizer.json"
    if not saved.exists():
        mix = documents["code"] + [text[:16384] for text in documents["books"]]
        train_tokenizer(mix).save(str(saved))
    tokenizer = tokenizers.Tokenizer.from_file(str(saved))
    ids = {}
    for name, texts in documents.items():
        path = cache / f"{name}.npy"
        if not path.exists():
            joined = [i for enc in tokenizer.encode_batch(texts) for i in (*enc.ids, EOS_ID)]
            np.save(path, np.array(joined, dtype=np.uint16))
        ids[name] = np.load(path)
    text = {name: "\n".join(documents[name]) for name in ("code", "books")}
    return Corpus(tokenizer, ids, text, hashes)


STOP: Row = (np.array([EOS_ID]), np.ones(1, np.float32), np.array([OTHER]))


def crop(corpus: Corpus, rng: np.random.Generator, source: str, length: int) -> Row:
    ids = corpus.ids[source]
    start = int(rng.integers(len(ids) - length))
    kind = np.full(length, CODE if source == "code" else BOOKS)
    return ids[start : start + length].astype(np.int64), np.ones(length, np.float32), kind


def filler(corpus: Corpus, rng: np.random.Generator, source: str, chars: int) -> Piece:
    """About so many characters of grass or of real text, from the start of a line."""
    if source == "grass":
        text = " ".join([GRASS] * (chars // len(GRASS) + 1))
        return text[: text.rfind(".", 0, max(chars, 30)) + 1], GRASS_WEIGHT, OTHER
    text = corpus.text[source]
    start = int(rng.integers(len(text) - chars - 1000))
    start = text.find("\n", start, start + 1000) + 1 or start
    return text[start : start + chars].strip("\n"), 1.0, CODE if source == "code" else BOOKS


def pass_key_pieces(rng: np.random.Generator) -> tuple[list[list[Piece]], list[Piece]]:
    key = f"{rng.integers(10000, 100000)}"
    stated: list[Piece] = [
        ("The pass key is ", 0.2, OTHER), (key, UNKNOWABLE_WEIGHT, OTHER),
        (". Remember it. ", 0.5, OTHER), (key, ECHO_WEIGHT, COPY),
        (" is the pass key.", 0.5, OTHER),
    ]  # fmt: skip
    asked: list[Piece] = [
        ("What is the pass key? The pass key is ", 0.5, OTHER), (key, ANSWER_WEIGHT, ANSWER),
    ]  # fmt: skip
    return [stated], asked


def random_value(corpus: Corpus, rng: np.random.Generator) -> str:
    if rng.random() < 0.3:
        return random_word(corpus, rng)
    return "".join(str(d) for d in rng.integers(0, 10, size=rng.integers(3, 8)))


def random_word(corpus: Corpus, rng: np.random.Generator) -> str:
    text = corpus.text["books"]
    while True:
        start = int(rng.integers(len(text) - 400))
        for word in text[start : start + 400].split()[1:-1]:
            if word.isascii() and word.isalpha() and 3 < len(word) < 10:
                return word.lower()


def pair_pieces(corpus: Corpus, rng: np.random.Generator) -> tuple[list[list[Piece]], list[Piece]]:
    """One to eight pairs stated, some of them asked for, each once."""
    statement, question, answer = PAIR_FORMS[rng.integers(len(PAIR_FORMS))]
    words = list(dict.fromkeys(random_word(corpus, rng) for _ in range(rng.integers(1, 9))))
    pairs = [(word, random_value(corpus, rng)) for word in words]
    stated: list[list[Piece]] = [[(statement.format(k=k, v=v), 0.3, OTHER)] for k, v in pairs]
    asked: list[Piece] = []
    for i in rng.permutation(len(pairs))[: rng.integers(1, 5)]:
        k, v = pairs[i]
        lead, tail = answer.split("{v}")
        asked += [
            (("\n" if asked else "") + question.format(k=k) + lead, 0.3, OTHER),
            (v, ANSWER_WEIGHT, ANSWER),
            (tail, 0.3, OTHER),
        ]
    return stated, asked


def encode_pieces(corpus: Corpus, pieces: list[Piece]) -> Row:
    """Tokenise the joined text; a token has the weight and kind of the piece it ends in."""
    encoding = corpus.tokenizer.encode("".join(text for text, _, _ in pieces))
    ends = np.cumsum([len(text) for text, _, _ in pieces])
    of = np.searchsorted(ends, [stop - 1 for _, stop in encoding.offsets], side="right")
    weights = np.array([weight for _, weight, _ in pieces], np.float32)[of]
    return np.array(encoding.ids), weights, np.array([kind for _, _, kind in pieces])[of]


def retrieval_row(
    corpus: Corpus,
    rng: np.random.Generator,
    longest: int,
    pass_key: bool | None = None,
    source: str | None = None,
) -> Row:
    """A document of at most ``longest`` tokens that states something in filler and asks for it."""
    use_key = rng.random() < 0.5 if pass_key is None else pass_key
    stated, asked = pass_key_pieces(rng) if use_key else pair_pieces(corpus, rng)
    source = source or str(rng.choice(["grass", "books", "code"], p=[0.4, 0.3, 0.3]))
    header = HEADER if use_key and rng.random() < 0.7 else ""
    depths = np.diff(np.sort(rng.random(len(stated))), prepend=0.0, append=1.0)
    glue = "\n" if source != "grass" or rng.random() < 0.7 else " "
    chars = longest * 3.6
    while True:
        parts: list[list[Piece]] = [[(header, 0.1, OTHER)]] if header else []
        for depth, statement in zip(depths, [*stated, asked], strict=True):
            if chars * depth >= 40:
                parts.append([filler(corpus, rng, source, int(chars * depth))])
            parts.append(statement)
        pieces = parts[0] + [p for part in parts[1:] for p in [(glue, 0.3, OTHER), *part]]
        row = encode_pieces(corpus, pieces)
        if len(row[0]) <= longest:
            return row
        chars -= max(8.0, 2.5 * (len(row[0]) - longest))
        if chars < 0:  # too much is stated and asked for so short a document
            return retrieval_row(corpus, rng, longest, pass_key, source)
        if chars < 20:  # what is stated and asked does not fit at all: draw another document
            return retrieval_row(corpus, rng, longest, pass_key, source)


def repetition_row(
    corpus: Corpus, rng: np.random.Generator, length: int, shortest: int, longest: int
) -> Row:
    """Real text in which a passage comes twice; now and then the passage is random tokens."""
    ids, weights, kinds = crop(corpus, rng, str(rng.choice(["code", "books"])), length)
    span = int(math.exp(rng.uniform(math.log(shortest), math.log(longest))))
    first, second = np.sort(rng.choice(length - 2 * span + 1, 2)) + np.array([0, span])
    if rng.random() < 0.3:
        ids[first : first + span] = rng.integers(1, VOCABULARY, span)
        weights[first : first + span] = 0.0
        kinds[first : first + span] = OTHER
        weights[second] = 0.0
    ids[second : second + span] = ids[first : first + span]
    kinds[second : second + span] = COPY
    return ids, weights, kinds


def looped_row(corpus: Corpus, rng: np.random.Generator, length: int) -> Row:
    """Short passages, each said two to six times in a row."""
    parts: list[Row] = []
    while sum(len(ids) for ids, _, _ in parts) < length:
        span = int(math.exp(rng.uniform(math.log(6), math.log(80))))
        ids, weights, kinds = crop(corpus, rng, str(rng.choice(["code", "books"])), span)
        if rng.random() < 0.5:
            ids, weights = rng.integers(1, VOCABULARY, span), np.zeros_like(weights)
        copies = int(rng.integers(1, 6))
        again = np.ones(span * copies, np.float32)
        again[0] = 0.0
        parts.append((ids, weights, np.full(span, OTHER) if not weights.any() else kinds))
        parts.append((np.tile(ids, copies), again, np.full(span * copies, COPY)))
    return join_rows(parts, length)


def join_rows(parts: list[Row], length: int) -> Row:
    ids, weights, kinds = (np.concatenate(column)[:length] for column in zip(*parts, strict=True))
    return ids, weights, kinds


def packed_row(corpus: Corpus, rng: np.random.Generator, source: str, length: int) -> Row:
    """Pieces of 48 to 256 tokens from all over: most far keys say nothing here."""
    parts: list[Row] = []
    while sum(len(ids) for ids, _, _ in parts) < length:
        span = int(math.exp(rng.uniform(math.log(48), math.log(256))))
        parts += [crop(corpus, rng, source, span), STOP]
    return join_rows(parts, length)


def short_documents_row(corpus: Corpus, rng: np.random.Generator, length: int) -> Row:
    """As many short retrieval documents as fit, then real text."""
    parts: list[Row] = []
    while (room := length - sum(len(ids) for ids, _, _ in parts)) > 40:
        if room < 120:
            parts.append(crop(corpus, rng, str(rng.choice(["code", "books"])), room - 1))
        else:
            parts.append(retrieval_row(corpus, rng, int(rng.integers(80, min(220, room)))))
        parts.append(STOP)
    return join_rows([*parts, crop(corpus, rng, "code", 64)], length)


def make_row(corpus: Corpus, rng: np.random.Generator, phase: Phase) -> Row:
    shares = [phase.code, phase.books, phase.retrieval, phase.repetition]
    kind = str(rng.choice(["code", "books", "retrieval", "repetition"], p=shares))
    length = CONTEXT + 1
    if kind in ("code", "books"):
        if phase.packed and rng.random() < phase.packed:
            return packed_row(corpus, rng, kind, length)
        return crop(corpus, rng, kind, length)
    if kind == "repetition":
        return (
            looped_row(corpus, rng, length)
            if phase.short
            else repetition_row(corpus, rng, length, 32, 250)
        )
    if phase.short:
        return short_documents_row(corpus, rng, length)
    longest = int(rng.integers(480, 513) if rng.random() < 0.4 else rng.integers(100, 513))
    parts = [retrieval_row(corpus, rng, longest), STOP]
    if (rest := CONTEXT - len(parts[0][0])) > 0:
        parts.append(crop(corpus, rng, str(rng.choice(["code", "books"])), rest))
        if rng.random() < 0.3:
            parts = [parts[2], STOP, parts[0]]
    return join_rows(parts, length)
