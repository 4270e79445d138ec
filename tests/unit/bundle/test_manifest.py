from typing import Any

import msgspec
import pytest

from tests.tiny_bundles import provenance_of
from trunkline.bundle.files import files_digest, sha256_hex
from trunkline.bundle.manifest import (
    BRANCH_FILES,
    TRUNK_FILES,
    Manifest,
    TaskEntry,
    TrunkEntry,
    decode_manifest,
    deepest_exit,
    encode_manifest,
    layer_cost,
)
from trunkline.core.errors import BundleError, DigestMismatchError, SchemaVersionError


def task_entry(exit_layer: int, own_layers: int, **changes: Any) -> TaskEntry:
    files = {name: sha256_hex(name.encode()) for name in BRANCH_FILES}
    entry = TaskEntry(
        branch=files_digest(files),
        exit_layer=exit_layer,
        own_layers=own_layers,
        kind="classification",
        input="text",
        labels=("no", "yes"),
        label_schema_version=1,
        metric="accuracy",
        max_length=32,
        pooling="cls",
        provenance=provenance_of("intent"),
        files=files,
    )
    return msgspec.structs.replace(entry, **changes)


def manifest_of(**tasks: TaskEntry) -> Manifest:
    return Manifest(
        trunkline_version="0.1.0",
        backbone="tiny",
        n_layers=12,
        trunk=TrunkEntry(
            depth=4,
            chain=tuple(sha256_hex(bytes([depth])) for depth in range(5)),
            files={name: sha256_hex(name.encode()) for name in TRUNK_FILES},
        ),
        tasks=tasks,
    )


def test_the_layer_cost_is_the_deepest_exit_and_all_own_layers() -> None:
    manifest = manifest_of(a=task_entry(2, 3), b=task_entry(4, 1), c=task_entry(0, 2))
    assert deepest_exit(manifest) == 4
    assert layer_cost(manifest) == 4 + 3 + 1 + 2


def test_a_manifest_without_tasks_costs_nothing() -> None:
    assert layer_cost(manifest_of()) == 0


def test_a_manifest_survives_writing_and_reading() -> None:
    manifest = manifest_of(a=task_entry(2, 3), b=task_entry(4, 1, provenance=provenance_of("mood", dev_metric=None)))
    assert decode_manifest(encode_manifest(manifest), "manifest") == manifest


def test_equal_manifests_give_equal_bytes() -> None:
    assert encode_manifest(manifest_of(a=task_entry(1, 1))) == encode_manifest(manifest_of(a=task_entry(1, 1)))


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_no_flipped_bit_of_a_manifest_goes_unnoticed(mask: int) -> None:
    content = encode_manifest(manifest_of(a=task_entry(2, 3)))
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= mask
        with pytest.raises(BundleError):
            decode_manifest(bytes(damaged), "manifest")


def test_a_truncated_manifest_is_damaged() -> None:
    content = encode_manifest(manifest_of(a=task_entry(2, 3)))
    with pytest.raises(DigestMismatchError, match="damaged"):
        decode_manifest(content[:-40], "manifest")


def test_an_edited_label_is_noticed() -> None:
    content = encode_manifest(manifest_of(a=task_entry(2, 3)))
    with pytest.raises(DigestMismatchError, match="edited"):
        decode_manifest(content.replace(b'"yes"', b'"maybe"'), "manifest")


def test_a_newer_schema_is_refused_before_anything_else_is_looked_at() -> None:
    with pytest.raises(SchemaVersionError, match=r"version 2.*up to 1.*upgrade"):
        decode_manifest(b'{"schema_version": 2, "new_key": {}}', "manifest")


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"schema_version": "1"}', b'{"schema_version": true}'])
def test_other_json_is_no_manifest(content: bytes) -> None:
    with pytest.raises(BundleError, match="schema_version"):
        decode_manifest(content, "manifest")


def test_json_nested_without_end_is_damaged() -> None:
    with pytest.raises(DigestMismatchError, match="damaged"):
        decode_manifest(b"[" * 100_000, "manifest")


TRUNK = manifest_of().trunk
WRONG = [
    manifest_of(**{"../up": task_entry(1, 1)}),
    manifest_of(a=task_entry(1, 1, branch="../../etc")),
    manifest_of(a=task_entry(1, 1, branch="0" * 64)),
    manifest_of(a=task_entry(1, 1, files={**task_entry(1, 1).files, "../x": "0" * 64})),
    manifest_of(a=task_entry(5, 1)),
    manifest_of(a=task_entry(-1, 1)),
    manifest_of(a=task_entry(4, 9)),
    manifest_of(a=task_entry(4, -1)),
    manifest_of(a=task_entry(1, 1, max_length=7)),
    manifest_of(a=task_entry(1, 1, max_length=8193)),
    msgspec.structs.replace(manifest_of(), n_layers=1001),
    msgspec.structs.replace(
        manifest_of(), n_layers=0, trunk=msgspec.structs.replace(TRUNK, depth=0, chain=TRUNK.chain[:1])
    ),
    msgspec.structs.replace(manifest_of(), backbone="tiny\x1b[2J"),
    msgspec.structs.replace(manifest_of(), backbone="tiny\u202egnp"),
    msgspec.structs.replace(manifest_of(), trunk=msgspec.structs.replace(TRUNK, depth=13)),
    msgspec.structs.replace(manifest_of(), trunk=msgspec.structs.replace(TRUNK, chain=TRUNK.chain[:-1])),
    msgspec.structs.replace(manifest_of(), trunk=msgspec.structs.replace(TRUNK, precision="int8")),
    msgspec.structs.replace(
        manifest_of(), trunk=msgspec.structs.replace(TRUNK, files={**TRUNK.files, "../../evil.safetensors": "0" * 64})
    ),
    msgspec.structs.replace(
        manifest_of(), trunk=msgspec.structs.replace(TRUNK, files={**TRUNK.files, "config.json": "short"})
    ),
]


@pytest.mark.parametrize("manifest", WRONG)
def test_a_sealed_manifest_that_says_what_cannot_be_is_refused(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="found; allowed"):
        decode_manifest(encode_manifest(manifest), "manifest")
