"""Joining and splitting words."""

import pytest

from trunkline.data.words import is_unspaced, join_words, split_words


def _split(text: str) -> list[str]:
    return [text[start:end] for start, end in split_words(text)]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), ""),
        (("play", "some", "music"), "play some music"),
        (("我", "爱", "北京"), "我爱北京"),
        (("我", "use", "微", "信", "2"), "我 use 微信 2"),
        (("智能", "，", "快捷", "。"), "智能，快捷。"),
        (("すし", "を", "食べる"), "すしを食べる"),
        (("안녕", "세상"), "안녕 세상"),
    ],
)
def test_words_are_joined_with_spaces_only_where_their_script_has_them(words: tuple[str, ...], text: str) -> None:
    assert join_words(words)[0] == text


def test_joined_spans_point_at_their_words() -> None:
    words = ("add", "我", "爱", "New York", "!")
    text, spans = join_words(words)
    assert tuple(text[start:end] for start, end in spans) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\n", []),
        ("Play  some\tmusic", ["Play", "some", "music"]),
        ("don't pay 3.5, (a-b)!", ["don't", "pay", "3.5", ",", "(", "a-b", ")", "!"]),
        ("...", [".", ".", "."]),
        ("我爱iPhone，很好。", ["我", "爱", "iPhone", "，", "很", "好", "。"]),
        ("hello 안녕 $5 😀", ["hello", "안녕", "$5", "😀"]),
    ],
)
def test_raw_text_is_split_into_words_and_outer_punctuation(text: str, words: list[str]) -> None:
    assert _split(text) == words


@pytest.mark.parametrize("character", ["中", "の", "ア", "〇", "，", "「", "𠀀"])
def test_han_kana_and_wide_punctuation_need_no_spaces(character: str) -> None:
    assert is_unspaced(character)


@pytest.mark.parametrize("character", ["a", "é", "한", ",", "“", "Ａ", "😀", " ", "\u3000"])
def test_other_characters_need_spaces(character: str) -> None:
    assert not is_unspaced(character)
