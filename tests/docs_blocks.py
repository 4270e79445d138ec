"""Code blocks of README and docs, run on a pico backbone.

Every Python and shell block of a page is run, in order, in one folder and one namespace for the page. A comment on the
line before a block changes that: ``<!-- not run: why -->`` (commands are still parsed), ``<!-- file: PATH -->`` (the
block is written there), ``<!-- output -->`` (the block is what the block before it printed), ``<!-- keys file -->`` (a
YAML block is one, and no task file). ``trunkline serve`` starts a server that lives until the page ends; ``curl`` asks
it.
"""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import msgspec
import typer
from typer.testing import CliRunner

from tests.tiny import tiny_backbone, write_checkpoint
from trunkline.cli.main import app
from trunkline.core.specs import TaskSpec, convert_spec
from trunkline.demo.samples import write_samples
from trunkline.server.keys import Keys

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts))
PICO = "pico"
BACKBONES = ("minilm", "sentence-transformers/all-mpnet-base-v2")
"""Backbones that pages name; the pico one stands in for them."""
NOT_OURS = frozenset({"cd", "git", "pip", "python", "export", "mkdir", "cat", "less", "curl", "docker"})
"""Programs of other people: their commands are not run."""

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; ``note`` is what the comment before it says."""

    line: int
    language: str
    note: str
    text: str


def blocks(page: Path) -> list[Block]:
    content = page.read_text("utf-8")
    return [
        Block(content.count("\n", 0, m.start()) + 1, m["language"], m["note"] or "", m["text"])
        for m in _BLOCK.finditer(content)
    ]


def make_site(folder: Path) -> None:
    """What a reader has after ``make demo``, in pico: sample data, runs, plan and bundle below ``demo/``."""
    write_checkpoint(folder / PICO, tiny_backbone("bert", n_layers=6, n_positions=512))
    tasks = write_samples(folder / "demo" / "data")
    for rows in (folder / "demo" / "data").rglob("*.jsonl"):
        lines = rows.read_text("utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[: 40 if rows.stem == "train" else 12]), "utf-8")
    files = " ".join(str(task.relative_to(folder)) for task in tasks)
    with contextlib.chdir(folder):
        for command in (
            f"trunkline train {files} --backbone {PICO} --layers 3 --students 1 --out demo/runs",
            "trunkline plan demo/runs",
            "trunkline merge demo/runs/plan.json --out demo/bundle",
        ):
            run_command(command)


class LiveServer:
    """The server that a page starts with ``trunkline serve``, on free ports in the place of the usual ones."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._port, self._grpc_port = "8000", "8001"

    def start(self, words: tuple[str, ...]) -> None:
        """Run the command until it listens."""
        self.stop()
        code = "from trunkline.cli import main; main()"
        command = [sys.executable, "-c", code, *words[1:], "--port", "0", "--grpc-port", "0", "--threads", "1"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        told = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told += line
            if line.startswith("listening on"):
                break
        (self._port,) = re.findall(r"http://[^:]+:(\d+)", told)
        (self._grpc_port,) = re.findall(r"gRPC on [^:]+:(\d+)", told)

    def with_ports(self, text: str) -> str:
        """A text with the port that the server really has; a client that names none is given one."""
        text = text.replace("Client()", 'Client("http://127.0.0.1:8000")')
        text = text.replace("127.0.0.1:8001", f"127.0.0.1:{self._grpc_port}")
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")

    def curl(self, command: str) -> str:
        """What curl prints; a refusal of the server is none of curl's errors."""
        done = subprocess.run(
            shlex.split(self.with_ports(command)), capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    def stop(self) -> None:
        """End it, as SIGTERM does; it must end well."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=60)
            assert self._process.returncode == 0
            self._process = None


def run_page(page: Path, folder: Path) -> None:
    """Run a page's blocks in ``folder``, a site."""
    names: dict[str, Any] = {}
    said = ""
    server = LiveServer()
    with contextlib.chdir(folder), contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        for block in blocks(page):
            try:
                said = _run_block(block, names, said, server)
            except Exception as error:
                error.add_note(f"in {page.relative_to(ROOT)} line {block.line}")
                raise


def _run_block(block: Block, names: dict[str, Any], said: str, server: LiveServer) -> str:
    if block.note.startswith("file: "):
        path = Path(block.note.removeprefix("file: "))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, "utf-8")
    if block.language == "yaml":
        spec = Keys if block.note == "keys file" else TaskSpec
        convert_spec(msgspec.yaml.decode(block.text), spec, block.note or "task file")
    elif block.language == "json":
        _check_json(block.text)
    elif block.language == "sh":
        for command in commands(block.text):
            if block.note.startswith("not run: "):
                parse_command(command)
            else:
                said = _run_with(server, command) or said
    elif block.language == "python" and not block.note.startswith("not run: "):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(server.with_ports(with_pico(block.text)), f"block at line {block.line}", "exec"), names)  # noqa: S102
        return printed.getvalue()
    elif block.note == "output":
        assert said == block.text
    return said


def _run_with(server: LiveServer, command: str) -> str:
    words = _pipeline(command)[0].words
    if words[0] == "curl":
        return server.curl(command)
    if words[:2] == ("trunkline", "serve"):
        server.start(words)
    else:
        run_command(command)
    return ""


def _check_json(text: str) -> None:
    """A whole JSON value, or one in each line."""
    try:
        json.loads(text)
    except ValueError:
        for line in text.splitlines():
            json.loads(line)


def with_pico(text: str) -> str:
    for name in BACKBONES:
        text = text.replace(f'"{name}"', f'"{PICO}"')
    return text


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block: continued lines joined, comments and blank lines left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def all_commands(page: Path) -> list[str]:
    return [command for block in blocks(page) if block.language == "sh" for command in commands(block.text)]


def commands_of(group: Any, prefix: str = "") -> dict[str, click.Command]:
    """Every command by its words, those of groups inside groups included."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found.update(
            commands_of(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
        )
    return found


def parse_command(command: str) -> click.Context | None:
    """Parse a command as the shell and our command line would; None where it is no command of ours."""
    words = [word for part in _pipeline(command) for word in part.words]
    if words[0] == "make":
        _check_target(words[1])
    arguments = next((part.words[1:] for part in _pipeline(command) if _is_ours(part.words[0])), None)
    if arguments is None:
        assert words[0] in {"make", "echo", *NOT_OURS}, f"{words[0]}: is this a command?"
        return None
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    context = group.make_context("trunkline", list(arguments))
    name, command_object, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    assert name is not None
    assert command_object is not None
    return command_object.make_context(name, rest, parent=context)


def run_command(command: str) -> str:
    """Run a command, with the pico backbone in place of the one that it names; returns what it printed."""
    said = b""
    parts = _pipeline(command)
    if not any(_is_ours(part.words[0]) for part in parts):
        parse_command(command)
        return ""
    for part in parts:
        if part.source:
            said = Path(part.source).read_bytes()
        if part.words[0] == "echo":
            said = " ".join(part.words[1:]).encode() + b"\n"
        else:
            assert _is_ours(part.words[0]), command
            arguments = [PICO if word in BACKBONES else word for word in part.words[1:]]
            result = CliRunner().invoke(app, arguments, input=said, catch_exceptions=False)
            assert result.exit_code == 0, f"{command}\n{result.output}"
            said = result.stdout.encode()
        if part.target:
            Path(part.target).write_bytes(said)
    return said.decode()


@dataclass(frozen=True, slots=True)
class _Part:
    words: tuple[str, ...]
    source: str = ""
    target: str = ""


def _pipeline(command: str) -> list[_Part]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    parts = []
    for is_pipe, group in groupby(lexer, lambda word: word == "|"):
        if is_pipe:
            continue
        words = list(group)
        ends: dict[str, str] = {}
        for sign in ("<", ">"):
            if sign in words:
                at = words.index(sign)
                ends[sign] = words[at + 1]
                del words[at : at + 2]
        parts.append(_Part(tuple(words), ends.get("<", ""), ends.get(">", "")))
    return parts


def _is_ours(word: str) -> bool:
    return word in {"trunkline", ".venv/bin/trunkline"}


def _check_target(target: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    assert target in targets, f"make {target}: no such target"
