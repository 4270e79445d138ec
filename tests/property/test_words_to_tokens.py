"""Words, texts and tokens lead back to each other, whatever the characters."""

import string
from itertools import pairwise

import numpy as np
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from trunkline.core.types import Example
from trunkline.data.collate import collate, length_batches
from trunkline.data.tokenize import Tokenizer, word_positions
from trunkline.data.words import is_unspaced, join_words, split_words

any_words = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), max_size=8)
# Letters that the tokenizer below knows, with Chinese ones among them.
known_words = st.lists(st.text("abcxyz我爱北京", min_size=1, max_size=5), min_size=1, max_size=10)


def _tokenizer() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_lowercase, *"我爱北京"]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=pieces[1]))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return Tokenizer.from_json(inner.to_str(), n_types=2, subject="pico")


TOKENIZER = _tokenizer()


@given(any_words)
def test_every_word_is_found_at_its_span(words: list[str]) -> None:
    text, spans = join_words(words)
    assert [text[start:end] for start, end in spans] == words


@given(any_words)
def test_between_joined_words_stands_one_space_or_nothing(words: list[str]) -> None:
    text, spans = join_words(words)
    between = [text[left:right] for (_, left), (right, _) in pairwise(spans)]
    alone = [is_unspaced(left[-1]) and is_unspaced(right[0]) for left, right in pairwise(words)]
    assert between == ["" if bare else " " for bare in alone]


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_split_words_hold_every_character_but_white_space_once_and_in_order(text: str) -> None:
    spans = split_words(text)
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())
    assert all(start < end for start, end in spans)


@given(known_words)
def test_every_word_points_at_the_token_that_begins_it(words: list[str]) -> None:
    text, spans = join_words(words)
    row = TOKENIZER.encode([Example(text=text)], max_length=512)[0]
    positions = word_positions(row, spans)
    assert row.offsets[positions, 0].tolist() == [start for start, _ in spans]


def _unigram() -> Tokenizer:
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *"abcxyz我爱北京",
        "▁ab",
        "bc",
        "北京",
        "我爱",
        "爱北",
        "▁北京",
        "c我",
    ]
    inner = tokenizers.Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return Tokenizer.from_json(inner.to_str(), n_types=0, subject="pico")


UNIGRAM = _unigram()


@given(known_words)
def test_no_two_words_share_a_position_and_those_without_lie_in_the_token_before(words: list[str]) -> None:
    text, spans = join_words(words)
    row = UNIGRAM.encode([Example(text=text)], max_length=512)[0]
    positions = word_positions(row, spans).tolist()
    own = [place for place in positions if place >= 0]
    assert len(set(own)) == len(own)
    assert -1 not in positions
    last = -1
    for place, (start, _) in zip(positions, spans, strict=True):
        last = max(last, place)
        begins, ends = row.offsets[last].tolist()
        assert begins < start < ends if place == -2 else begins <= start < ends


@given(known_words, st.integers(8, 20))
def test_cutting_takes_words_from_the_end_only(words: list[str], max_length: int) -> None:
    text, spans = join_words(words)
    whole, cut = (TOKENIZER.encode([Example(text=text)], max_length=length)[0] for length in (512, max_length))
    expected = word_positions(whole, spans)
    assert word_positions(cut, spans).tolist() == np.where(expected < max_length - 1, expected, -1).tolist()


@given(known_words, known_words, st.integers(8, 40))
def test_no_row_is_longer_than_allowed(first: list[str], second: list[str], max_length: int) -> None:
    example = Example(text=" ".join(first), text_pair=" ".join(second))
    whole, cut = (TOKENIZER.encode([example], max_length=length)[0] for length in (512, max_length))
    assert len(cut.token_ids) == min(len(whole.token_ids), max_length)
    assert cut.truncated == (len(whole.token_ids) > max_length)


@given(st.lists(known_words, min_size=1, max_size=6))
def test_a_batch_gives_its_rows_back(texts: list[list[str]]) -> None:
    rows = TOKENIZER.encode([Example(text=" ".join(words)) for words in texts], max_length=64)
    batch = collate(rows, TOKENIZER.pad_id)
    for row, ids, mask in zip(rows, batch.token_ids, batch.mask, strict=True):
        assert ids[mask].tolist() == row.token_ids.tolist()
        assert (ids[~mask] == TOKENIZER.pad_id).all()


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 8))
def test_length_batches_hold_every_row_once(lengths: list[int], rows_per_batch: int) -> None:
    batches = length_batches(lengths, rows_per_batch=rows_per_batch)
    order = [int(index) for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths)
