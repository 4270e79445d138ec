"""Words and the tokens that stand for them, under the tokenizers that cut words in other ways than WordPiece."""

from functools import cache

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from trunkline.core.types import Encoded, Example
from trunkline.data.tokenize import Tokenizer, word_positions
from trunkline.data.words import join_words

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
UNIGRAM = ("▁", "北京", "北", "京", "大", "▁我", "▁play", "▁new", "york", "▁a", "a", "b", "b北")


def _finish(inner: tokenizers.Tokenizer) -> Tokenizer:
    if inner.post_processor is None:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return Tokenizer.from_json(inner.to_str(), n_types=0, subject="pico")


@cache
def unigram(*, split: bool) -> Tokenizer:
    """SentencePiece's model: ▁ stands for a space, and before the text; XLM-R splits at white space before it."""
    pieces = [*((piece, 0.0) for piece in SPECIAL), *((piece, -1.0 / len(piece)) for piece in UNIGRAM)]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3))
    metaspace = pre_tokenizers.Metaspace()
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace]) if split else metaspace
    return _finish(inner)


@cache
def byte_level(*, trim_offsets: bool) -> Tokenizer:
    """RoBERTa's model: bytes for letters, and a space belongs to the word behind it."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["play music play music new york york"] * 5, trainer)
    if trim_offsets:
        inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return _finish(inner)


def found(tokenizer: Tokenizer, *words: str, max_length: int = 64) -> list[str | int]:
    """Of each word the piece that it points at, or -1 or -2."""
    text, spans = join_words(words)
    row = tokenizer.encode([Example(text=text)], max_length=max_length)[0]
    inner = tokenizers.Tokenizer.from_str(tokenizer.json)
    positions = word_positions(row, spans).tolist()
    return [place if place < 0 else inner.id_to_token(int(row.token_ids[place])) for place in positions]


def row_of(*offsets: tuple[int, int]) -> Encoded:
    inner = np.array([(0, 0), *offsets, (0, 0)], dtype=np.int32)
    sequence = np.array([-1, *[0] * len(offsets), -1], dtype=np.int8)
    ids = np.arange(len(inner), dtype=np.int32)
    return Encoded(ids, np.zeros_like(ids), inner, sequence, truncated=False)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("play", "new", "york"), ["▁play", "▁new", "york"]),
        (("北", "京"), ["北京", -2]),
        (("play", "北", "京", "大"), ["▁play", "北京", -2, "大"]),
        (("我", "北", "京", "a"), ["▁我", "北京", -2, "▁a"]),
        (("北京", "大"), ["北京", "大"]),
    ],
)
def test_a_word_inside_the_piece_of_the_word_before_has_no_position(
    split: bool, words: tuple[str, ...], expected: list[str | int]
) -> None:
    assert found(unigram(split=split), *words) == expected


def test_a_piece_over_the_end_of_a_word_belongs_to_the_word_that_begins_in_it_alone() -> None:
    # "ab" has its own first piece, so "北" may have the second: two words, two tokens.
    row = row_of((0, 1), (1, 3))
    assert word_positions(row, ((0, 2), (2, 3))).tolist() == [1, 2]


def test_all_further_words_of_one_piece_continue() -> None:
    assert word_positions(row_of((0, 4), (4, 5)), ((0, 1), (1, 3), (3, 4), (4, 5))).tolist() == [1, -2, -2, 2]


def test_a_lone_space_mark_is_passed_over_where_the_next_piece_covers_it() -> None:
    assert word_positions(row_of((0, 1), (0, 2)), ((0, 1), (1, 2))).tolist() == [2, -2]
    assert word_positions(row_of((0, 1), (0, 1)), ((0, 1),)).tolist() == [1]


def test_a_word_whose_piece_was_cut_away_has_no_position() -> None:
    assert found(unigram(split=True), "play", "北", "京", max_length=3) == ["▁play", -1, -1]


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("play", "music", "york"), ["play", "Ġmusic", "Ġyork"]),
        (("北", "京", "play"), ["å", "ä", "Ġplay"]),
        (("é", "😀", "new"), ["Ã", "ð", "Ġnew"]),
    ],
)
def test_words_of_several_bytes_point_at_their_first(
    trim_offsets: bool, words: tuple[str, ...], expected: list[str | int]
) -> None:
    assert found(byte_level(trim_offsets=trim_offsets), *words) == expected
