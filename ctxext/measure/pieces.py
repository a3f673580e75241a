"""Text → token ids, a piece at a time: the same ids as of the whole text at once."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any, NamedTuple

from ctxext.models.prompting import encode, encoding

PIECE = 2**16 + 1  # characters; a prime, so that nothing that repeats falls into step with it
MARGIN = 2**12  # characters that pieces have in common on either side of a cut


class _Token(NamedTuple):
    """A token, the characters of the text that it is of, and the number of its word."""

    start: int
    end: int
    id: int
    word: int | None


class _Piece:
    """The tokens from a margin before `begin` to a margin behind `end`."""

    def __init__(self, tokenizer: Any, text: str, begin: int, end: int) -> None:
        self._first = max(0, begin - MARGIN)
        part = text[self._first : end + MARGIN]
        found = encoding(tokenizer, part, add_special_tokens=False)
        self._found = found.encodings[0]
        self.ids: list[int] = found.input_ids

    def near(self, cut: int) -> tuple[int, list[_Token]]:
        """The tokens within half a margin of a cut, and which is the first of them."""
        places = range(len(self.ids))
        low, high = (
            bisect.bisect_left(places, cut + side, key=lambda n: self._token(n).start)
            for side in (-MARGIN // 2, MARGIN // 2)
        )
        return low, [self._token(n) for n in places[low:high]]

    def _token(self, n: int) -> _Token:
        start, end = self._found.token_to_chars(n)
        word = self._found.token_to_word(n)
        return _Token(self._first + start, self._first + end, self.ids[n], word)


def pieces(tokenizer: Any, text: str) -> Iterator[list[int]]:
    """The text's token ids, without special tokens, in parts that follow one another.

    Neighbouring pieces overlap, and are joined between two tokens about which, and about all near
    them, both agree. Where words are tokenised one by one, that is between words. Within a word
    it may be too where the model is BPE: there tokens stand side by side wherever they stay apart
    as the only two, whatever else there is. Pieces that do not agree become one that is longer.

    Raises:
        UsageError: as for `encode`.
    """
    if not getattr(tokenizer, "is_fast", False) or len(text) <= 2 * PIECE:
        yield encode(tokenizer, text, add_special_tokens=False)
        return
    begin, cut, done, count = 0, PIECE, 0, 0
    piece = _Piece(tokenizer, text, begin, cut)
    while cut < len(text):
        following = _Piece(tokenizer, text, cut, cut + PIECE)
        solid = begin + len(text[begin : cut + MARGIN // 2].rstrip())
        seam = _seam(piece, following, cut, solid, _is_bpe(tokenizer))
        if seam is None:
            cut = begin + 2 * (cut - begin)
            longer = _Piece(tokenizer, text, begin, cut)
            if longer.ids[: done + 1] != piece.ids[: done + 1]:
                yield encode(tokenizer, text, add_special_tokens=False)[count:]
                return
            piece = longer
            continue
        yield piece.ids[done : seam[0]]
        count += seam[0] - done
        piece, begin, done, cut = following, cut, seam[1], cut + PIECE
    yield piece.ids[done:]


def _seam(
    left: _Piece, right: _Piece, cut: int, solid: int, within: bool
) -> tuple[int, int] | None:
    """Where to join two pieces: the first token that is not taken of the one, and that is of the
    other; None where they differ near the cut, or there is no place.

    Args:
        solid: where white space begins that may go on beyond what both have read, and be part of
            a special token behind it.
        within: whether it may be within a word.
    """
    (first, ours), (other, theirs) = left.near(cut), right.near(cut)
    if [token[:3] for token in ours] != [token[:3] for token in theirs]:
        return None
    places = [
        (abs(ours[n].start - cut), first + n, other + n)
        for n in range(1, len(ours))
        if ours[n].start < solid
        and all(_parts(some[n - 1], some[n], within) for some in (ours, theirs))
    ]
    return min(places)[1:] if places else None


def _parts(token: _Token, following: _Token, within: bool) -> bool:
    """Whether two tokens share no character, and no word unless that may be."""
    apart = token.start < following.start >= token.end
    return apart and (within or token.word != following.word)


def _is_bpe(tokenizer: Any) -> bool:
    from tokenizers.models import BPE

    return isinstance(tokenizer.backend_tokenizer.model, BPE)
