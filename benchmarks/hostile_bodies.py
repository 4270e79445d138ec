"""Hostile JSON: depth, numbers, bytes that are no text, wrong types, whatever hypothesis and schemathesis make."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import hypothesis
from hypothesis import strategies as st

from benchmarks.hostile_wire import Tried, exchange, request_bytes, tried
from benchmarks.served import Served

_PATHS = ("/v1/analyze", "/v1/tasks/{task}/activate", "/v1/tasks/{task}/canary", "/v1/tasks/{task}/versions",
          "/v2/models/{task}/infer", "/predict", "/v2/repository/index")  # fmt: skip
_CHECKS = list(hypothesis.HealthCheck)


def bodies(server: Served, rng: random.Random, n: int, tasks: list[str]) -> Iterator[Tried]:
    """Bodies that were thought of, and mutations of a good one."""
    makers: dict[str, Callable[[], bytes]] = {
        "deep": lambda: _deep(rng),
        "number": lambda: _field(rng, rng.choice(_NUMBERS)),
        "no text": lambda: rng.choice(_NO_TEXT),
        "wrong type": lambda: _field(rng, rng.choice(_VALUES)),
        "strange text": lambda: json.dumps(
            {"texts": [rng.choice(_TEXTS) * rng.choice((1, 1, 50))], "truncate": rng.random() < 0.8, "offsets": "bytes"}
        ).encode("utf-8", "surrogatepass"),
        "many texts": lambda: json.dumps({"texts": ["a"] * rng.choice((513, 5000))}).encode(),
        "long text": lambda: json.dumps({"texts": ["a " * rng.choice((9_000, 11_000, 600_000))]}).encode(),
        "pairs": lambda: json.dumps({"pairs": [["a"] * rng.choice((0, 1, 2, 3))], "truncate": True}).encode(),
        "mutated": lambda: _mutated(rng),
        "strange name": lambda: json.dumps(
            {"texts": ["a"], "tasks": [rng.choice(_TEXTS)], "key": rng.choice(_TEXTS)}
        ).encode(),
        "twice": lambda: b'{"texts":["a"],"texts":["b"],"tasks":["' + rng.choice(tasks).encode() + b'"]}',
    }
    kinds = list(makers)
    for number in range(n):
        kind = kinds[number % len(kinds)]
        path = _PATHS[0] if rng.random() < 0.6 else rng.choice(_PATHS).replace("{task}", rng.choice(tasks))
        yield tried(kind, exchange(server, request_bytes(server, "POST", path, makers[kind]())))


def made_up(server: Served, rng: random.Random, n: int, tasks: list[str]) -> Iterator[Tried]:
    """Values that hypothesis makes, alone and in the place of fields."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, width=64) | st.text()
    values = st.recursive(leaves, lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=20)
    names = st.sampled_from(["texts", "pairs", "tasks", "top_k", "deadline_ms", "key", "offsets", "truncate", "version",
                             "percent", "why", "inputs", "source"])  # fmt: skip
    texts = st.fixed_dictionaries(
        {"texts": st.lists(st.text(), max_size=4)}, optional={"tasks": st.lists(st.sampled_from(tasks))}
    )
    objects = st.dictionaries(names, values, max_size=4) | texts
    made = drawn(values | objects | objects, n, rng)
    for value in made:
        body = value if isinstance(value, bytes) else json.dumps(value).encode("utf-8", "surrogatepass")
        path = "/v1/analyze" if rng.random() < 0.7 else rng.choice(_PATHS).replace("{task}", rng.choice(tasks))
        yield tried("made up", exchange(server, request_bytes(server, "POST", path, body)))


def from_schema(
    server: Served, rng: random.Random, n: int, document: dict[str, Any], tasks: list[str]
) -> Iterator[Tried]:
    """What schemathesis makes of the server's own description: as it says, and otherwise."""
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    each = max(1, n // (len(operations) * len(modes)))
    for operation in operations:
        for mode in modes:
            # A task is never taken out of service: what is answered afterwards is compared.
            removes = operation.method == "delete" or operation.path.endswith("/unload")
            named = {"task": rng.choice(tasks)} if "{task}" in operation.path and not removes else None
            for case in drawn(operation.as_strategy(generation_mode=mode), each, rng):
                if named is not None and rng.random() < 0.8:
                    case.path_parameters.update(named)
                kwargs = case.as_transport_kwargs(base_url=server.url)
                yield _asked(server, f"{operation.method} {mode.value}", kwargs)


def _asked(server: Served, kind: str, asked: dict[str, Any]) -> Tried:
    import requests

    asked = {**asked, "headers": {**dict(asked["headers"]), **server.headers, "Connection": "close"}}
    try:
        answer = requests.request(**asked, timeout=60, allow_redirects=False)
    except (requests.RequestException, ValueError, UnicodeError):  # A request that cannot even be sent.
        return Tried(kind, (), b"")
    return Tried(kind, (answer.status_code,), answer.content[:100_000])


def drawn(strategy: st.SearchStrategy[Any], n: int, rng: random.Random) -> list[Any]:
    """So many values of a strategy, or fewer where there are no more."""
    found: list[Any] = []

    @hypothesis.seed(rng.randrange(2**32))
    @hypothesis.settings(max_examples=n, database=None, deadline=None, suppress_health_check=_CHECKS,
                         phases=[hypothesis.Phase.generate])  # fmt: skip
    @hypothesis.given(strategy)
    def take(value: Any) -> None:
        found.append(value)

    with suppress(hypothesis.errors.Unsatisfiable):  # Nothing can be wrong with a request that says nothing.
        take()
    return found


def _deep(rng: random.Random) -> bytes:
    depth = rng.choice((20, 200, 1_000, 5_000, 100_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"texts":', b"}"), (b'[{"a":', b"}]")))
    inside = rng.choice((b"1", b"", b'"a"'))
    return rng.choice((b"", b'{"texts":')) + opening * depth + inside + closing * rng.choice((depth, depth - 1, 0))


def _field(rng: random.Random, value: str) -> bytes:
    name = rng.choice(
        ("texts", "top_k", "deadline_ms", "tasks", "truncate", "key", "offsets", "probabilities", "percent", "why")
    )
    others = '"texts":["a"],' if name != "texts" and rng.random() < 0.8 else ""
    return f'{{{others}"{name}":{value}}}'.encode("utf-8", "surrogatepass")


def _mutated(rng: random.Random) -> bytes:
    body = bytearray(
        b'{"texts":["play a song in paris","b"],"tasks":null,"top_k":3,"deadline_ms":9000.5,"truncate":true}'
    )
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(body))
        match rng.randrange(4):
            case 0:
                body[place] = rng.randrange(256)
            case 1:
                del body[place : place + rng.randint(1, 9)]
            case 2:
                body[place:place] = rng.randbytes(rng.randint(1, 5))
            case _:
                body[place:place] = body[rng.randrange(len(body)) :][:20]
    return bytes(body)


_NUMBERS = ("1e400", "-1e400", "1e-400", "0", "-0.0", "-1", "1" * 5000, "0." + "1" * 5000, "1e308", "5e-324", "NaN",
"Infinity",
            "-Infinity", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "01", "1.", ".5",
            "1e", "0x10",
            "1000", "1001", "2.0", "1e3", "9007199254740993")  # fmt: skip
_NO_TEXT = (
    b"", b" ", b"\x00", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b'{"texts":["\xff"]}', b'{"texts":["\xed\xa0\x80"]}',
    b'{"texts":["\\ud800"]}', b'{"texts":["\\udc00\\ud800"]}', b'{"texts":["a\x00b"]}', b'{"texts":["a\nb"]}',
    b"null", b"true",
    b"[]", b'"a"', b"{", b"}", b"[[[", b'{"texts":["a"]}}', b'{"texts":["a"]} {}', b"{'texts':['a']}",
    b'{"texts":["\\x41"]}',
    b'{"texts":["\\u00"]}', b'{"\xff":1}', b'{"\\ud800":1}', b"\x1f\x8b\x08\x00\x00\x00\x00\x00", b"PK\x03\x04",
    b"\x80\x04N.",
    b'{"texts":[' + b'"a",' * 100_000 + b'"a"]}', b'{"' + b"k" * 100_000 + b'":1}', b'{"texts":["a"],//x\n"top_k":1}',
)  # fmt: skip
_VALUES = ("null", "true", '""', '"a"', "[]", "[null]", "[[]]", "{}", '{"a":1}', "[1]", '["a",1]', '[["a","b"]]',
'["",""]', "3",
           '"\\u0000"', "[true]", '"codepoints"', '"utf16"', '["nobody"]', '[""]',
           '"' + "x" * 10_000 + '"')  # fmt: skip
_TEXTS = (
    "", " ", "\x00", "\t\n\r", "\ud800", "\udc00\ud800", "\ufeff", "\u202e\u200f",
    "Z\u0351\u036b\u0343\u036a\u0302" * 30, "👨‍👩‍👧‍👦" * 20,
    "\U0010ffff", "ﷺ" * 100, "a" * 19_999, "我" * 3000, "%s%n{}", "<s></s>[CLS][SEP][MASK][PAD]", "\x1b[2J",
    "ß" * 500, "İ" * 300,
    "\u0300" * 2000, "𝕳𝖊𝖑𝖑𝖔", "a\u0000b", "' OR 1=1 --", "nobody", "../../x", "\n" * 5000, "٣٤٥", "ｆｕｌｌ",
    "\u2028\u2029",
)  # fmt: skip
