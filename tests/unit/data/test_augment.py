"""New rows: only whole words change, the same rows give the same ones, and pairs stay pairs."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import WORDS, tiny_tokenizer_json
from tests.tiny_bundles import backbone_of
from trunkline.core.types import Encoded, Example
from trunkline.data.augment import N_NEIGHBORS, Neighbors, augment_rows, find_neighbors
from trunkline.data.tokenize import Tokenizer

BACKBONE = backbone_of()
TOKENIZER, TABLE = BACKBONE.tokenizer, BACKBONE.tensors["embeddings.word.weight"]
VOCABULARY = TOKENIZER.vocabulary()
IDS = {text: number for number, text in VOCABULARY.items()}
texts = st.lists(st.sampled_from([*WORDS.split(), "xyz", "7", ",", "北"]), min_size=1, max_size=14).map(" ".join)


def encoded(*rows: str | tuple[str, str], max_length: int = 64) -> list[Encoded]:
    examples = [Example(text=row) if isinstance(row, str) else Example(text=row[0], text_pair=row[1]) for row in rows]
    return TOKENIZER.encode(examples, max_length=max_length)


def new_rows(rows: Sequence[Encoded], n_each: int = 4, max_length: int = 64) -> list[list[Encoded]]:
    return augment_rows(rows, find_neighbors(VOCABULARY, TABLE, rows), n_each=n_each, max_length=max_length)


def keys(rows: Sequence[Sequence[Encoded]]) -> list[list[bytes]]:
    return [[row.key() for row in each] for each in rows]


def words_of(row: Encoded, number: int) -> list[int]:
    return row.token_ids[row.sequence == number].tolist()


def test_neighbors_are_the_nearest_words_by_cosine() -> None:
    near = find_neighbors(VOCABULARY, TABLE, encoded("rain")).near
    words = [number for text, number in IDS.items() if text.isalpha()]
    directions = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    cosines = {word: float(directions[IDS["rain"]] @ directions[word]) for word in words if word != IDS["rain"]}
    expected = sorted(sorted(cosines, key=lambda word: -cosines[word])[:N_NEIGHBORS])
    assert near[IDS["rain"]].tolist() == expected
    assert set(near) == {IDS["rain"]}


def test_only_words_have_neighbors_and_are_neighbors() -> None:
    found = find_neighbors(VOCABULARY, TABLE, encoded("rain xyz 7 , 北 [MASK]"))
    every = set(found.near) | {int(number) for near in found.near.values() for number in near}
    assert all(VOCABULARY[number].isalpha() for number in every)
    assert {IDS["rain"], IDS["北"]} <= set(found.near)
    assert IDS["7"] not in found.near
    assert IDS["##y"] in found.pieces


def test_a_vocabulary_with_a_sign_for_a_space_has_its_words_behind_that_sign() -> None:
    vocabulary = dict(enumerate(("Ġrain", "Ġsun", "rain", "Ġ7", ",", "Ġ", "ing")))
    rows = [Encoded(*(np.arange(7, dtype=np.int32),) * 2, np.zeros((7, 2), np.int32), np.zeros(7, np.int8), False)]
    found = find_neighbors(vocabulary, np.eye(7, dtype=np.float32), rows)
    assert {number: near.tolist() for number, near in found.near.items()} == {0: [1], 1: [0]}
    assert found.pieces == {2, 6}


def test_special_tokens_are_no_part_of_the_vocabulary() -> None:
    for architecture in ("bert", "roberta"):
        tokenizer = Tokenizer.from_json(tiny_tokenizer_json(architecture), n_types=1, subject="tiny")  # type: ignore[arg-type]
        vocabulary = tokenizer.vocabulary()
        assert not {"[CLS]", "[SEP]", "[PAD]", "<s>", "</s>", "<pad>"} & set(vocabulary.values())
        assert len(vocabulary) == tokenizer.vocab_size - 4


@given(text=texts)
def test_only_whole_words_are_replaced_by_their_neighbors(text: str) -> None:
    rows = encoded(text)
    near = find_neighbors(VOCABULARY, TABLE, rows).near
    ids = rows[0].token_ids.tolist()
    whole = [
        i
        for i, number in enumerate(ids)
        if VOCABULARY.get(number, "[").isalpha() and not VOCABULARY.get(ids[i + 1], "[").startswith("##")
    ]
    for new in new_rows(rows)[0]:
        changed = np.flatnonzero(new.token_ids != rows[0].token_ids).tolist()
        assert set(changed) <= set(whole)
        assert 1 <= len(changed) <= max(1, round(0.3 * len(whole)))
        assert all(int(new.token_ids[i]) in near[ids[i]] for i in changed)
        assert (new.sequence == rows[0].sequence).all()
        assert (new.type_ids == rows[0].type_ids).all()


@given(rows=st.lists(st.tuples(texts, texts), min_size=2, max_size=5, unique=True))
def test_pairs_keep_their_special_tokens_and_have_texts_of_two_rows(rows: list[tuple[str, str]]) -> None:
    before = encoded(*rows)
    seconds = [words_of(row, 1) for row in before]
    special = before[0].token_ids[before[0].sequence == -1].tolist()
    for row, made in zip(before, new_rows(before), strict=True):
        for new in made:
            assert new.token_ids[new.sequence == -1].tolist() == special
            recombined = words_of(new, 0) == words_of(row, 0) and words_of(new, 1) in seconds
            replaced = len(new.token_ids) == len(row.token_ids)
            assert recombined or replaced


def test_some_pairs_are_recombined_and_some_replaced() -> None:
    rows = encoded(("play a song", "no rain"), ("is it good", "yes"), ("turn the light", "what is this day"))
    seconds = [words_of(row, 1) for row in rows]
    found = {
        (words_of(new, 0) == words_of(row, 0), words_of(new, 1) in seconds and words_of(new, 1) != words_of(row, 1))
        for row, made in zip(rows, new_rows(rows, n_each=16), strict=True)
        for new in made
    }
    assert (True, True) in found
    assert (False, False) in found


def test_a_recombined_pair_has_the_types_of_its_texts_and_is_cut() -> None:
    rows = encoded(("play a song", "xyz"), ("xyz", "what is this day tomorrow"), max_length=10)
    nothing = Neighbors(near={}, pieces=frozenset())
    made = [new for each in augment_rows(rows, nothing, n_each=8, max_length=10) for new in each]
    longest = max(made, key=lambda row: len(row.token_ids))
    assert len(longest.token_ids) == 10
    assert longest.truncated
    for row in made:
        second = row.sequence == 1
        assert (row.type_ids[second] == 1).all()
        assert (row.type_ids[row.sequence == 0] == 0).all()
        assert row.token_ids[-1] == rows[0].token_ids[-1]


@given(rows=st.lists(texts, min_size=1, max_size=6, unique=True), order=st.randoms(use_true_random=False))
def test_the_same_rows_give_the_same_new_rows_in_any_order(rows: list[str], order: object) -> None:
    before = encoded(*rows)
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    found = keys(new_rows(before))
    assert [found[i] for i in shuffled] == keys(new_rows([before[i] for i in shuffled]))


def test_partners_do_not_depend_on_the_order_of_rows() -> None:
    rows = encoded(("play a song", "no rain"), ("is it good", "yes"), ("turn the light", "what is this day"))
    assert keys(new_rows(rows)) == keys(new_rows(rows[::-1]))[::-1]


def test_a_smaller_number_gives_the_first_of_a_larger_one() -> None:
    rows = encoded("play a good song for me", "what is the weather in london today")
    few, many = keys(new_rows(rows, n_each=2)), keys(new_rows(rows, n_each=5))
    assert [each[:2] for each in many] == few
    assert len({key for each in many for key in each}) > 4


def test_a_row_without_a_word_gives_none() -> None:
    assert new_rows(encoded("7 , 7", "rain"))[0] == []
