"""What a command shows while it works."""

import io
import sys
from pathlib import Path

import pytest

from tests.tiny_bundles import backbone_of, make_bundle, put_branch
from trunkline.cli import main
from trunkline.cli.status import working


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def screen_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    # No fixture: pytest puts its own stream in the place of standard error after set-up.
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    return made


def test_a_terminal_shows_what_is_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with working("opening [b]undle"):
        pass
    assert "opening [b]undle" in screen.getvalue()


def test_a_message_takes_the_place_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with working("opening bundle") as tell:
        tell("evaluating intent")
    assert "evaluating intent" in screen.getvalue()


def test_nothing_is_drawn_among_answers_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    monkeypatch.setattr(sys, "stdout", Terminal())
    with working("waiting for lines", prints=True):
        pass
    assert screen.getvalue() == ""


def test_no_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with working("opening bundle") as tell:
        tell("evaluating intent")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("command", "task", "shown"), [("attach", "mood", "attaching"), ("replace", "intent", "replacing a branch")]
)
def test_commands_that_load_a_backbone_say_what_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, task: str, shown: str
) -> None:
    bundle = make_bundle(tmp_path, "intent")
    branch = put_branch(tmp_path / "branch", task, backbone_of(), seed=3)
    screen = screen_of(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["trunkline", command, str(bundle.path), str(branch), "--json"])
    with pytest.raises(SystemExit):
        main()
    assert shown in screen.getvalue()
