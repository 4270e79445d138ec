"""Pico models made in code: every architecture, a few thousand weights, no network ever."""

import json
import string
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from trunkline.data.tokenize import Tokenizer
from trunkline.model.backbone import Backbone, make_backbone
from trunkline.model.checkpoint import foreign_name
from trunkline.model.config import Architecture, EncoderConfig, trunk_tensor_shapes
from trunkline.model.tensors import write_tensors

ARCHITECTURES: tuple[Architecture, ...] = ("bert", "roberta", "xlm-roberta", "mpnet", "electra", "distilbert")
N_TOKENS = 64
WORDS = (
    "the a an is are was not to of in on for and or what where when who how play book find add show please turn light "
    "music song movie weather rain city london paris new york table two people good bad great fine day night tomorrow "
    "today time my your i you he she it we they this that with from at no yes very"
)
CHINESE = "我你他们的是在不了有人这中大来上国天今明气好北京海播放歌音乐爱吃饭去很"


def tiny_tokenizer_json(architecture: Architecture = "bert") -> str:
    """A small WordPiece tokenizer.json: letters, digits, punctuation, some words, some Chinese characters."""
    fairseq = architecture in ("roberta", "xlm-roberta", "mpnet")
    special = ["<s>", "<pad>", "</s>", "<unk>"] if fairseq else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    first, last, unknown = ("<s>", "</s>", "<unk>") if fairseq else ("[CLS]", "[SEP]", "[UNK]")
    pieces = [*string.ascii_lowercase, *string.digits]
    texts = [*special, *pieces, *(f"##{piece}" for piece in pieces), *string.punctuation, *CHINESE, *WORDS.split()]
    vocabulary = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))  # type: ignore[call-arg]
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    middle = f"{last} {last}" if fairseq else last
    types = "" if fairseq else ":1"
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{first} $A {last}",
        pair=f"{first} $A {middle} $B{types} {last}{types}",
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    return tokenizer.to_str()


def tiny_config(architecture: Architecture = "bert", **changes: Any) -> EncoderConfig:
    """A config of 4 layers and width 16 with room for 64 tokens; any field can be changed."""
    fairseq = architecture in ("roberta", "xlm-roberta", "mpnet")
    offset = 2 if fairseq else 0
    tokenizer = tokenizers.Tokenizer.from_str(tiny_tokenizer_json(architecture))
    config = EncoderConfig(
        architecture=architecture,
        n_layers=4,
        width=16,
        n_heads=2,
        ffn_width=32,
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=N_TOKENS + offset,
        n_types={"bert": 2, "electra": 2, "roberta": 1, "xlm-roberta": 1}.get(architecture, 0),
        pad_id=1 if fairseq else 0,
        position_offset=offset,
        embedding_width=8 if architecture == "electra" else 16,
        relative_buckets=32 if architecture == "mpnet" else 0,
        activation="gelu",
        norm_eps=1e-12,
        hidden_dropout=0.1,
        attention_dropout=0.1,
    )
    changes.setdefault("embedding_width", 8 if architecture == "electra" else changes.get("width", config.width))
    return msgspec.structs.replace(config, **changes)


def tiny_tensors(config: EncoderConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors large enough that every layer changes its input: dense weights and tables from N(0, 0.2)."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(0.0, 0.2, shape) + (name.endswith("norm.weight"))).astype(np.float32)
        for name, shape in trunk_tensor_shapes(config, depth=config.n_layers).items()
    }


def tiny_backbone(architecture: Architecture = "bert", seed: int = 0, **changes: Any) -> Backbone:
    """A whole backbone with random weights; ``changes`` as in `tiny_config`."""
    config = tiny_config(architecture, **changes)
    tokenizer = Tokenizer.from_json(tiny_tokenizer_json(architecture), n_types=config.n_types, subject="tiny")
    return make_backbone(f"tiny-{architecture}", config, tensors=tiny_tensors(config, seed), tokenizer=tokenizer)


def tiny_config_json(config: EncoderConfig) -> dict[str, Any]:
    """What transformers would write into config.json."""
    facts: dict[str, Any] = {
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.n_positions,
        "pad_token_id": config.pad_id,
    }
    if config.architecture == "distilbert":
        return facts | {
            "n_layers": config.n_layers,
            "dim": config.width,
            "n_heads": config.n_heads,
            "hidden_dim": config.ffn_width,
            "activation": config.activation,
            "dropout": config.hidden_dropout,
            "attention_dropout": config.attention_dropout,
        }
    facts |= {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }
    if config.architecture == "mpnet":
        return facts | {"relative_attention_num_buckets": config.relative_buckets}
    if config.architecture == "electra":
        facts["embedding_size"] = config.embedding_width
    return facts | {"type_vocab_size": config.n_types}


def write_checkpoint(folder: Path, backbone: Backbone) -> Path:
    """Write a backbone as a Hugging Face folder without transformers, so that it loads in milliseconds."""
    folder.mkdir(parents=True, exist_ok=True)
    architecture = backbone.config.architecture
    foreign = {foreign_name(architecture, name): array for name, array in backbone.tensors.items()}
    (folder / "config.json").write_text(json.dumps(tiny_config_json(backbone.config)))
    (folder / "model.safetensors").write_bytes(write_tensors(foreign))
    (folder / "tokenizer.json").write_text(backbone.tokenizer.json)
    return folder


def write_tiny_checkpoint(
    folder: Path, architecture: Architecture = "bert", *, model_class: str = "AutoModel", **changes: Any
) -> Path:
    """Write a Hugging Face folder with transformers itself: random weights, our tokenizer.json.

    ``changes`` are fields of our config or keys of transformers'; ``model_class`` may be one with a head.
    Importing transformers takes seconds; tests that only need a folder take `write_checkpoint`.
    """
    import torch
    import transformers

    sizes = {name: value for name, value in changes.items() if name in EncoderConfig.__struct_fields__}
    others = {name: value for name, value in changes.items() if name not in sizes}
    facts = tiny_config_json(tiny_config(architecture, **sizes)) | {"initializer_range": 0.2} | others
    model_type = facts.pop("model_type")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **facts)
        model = getattr(transformers, model_class).from_config(config)
        with torch.no_grad():
            # transformers starts biases at 0 and norms at 1, which would hide a bias that is read from the wrong place.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json(architecture))
    return folder
