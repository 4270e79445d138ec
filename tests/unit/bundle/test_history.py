import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trunkline.bundle.history import Entry, append_entry, decode_history, encode_entry, sealed
from trunkline.core.errors import BundleError, DigestMismatchError, SchemaVersionError, SpecError


def entry(seq: int = 0, **changes: Any) -> Entry:
    fields = {"action": "activate", "task": "intent", "version": "a" * 64, "who": "ada", "why": "better", **changes}
    return Entry(schema_version=1, seq=seq, at="2026-01-01T00:00:00.000+00:00", **fields)


def chain(n: int) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    for seq in range(n):
        entries.append(sealed(entry(seq), entries[-1] if entries else None))
    return tuple(entries)


def lines(n: int) -> list[bytes]:
    return [encode_entry(each) for each in chain(n)]


def test_what_was_encoded_is_decoded() -> None:
    content = b"".join(lines(3))
    history = decode_history(content, "history")
    assert history.entries == chain(3)
    assert history.size_bytes == len(content)


def test_the_check_can_be_computed_from_the_bytes_alone() -> None:
    first, second = lines(2)
    check = hashlib.sha256(first[: first.rindex(b'"', 0, -3)]).hexdigest()
    assert first.endswith(b'"check":"' + check.encode() + b'"}\n')
    check = hashlib.sha256(check.encode() + second[: second.rindex(b'"', 0, -3)]).hexdigest()
    assert second.endswith(b'"check":"' + check.encode() + b'"}\n')


@pytest.mark.parametrize("torn", [b"{", b'{"seq":3}', b"\x00\x00\x00", b"{}\n", b"\x00" * 200 + b"\n", b"\n"])
def test_a_last_line_that_was_never_finished_is_passed_over(torn: bytes) -> None:
    content = b"".join(lines(3))
    assert decode_history(content + torn, "history") == decode_history(content, "history")


def test_a_whole_entry_without_the_end_of_its_line_does_not_count() -> None:
    content = b"".join(lines(3))
    assert decode_history(content[:-1], "history").entries == chain(2)


@pytest.mark.parametrize("number", [0, 1])
def test_a_line_that_was_edited_is_named(number: int) -> None:
    edited = lines(3)
    edited[number] = edited[number].replace(b"better", b"bitter")
    with pytest.raises(DigestMismatchError, match=rf"history: line {number + 1}: its check"):
        decode_history(b"".join(edited), "history")


def test_an_edited_line_with_its_own_check_made_anew_breaks_the_line_after() -> None:
    first, *_ = chain(3)
    forged = encode_entry(sealed(msgspec.structs.replace(first, why="forged"), None))
    with pytest.raises(DigestMismatchError, match="line 2"):
        decode_history(b"".join([forged, *lines(3)[1:]]), "history")


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_dropped_line_is_noticed(dropped: int) -> None:
    rest = lines(4)
    del rest[dropped]
    with pytest.raises(DigestMismatchError, match=f"line {dropped + 1}"):
        decode_history(b"".join(rest), "history")


def test_a_torn_line_before_another_is_damage() -> None:
    first, second, third = lines(3)
    with pytest.raises(DigestMismatchError, match="line 2"):
        decode_history(first + second[:20] + b"\n" + third, "history")


def test_a_newer_schema_is_refused_before_the_rest_is_looked_at() -> None:
    body = b'{"schema_version":2,"unheard":"of","check":'
    line = body + b'"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    with pytest.raises(SchemaVersionError, match="line 1: has schema version 2"):
        decode_history(line, "history")


def test_an_unknown_key_is_refused() -> None:
    body = encode_entry(entry())[:-3] + b'","unheard":"of","check":'
    line = body + b'"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    with pytest.raises(BundleError, match="line 1: unknown key 'unheard'"):
        decode_history(line, "history")


@pytest.mark.parametrize("name", ["who", "why"])
@pytest.mark.parametrize("text", ["", "  ", "two\nlines", "\x1b[31mred", "right\u202eleft", "half \ud800", "x" * 501])
def test_texts_that_are_no_line_are_refused(name: str, text: str) -> None:
    with pytest.raises(SpecError, match=f"^{name} is ") as caught:
        entry(**{name: text})
    assert str(caught.value).isprintable()


def test_texts_in_any_script_are_kept() -> None:
    made = sealed(entry(who="明日香", why="naïve café 👨‍👩‍👧"), None)
    assert decode_history(encode_entry(made), "history").entries == (made,)


def test_the_longest_texts_are_allowed() -> None:
    assert entry(who="x" * 100, why="x" * 500).why == "x" * 500
    with pytest.raises(SpecError, match=r"who is .* 101 characters"):
        entry(who="x" * 101)


@pytest.mark.parametrize("percent", [-1.0, 100.5, float("nan"), float("inf")])
def test_percent_outside_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(SpecError, match="0 to 100 is allowed"):
        entry(action="canary", percent=percent)


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "activate", "version": None},
        {"action": "activate", "percent": 5.0},
        {"action": "canary"},
        {"action": "create"},
        {"action": "remove", "task": None, "version": None},
    ],
)
def test_details_of_another_action_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"^{changes['action']}: .* needed"):
        entry(**changes)


def test_entries_carry_no_keys_without_a_value() -> None:
    assert set(msgspec.json.decode(encode_entry(chain(1)[0]))) == {
        "schema_version", "seq", "at", "who", "action", "why", "task", "version", "check"
    }  # fmt: skip


def test_an_append_cuts_off_what_never_finished(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first, second = chain(2)
    path.write_bytes(encode_entry(first) + b'{"half')
    append_entry(path, second, size_bytes=len(encode_entry(first)))
    assert path.read_bytes() == encode_entry(first) + encode_entry(second)


def test_an_append_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    first, second = chain(2)
    path.write_bytes(encode_entry(first))
    real_write = os.write

    def full(handle: int, content: bytes) -> int:
        if len(content) < 50:
            raise OSError(28, "No space left on device")
        return real_write(handle, content[:30])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        append_entry(path, second, size_bytes=len(encode_entry(first)))
    assert path.read_bytes() == encode_entry(first)


def test_an_append_that_fails_and_cannot_be_taken_back_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    first, second = chain(2)
    path.write_bytes(encode_entry(first))

    def broken(*_arguments: int) -> None:
        monkeypatch.setattr(os, "ftruncate", broken)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        append_entry(path, second, size_bytes=len(encode_entry(first)))
    assert decode_history(path.read_bytes(), "history").entries == (first,)


def test_an_append_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "history.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        append_entry(tmp_path / "history.jsonl", chain(1)[0], size_bytes=0)
    assert (tmp_path / "elsewhere").read_bytes() == b""
