"""Hints in messages."""

import pytest

from trunkline.core import errors
from trunkline.core.errors import UnknownNameError, nearest_hint
from trunkline.engine.encoding import known_task


def test_the_nearest_name_is_named_and_else_those_there_are() -> None:
    assert nearest_hint("intents", ["slots", "intent"]) == "did you mean 'intent'?"
    assert nearest_hint("zzz", ["slots", "intent"]) == "known: intent, slots"
    assert nearest_hint("zzz", []) == "there are none"


def test_names_beyond_all_measure_are_cut_before_they_are_compared_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def close(name: str, *_: object, **__: object) -> list[str]:
        compared.append(len(name))
        return []

    monkeypatch.setattr(errors, "get_close_matches", close)
    with pytest.raises(UnknownNameError) as caught:
        known_task("x" * 1_000_000, {"intent": 1})
    assert compared == [128]
    assert len(str(caught.value)) < 300
