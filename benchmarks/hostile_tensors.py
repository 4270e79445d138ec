"""Hostile Open Inference Protocol requests: binary tensors of wrong lengths over REST, the same and worse over gRPC."""

import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.hostile_wire import Tried, exchange, request_bytes, tried
from benchmarks.served import Served

UNEXPECTED = frozenset({"UNKNOWN", "INTERNAL", "DATA_LOSS"})
"""What gRPC answers where HTTP would answer 500."""
_SERVICE = "/inference.GRPCInferenceService/"
_METHODS = (
    "ModelInfer",
    "ModelMetadata",
    "ModelReady",
    "ServerMetadata",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "Nothing",
)
_SHAPES: tuple[Any, ...] = (
    [1],
    [2],
    [0],
    [-1],
    [2**62],
    [1, 1],
    [1, 2],
    [],
    [10**30],
    ["1"],
    None,
    [512],
    [513],
    [1.0],
)
_TYPES = ("BYTES", "FP32", "INT64", "", "bytes", "BOOL")


def element(text: bytes) -> bytes:
    """A text as an element of a BYTES tensor."""
    return struct.pack("<I", len(text)) + text


def _elements(rng: random.Random) -> bytes:
    good = element(b"play a song")
    return rng.choice((
        good, good * 2, good * 513, b"", good[:-1], good + b"x", good[:3], struct.pack("<I", 2**32 - 1) + b"abc",
        struct.pack("<I", 2**31) + b"a" * 100, element(b"\xff\xfe\x80"), element(b""), element(b"a" * 25_000),
        rng.randbytes(40),
        struct.pack(">I", 11) + b"play a song", element(b"\xed\xa0\x80"), element(b"\x00" * 20),
    ))  # fmt: skip


def binary_rest(server: Served, rng: random.Random, n: int, tasks: list[str]) -> Iterator[Tried]:
    """JSON before a binary tensor, either of which is not what the other says."""
    for number in range(n):
        tensor = _elements(rng)
        size = rng.choice(
            (len(tensor), len(tensor), len(tensor) + 1, max(0, len(tensor) - 1), 0, -1, 2**40, "1", None, 1.5)
        )
        one = {"name": rng.choice(("text", "text", "text_pair", "", "x")), "shape": rng.choice(_SHAPES),
               "datatype": rng.choice(("BYTES", *_TYPES)), "parameters": {"binary_data_size": size}}  # fmt: skip
        if rng.random() < 0.1:
            one["data"] = rng.choice((["a"], [["a"]], [1], "a", None, []))
        asked = {"inputs": rng.choice(([one], [one], [one, one], [], None)), "parameters": {"binary_data_output": True}}
        head = json.dumps(asked).encode()
        stated = rng.choice((len(head), len(head), len(head), len(head) + 1, len(head) - 1, 0, -1, 2**63, "x", ""))
        path = f"/v2/models/{rng.choice(tasks)}/infer"
        headers = {"Inference-Header-Content-Length": str(stated), "Content-Type": "application/octet-stream"}
        if number % 13 == 0:
            headers["Content-Encoding"] = rng.choice(("gzip", "deflate", "x"))
        yield tried(
            "binary tensor", exchange(server, request_bytes(server, "POST", path, head + tensor, headers=headers))
        )


def grpc_calls(server: Served, rng: random.Random, n: int, tasks: list[str]) -> Iterator[Tried]:
    """Messages with wrong contents, and bytes that are no messages; nothing where the server offers no gRPC."""
    if not server.grpc_port:
        return
    import grpc

    makers: dict[str, Callable[[], bytes]] = {
        "contents": lambda: _message(rng, tasks),
        "mutated message": lambda: _mutated(_message(rng, tasks), rng),
        "random message": lambda: rng.randbytes(rng.randint(0, 300)),
        "large message": lambda: b"\x0a" + _varint(5 * 2**20) + b"a" * (5 * 2**20),
    }
    metadata = (("authorization", server.headers["Authorization"]),)
    options = (("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20))
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}", options=options) as channel:
        for number in range(n):
            kind = list(makers)[number % 4 if number % 200 == 3 else number % 3]
            method = rng.choice(("ModelInfer", "ModelInfer", "ModelInfer", *_METHODS))
            call = channel.unary_unary(_SERVICE + method, request_serializer=bytes, response_deserializer=bytes)
            said = (
                metadata
                if rng.random() < 0.9
                else rng.choice(((), (("authorization", "x"),), (("x-long", "y" * 7000),)))
            )
            yield _called(call, f"gRPC {kind}", makers[kind](), said)
    yield from _no_grpc(server, rng, n // 20)


def _called(call: Any, kind: str, message: bytes, metadata: Any) -> Tried:
    import grpc

    try:
        answer = call(message, metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        code = error.code().name
        status = {"UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504}.get(code, 500 if code in UNEXPECTED else 400)
        return Tried(kind, (status,), (error.details() or "").encode("utf-8", "replace"), f"gRPC {code}")
    return Tried(kind, (200,), answer, "gRPC OK")


def _no_grpc(server: Served, rng: random.Random, n: int) -> Iterator[Tried]:
    """Bytes on the port of gRPC that are no gRPC; there is no status to look at, only that the server lives on."""
    import socket

    for _ in range(n):
        content = rng.choice(
            (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(200), rng.randbytes(500))
        )
        with socket.create_connection((server.host, server.grpc_port or 0), timeout=5) as connection:
            connection.sendall(content)
        yield Tried("gRPC bytes", (), b"")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _message(rng: random.Random, tasks: list[str]) -> bytes:
    """A ModelInferRequest: model_name 1, model_version 2, id 3, inputs 5, outputs 6, raw_input_contents 7."""
    name = rng.choice((*tasks, *tasks, "nobody", "", "\U0001f4a9", "../x")).encode()
    message = _bytes_field(1, name)
    if rng.random() < 0.2:
        message += _bytes_field(2, rng.choice((b"1", b"f" * 64, b"\xff", b"x" * 9000)))
    for _ in range(rng.choice((1, 1, 1, 0, 2))):
        message += _bytes_field(5, _tensor(rng))
    for _ in range(rng.choice((1, 1, 1, 0, 2, 5))):
        message += _bytes_field(7, _elements(rng))
    if rng.random() < 0.2:
        message += _bytes_field(6, _bytes_field(1, rng.choice((b"label", b"nothing", b"\xff"))))
    return message


def _tensor(rng: random.Random) -> bytes:
    """An InferInputTensor: name 1, datatype 2, shape 3, contents 5 (bytes_contents 8 in it)."""
    sizes = b"".join(
        _varint(rng.choice((1, 1, 1, 2, 0, 2**63 - 1, 2**64 - 1, 513))) for _ in range(rng.choice((1, 1, 0, 2)))
    )
    message = _bytes_field(1, rng.choice((b"text", b"text", b"text_pair", b"", b"x")))
    message += _bytes_field(2, rng.choice(("BYTES", "BYTES", *_TYPES)).encode()) + _bytes_field(3, sizes)
    if rng.random() < 0.3:
        message += _bytes_field(5, _bytes_field(8, rng.choice((b"play a song", b"\xff\xfe", b"", b"a" * 30_000))))
    return message


def _mutated(message: bytes, rng: random.Random) -> bytes:
    found = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found[: rng.randint(1, len(found))] if rng.random() < 0.3 else found)
