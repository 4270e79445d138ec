"""Words and the string that they make: joining for taggers, splitting of raw text.

Taggers never use pre-split words: words are joined to a string, encoded as every other task does, and aligned by
character offsets (design.md, section 2).
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypeAlias

WordSpans: TypeAlias = tuple[tuple[int, int], ...]
"""(start, end) of each word in its text, in characters."""

# Scripts that are written without spaces. Hangul is left out: Korean is written with them.
_UNSPACED = (
    (0x3005, 0x3007),  # iteration mark, closing mark, ideographic zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han compatibility ideographs
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x20000, 0x3FFFF),  # Han extensions B and later
)
# Blocks whose punctuation belongs to those scripts and carries its own space.
_WIDE_PUNCTUATION = ((0x3001, 0x303F), (0xFE30, 0xFE4F), (0xFF01, 0xFF65))


def is_unspaced(character: str) -> bool:
    """Whether a character is Han, Hiragana or Katakana, or punctuation of full width (``，。「」``)."""
    code = ord(character)
    if code < 0x3001:
        return False
    if any(low <= code <= high for low, high in _UNSPACED):
        return True
    return any(low <= code <= high for low, high in _WIDE_PUNCTUATION) and _is_mark(character)


def join_words(words: Sequence[str]) -> tuple[str, WordSpans]:
    """Join words with single spaces, and without one between two words of unspaced scripts.

    Args:
        words: Words in order; they may hold any characters.

    Returns:
        The text, and the span of each word in it: ``text[start:end] == word``.
    """
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    last = ""
    for word in words:
        if pieces and not (last and word and is_unspaced(last) and is_unspaced(word[0])):
            pieces.append(" ")
            length += 1
        pieces.append(word)
        spans.append((length, length + len(word)))
        length += len(word)
        last = word[-1:]
    return "".join(pieces), tuple(spans)


def split_words(text: str) -> WordSpans:
    """The words of a raw text, as a tagger's answers count them.

    White space separates; every Han, Hiragana or Katakana character (and full-width punctuation mark) is a word of its
    own; so is each punctuation mark that leads or ends a word. Inner punctuation stays (``don't``, ``3.5``, ``a-b``).

    Returns:
        (start, end) of each word, in characters; empty for a text of white space.
    """
    spans: list[tuple[int, int]] = []
    for start, end in _runs(text):
        if end - start == 1:
            spans.append((start, end))
        else:
            spans.extend(_peel(text, start, end))
    return tuple(spans)


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """Longest runs without white space or characters of unspaced scripts; those come one by one."""
    start = 0
    for at, character in enumerate(text):
        alone = is_unspaced(character)
        if not alone and not character.isspace():
            continue
        if start < at:
            yield start, at
        if alone:
            yield at, at + 1
        start = at + 1
    if start < len(text):
        yield start, len(text)


def _peel(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    first, last = start, end
    while first < last and _is_punctuation(text[first]):
        first += 1
    while last > first and _is_punctuation(text[last - 1]):
        last -= 1
    yield from ((at, at + 1) for at in range(start, first))
    if first < last:
        yield first, last
    yield from ((at, at + 1) for at in range(last, end))


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"
