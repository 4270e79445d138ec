"""Texts to token ids, and words to the tokens that stand for them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import tokenizers

from trunkline.core.errors import CheckpointError, DataError
from trunkline.core.types import Encoded, Example

_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
_ROWS_PER_CHUNK = 2048
# Nothing; a character that no vocabulary has and most normalizers drop; one that they keep; a word too long for
# WordPiece: whatever must become the unknown token shows whether there is one.
_PROBES = ("", "\ue000", "\U00012000", "x" * 200)


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """A backbone's tokenizer; build it with `from_json`. Safe to share between threads: encoding changes nothing.

    Attributes:
        json: Canonical ``tokenizer.json``: sorted keys, no truncation and no padding settings. Digested and stored.
        vocab_size: The largest token id plus one, of the vocabulary and of what the post-processor adds.
        max_type_id: The largest type id that a pair gets; what ``n_types`` makes 0 does not count.
        pad_id: The id of the padding token.
        n_types: How many token types the architecture has; with 0 or 1 every type id is 0.
    """

    json: str
    vocab_size: int
    max_type_id: int
    pad_id: int
    n_types: int
    _inner: tokenizers.Tokenizer = field(repr=False)

    @classmethod
    def from_json(cls, text: str, *, n_types: int, subject: str) -> "Tokenizer":
        """Read the text of a ``tokenizer.json``.

        Args:
            text: What the file holds; its truncation and padding settings are left out.
            n_types: Token types that the architecture has (0 or 1: all type ids are 0).
            subject: What messages are about, for example ``"backbone 'minilm'"``.

        Raises:
            CheckpointError: The text is no tokenizer, has an empty vocabulary, lacks a padding token or a
                post-processor that adds special tokens to texts and pairs, or cannot encode every text.
        """
        canonical = _canonical(text, subject)
        inner = _parse(canonical, subject)
        for form, is_pair in (("text", False), ("pair", True)):
            if inner.num_special_tokens_to_add(is_pair=is_pair) == 0:
                raise CheckpointError(
                    f"{subject}: the tokenizer's post-processor adds no special tokens to a {form}; an encoder needs "
                    "them ([CLS] … [SEP] or <s> … </s>); save the fast tokenizer again with transformers' "
                    "save_pretrained"
                )
        vocabulary = inner.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise CheckpointError(
                f"{subject}: the tokenizer's vocabulary is empty; use the tokenizer.json that came with the weights"
            )
        encodings = _encode_probes(inner, subject)
        token_ids = chain(vocabulary.values(), *(encoding.ids for encoding in encodings))
        type_ids = chain.from_iterable(encoding.type_ids for encoding in encodings)
        return cls(
            json=canonical,
            vocab_size=max(token_ids) + 1,
            max_type_id=max(type_ids) if n_types > 1 else 0,
            pad_id=_pad_id(inner, subject),
            n_types=n_types,
            _inner=inner,
        )

    def encode(self, examples: Sequence[Example], *, max_length: int) -> list[Encoded]:
        """Encode texts and pairs, special tokens included.

        Too long rows are cut "longest first", as `tokenizers` and transformers do: special tokens stay, the longer
        text of a pair is cut until both are equally long, then both.

        Args:
            examples: Rows; those with a ``text_pair`` are encoded as pairs.
            max_length: Most tokens of a row, special tokens included.

        Returns:
            One row for each example, in order; ``truncated`` tells which were cut.

        Raises:
            DataError: A text is no valid Unicode.
        """
        rows: list[Encoded] = []
        for start in range(0, len(examples), _ROWS_PER_CHUNK):
            rows.extend(self._encode_chunk(examples[start : start + _ROWS_PER_CHUNK], max_length))
        return rows

    def vocabulary(self) -> dict[int, str]:
        """Each token's text by its id; what was added to the vocabulary (special tokens) is left out."""
        added = self._inner.get_added_tokens_decoder()
        return {number: text for text, number in self._inner.get_vocab().items() if number not in added}

    def _encode_chunk(self, examples: Sequence[Example], max_length: int) -> Iterator[Encoded]:
        texts = [row.text if row.text_pair is None else (row.text, row.text_pair) for row in examples]
        try:
            encodings = self._inner.encode_batch(texts)
        except (TypeError, UnicodeError) as error:
            raise _text_error(examples) from error
        stops = list(accumulate(len(encoding) for encoding in encodings))
        # One array for the whole chunk and rows as views of it: four arrays for every row would take seconds.
        token_ids = _flat((encoding.ids for encoding in encodings), stops[-1], np.int32)
        type_ids = np.zeros_like(token_ids)
        if self.n_types > 1:
            type_ids = _flat((encoding.type_ids for encoding in encodings), stops[-1], np.int32)
        pairs = (pair for encoding in encodings for pair in encoding.offsets)
        offsets = _flat(pairs, 2 * stops[-1], np.int32).reshape(-1, 2)
        numbers = ((-1 if number is None else number for number in encoding.sequence_ids) for encoding in encodings)
        sequence = _flat(numbers, stops[-1], np.int8)
        for start, stop in pairwise((0, *stops)):
            part = slice(start, stop)
            row = Encoded(token_ids[part], type_ids[part], offsets[part], sequence[part], truncated=False)
            yield cut_row(row, max_length)


def word_positions(row: Encoded, word_spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Find the first sub-token of each word of a row's first text.

    A tokenizer may make one token of several words (SentencePiece does so with Chinese). The first of them has the
    token; a word that begins inside it has no logits of its own and continues the word before, because one token
    cannot say two things.

    Args:
        row: The encoded text.
        word_spans: (start, end) of each word in that text, in characters and in order.

    Returns:
        (words,) int32: index into the row's tokens, no index twice; -1 where the word was cut away or the tokenizer
        made no token for it (control characters, for example); -2 where it begins inside the token of a word before.
    """
    tokens = np.flatnonzero((row.sequence == 0) & (row.offsets[:, 1] > row.offsets[:, 0]))
    if not len(tokens) or not len(word_spans):
        return np.full(len(word_spans), -1, dtype=np.int32)
    tokens = tokens[~_covered(row.offsets[tokens])]
    spans = np.asarray(word_spans, dtype=np.int32)
    starts, ends = row.offsets[tokens, 0], row.offsets[tokens, 1]
    first = np.searchsorted(ends, spans[:, 0], side="right")
    inside = np.minimum(first, len(tokens) - 1)
    found = (first < len(tokens)) & (starts[inside] < spans[:, 1])
    positions = np.where(found, tokens[inside], -1)
    before = np.maximum.accumulate(np.concatenate(([-1], positions[:-1])))
    return np.where(found & (positions == before), -2, positions).astype(np.int32)


def _covered(offsets: np.ndarray) -> np.ndarray:
    """Which tokens begin where the next one does and end before it, as SentencePiece's lone "▁" before a piece.

    Such a token stands for nothing in the text. Tokens of the same characters (the bytes of one) are all kept.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    covered = np.zeros(len(offsets), dtype=bool)
    covered[:-1] = (starts[:-1] == starts[1:]) & (ends[:-1] < ends[1:])
    return covered


def _text_error(examples: Sequence[Example]) -> DataError:
    for row in examples:
        for text in (row.text, row.text_pair or ""):
            broken = [hex(ord(character)) for character in text if "\ud800" <= character <= "\udfff"]
            if broken:
                return DataError(
                    f"text {text[:40]!r}: holds half a surrogate pair ({broken[0]}); texts are valid Unicode; decode "
                    "it again from its source"
                )
    return DataError("texts: cannot be encoded; each text is a string; check what is passed")


def cut_row(row: Encoded, max_length: int) -> Encoded:
    """Keep the special tokens and the first tokens of each text, the longest text cut first; short rows as they are.

    Not left to `tokenizers`: its truncation is a setting of the shared object, and it builds every piece cut off.
    """
    if len(row.token_ids) <= max_length:
        return row
    n_special = int(np.count_nonzero(row.sequence == -1))
    n_first = int(np.count_nonzero(row.sequence == 0))
    n_second = len(row.sequence) - n_special - n_first
    first, second = _longest_first(n_first, n_second, max(max_length - n_special, 0))
    keep = row.sequence == -1
    keep[np.flatnonzero(row.sequence == 0)[:first]] = True
    keep[np.flatnonzero(row.sequence == 1)[:second]] = True
    return Encoded(row.token_ids[keep], row.type_ids[keep], row.offsets[keep], row.sequence[keep], truncated=True)


def _longest_first(n_first: int, n_second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts fit into ``room``; the rule of `tokenizers` (an odd token goes to the longer)."""
    short, long = min(n_first, n_second), max(n_first, n_second)
    if short + long > room:
        long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (long, short) if n_first > n_second else (short, long)


def _flat(rows: Iterable[Iterable[Any]], count: int, dtype: type[np.generic]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype, count=count)


def _canonical(text: str, subject: str) -> str:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"{subject}: tokenizer.json is not valid JSON ({error}); download or save it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{subject}: tokenizer.json holds no JSON object; use the file that transformers' fast tokenizers save"
        )
    content |= {"truncation": None, "padding": None}
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _parse(canonical: str, subject: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(canonical)
    except Exception as error:
        # Nothing narrower is possible: tokenizers raises plain Exception for every fault of the text.
        raise CheckpointError(
            f"{subject}: tokenizer.json cannot be used ({error}); save it again with a current version of transformers"
        ) from error


def _encode_probes(inner: tokenizers.Tokenizer, subject: str) -> list[tokenizers.Encoding]:
    try:
        return inner.encode_batch([*_PROBES, *((text, text) for text in _PROBES)])
    except Exception as error:
        # As in `_parse`, nothing narrower is possible. Found here, or by the first odd character of some text.
        raise CheckpointError(
            f"{subject}: the tokenizer cannot encode every text ({error}); mostly its vocabulary lacks its own unknown "
            "token; use the tokenizer.json that came with the weights"
        ) from error


def _pad_id(inner: tokenizers.Tokenizer, subject: str) -> int:
    # Declared special before merely in the vocabulary: MPNet's has BERT's [PAD] as an ordinary word beside its <pad>.
    special = {token.content: number for number, token in inner.get_added_tokens_decoder().items() if token.special}
    for vocabulary in (special, inner.get_vocab(with_added_tokens=True)):
        for token in _PAD_TOKENS:
            if token in vocabulary:
                return vocabulary[token]
    raise CheckpointError(
        f"{subject}: the tokenizer has no padding token; one of {', '.join(_PAD_TOKENS)} is needed; add it with "
        "transformers' add_special_tokens and save the tokenizer again"
    )
