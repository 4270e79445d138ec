"""Tensors of the Open Inference Protocol: texts out of them, answers into them.

Everything a client says about sizes is compared with what is there before anything is cut out, decoded or reserved.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from trunkline.core.errors import DataError, nearest_hint
from trunkline.core.specs import BranchSpec
from trunkline.core.types import Example
from trunkline.server.refusals import refuse
from trunkline.wire import Answer

Datatype: TypeAlias = Literal["BYTES", "FP32"]
_LENGTH = struct.Struct("<I")
_ANY = -1
LONGEST_NAME = 64
"""Of tasks, inputs and outputs; what is longer is cut before it is told or the nearest is looked for."""
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class TensorForm:
    """What a tensor of a task looks like; sizes of -1 are free."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """An input as a client sent it: nothing of it is checked.

    Attributes:
        name: Of the input.
        datatype: Of its elements.
        shape: Of the tensor.
        elements: Its elements one by one; None where they are packed.
        packed: Its elements as bytes, each with its length before it.
        parameters: What is said about it.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Sequence[str | bytes] | None = None
    packed: bytes = b""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """An output.

    Attributes:
        form: Its name and datatype, and which sizes are free.
        values: Strings of BYTES, rows or numbers of FP32.
    """

    form: TensorForm
    values: Sequence[Any]

    @property
    def shape(self) -> list[int]:
        """Of the values."""
        return [len(self.values), *self.form.shape[1:]]

    def packed(self) -> bytes:
        """The values as bytes: little-endian, strings with their lengths before them."""
        if self.form.datatype == "FP32":
            return np.asarray(self.values, dtype="<f4").tobytes()
        encoded = [value.encode() for value in self.values]
        return b"".join(part for each in encoded for part in (_LENGTH.pack(len(each)), each))

    def listed(self) -> list[Any]:
        """The values in row-major order, as JSON has them."""
        if len(self.form.shape) == 1:
            return list(self.values)
        return [number for row in self.values for number in row]


def inputs_of(spec: BranchSpec) -> tuple[TensorForm, ...]:
    """What a task takes."""
    text = TensorForm("text", "BYTES", (_ANY,))
    return (text, TensorForm("text_pair", "BYTES", (_ANY,))) if spec.input == "pair" else (text,)


def outputs_of(spec: BranchSpec) -> tuple[TensorForm, ...]:
    """What a task gives."""
    probabilities = TensorForm("probabilities", "FP32", (_ANY, len(spec.labels)))
    if spec.kind == "classification":
        return TensorForm("label", "BYTES", (_ANY,)), TensorForm("confidence", "FP32", (_ANY,)), probabilities
    if spec.kind == "multilabel":
        return TensorForm("labels", "BYTES", (_ANY,)), probabilities
    if spec.kind == "regression":
        return (TensorForm("score", "FP32", (_ANY,)),)
    return (TensorForm("spans", "BYTES", (_ANY,)),)


def unpack(content: bytes, n_elements: int, subject: str) -> list[bytes]:
    """Elements that are packed one after the other, each with its length before it.

    Args:
        content: All of them.
        n_elements: How many there should be.
        subject: What messages are about.

    Raises:
        DataError: There are more, fewer, or one is cut off.
    """
    elements: list[bytes] = []
    place = 0
    for number in range(n_elements):
        if len(content) - place < _LENGTH.size:
            raise DataError(
                f"{subject}: holds {number} elements in {len(content)} bytes; its shape says {n_elements}; send as many"
            )
        (length,) = _LENGTH.unpack_from(content, place)
        place += _LENGTH.size
        if length > len(content) - place:
            raise DataError(
                f"{subject}: element {number} has {length} bytes by its length, and {len(content) - place} follow; "
                "each element is its length as 4 bytes, the lowest first, and its bytes; mend the length"
            )
        elements.append(content[place : place + length])
        place += length
    if place < len(content):
        raise DataError(
            f"{subject}: {len(content) - place} bytes follow its {n_elements} elements; none are allowed; mend "
            "the shape"
        )
    return elements


def refuse_shared_memory(parameters: Mapping[str, Any], subject: str) -> None:
    """Refuse a tensor that lies, or is to be put, in memory of the client.

    Raises:
        DataError: It is one.
    """
    if _SHARED_MEMORY in parameters:
        raise DataError(f"{subject}: is to be in shared memory, which is not offered; send it with the request")


def wanted_outputs(spec: BranchSpec, outputs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[TensorForm]:
    """Outputs that a request names; all where it names none.

    Raises:
        DataError: One is not known, named twice, or wanted in a way that is not offered.
    """
    known = {form.name: form for form in outputs_of(spec)}
    if not outputs:
        return list(known.values())
    wanted: dict[str, TensorForm] = {}
    for name, parameters in outputs:
        _check_name(name, known, wanted, f"task {spec.task!r}: output")
        subject = f"output {name!r}"
        refuse_shared_memory(parameters, subject)
        if parameters.get("classification"):
            raise DataError(
                f"{subject}: parameter 'classification' is not offered; leave it out and ask for label or probabilities"
            )
        wanted[name] = known[name]
    return list(wanted.values())


def read_examples(spec: BranchSpec, inputs: Sequence[Given], most_texts: int) -> list[Example]:
    """Texts or pairs out of tensors.

    Raises:
        DataError: An input is not known, missing, there twice, or not what it says.
        ServerError: 413: there are more texts than allowed.
    """
    known = {form.name: form for form in inputs_of(spec)}
    texts: dict[str, list[str]] = {}
    for given in inputs:
        _check_name(given.name, known, texts, f"task {spec.task!r}: input")
        refuse_shared_memory(given.parameters, f"input {given.name!r}")
        texts[given.name] = _texts(given, most_texts)
    missing = next((name for name in known if name not in texts), None)
    if missing is not None:
        raise DataError(f"task {spec.task!r}: input {missing!r} is missing; {' and '.join(known)} are needed; send it")
    if "text_pair" not in texts:
        return [Example(text) for text in texts["text"]]
    if len(texts["text_pair"]) != len(texts["text"]):
        raise DataError(
            f"input 'text_pair': has {len(texts['text_pair'])} elements; text has {len(texts['text'])}; send as many"
        )
    return [Example(text, pair) for text, pair in zip(texts["text"], texts["text_pair"], strict=True)]


def _check_name(name: str, known: Mapping[str, Any], before: Mapping[str, Any], subject: str) -> None:
    if name not in known:
        shown = name[:LONGEST_NAME]
        raise DataError(f"{subject} {shown!r} is not known; {nearest_hint(shown, known)}")
    if name in before:
        raise DataError(f"{subject} {name!r} is there twice; once is allowed; remove one")


def _texts(given: Given, most_texts: int) -> list[str]:
    subject = f"input {given.name!r}"
    if given.datatype != "BYTES":
        raise DataError(f"{subject}: has datatype {given.datatype[:20]!r}; BYTES is allowed; send texts")
    n_texts = _n_texts(given.shape, subject)
    if n_texts > most_texts:
        raise refuse(413, "too_many_texts", f"{subject}: has {n_texts} texts; {most_texts} are allowed; send fewer")
    elements = given.elements if given.elements is not None else unpack(given.packed, n_texts, subject)
    if len(elements) != n_texts:
        raise DataError(f"{subject}: holds {len(elements)} elements; its shape says {n_texts}; send as many")
    return [_text(element, number, subject) for number, element in enumerate(elements)]


def _n_texts(shape: Sequence[int], subject: str) -> int:
    if len(shape) not in {1, 2} or shape[0] < 1 or shape[1:] not in ([], [1], (), (1,)):
        shown = ", ".join(str(size) for size in shape[:8]) + (", …" if len(shape) > 8 else "")
        raise DataError(
            f"{subject}: has shape [{shown[:80]}]; [texts] or [texts, 1] is allowed; send at least one text"
        )
    return shape[0]


def _text(element: str | bytes, number: int, subject: str) -> str:
    if isinstance(element, str):
        return element
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{subject}: element {number} is no UTF-8 (byte {error.start}: {error.reason}); send UTF-8"
        ) from error


_OF_LABEL: Mapping[str, Callable[[Any], Any]] = {
    "label": lambda answer: answer.label or "",
    "confidence": lambda answer: answer.confidence,
    "labels": lambda answer: msgspec.json.encode([each.label for each in answer.labels]).decode(),
    "probabilities": lambda answer: [*answer.probabilities.values()],
    "score": lambda answer: answer.score,
    "spans": lambda answer: msgspec.json.encode(answer.spans).decode(),
}
"""What an output tells of one answer of a kind that has it."""


def values_of(form: TensorForm, answers: Sequence[Answer]) -> list[Any]:
    """What an output holds of answers, one after the other."""
    return [_OF_LABEL[form.name](answer) for answer in answers]
