import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import backbone_of, branch_spec, make_branch
from trunkline.bundle.golden import Golden, golden_inputs, make_golden
from trunkline.core.errors import NonFiniteError, VerificationError
from trunkline.core.specs import decode_spec, encode_spec
from trunkline.model.branch import Branch, load_branch
from trunkline.model.golden_run import golden_logits
from trunkline.model.trunk import Trunk


def test_golden_inputs_cover_scripts_digits_emoji_and_a_long_text() -> None:
    texts = [row.text for row in golden_inputs("text")]
    joined = "".join(texts)
    assert any("\u4e00" <= character <= "\u9fff" for character in joined)
    assert "😀" in joined
    assert any(character.isdigit() for character in joined)
    assert max(len(text) for text in texts) > 400


def test_golden_inputs_of_pairs_all_have_a_partner() -> None:
    assert all(row.text_pair for row in golden_inputs("pair"))
    assert all(row.text_pair is None for row in golden_inputs("text"))


def test_golden_logits_survive_json_in_bits() -> None:
    logits = [np.array([[1 / 3, -2.7182817, 1e-30]], dtype=np.float32), np.float32([[0.1, 1e20, -0.0]])]
    golden = make_golden(golden_inputs("text")[:2], logits)
    again = decode_spec(encode_spec(golden), Golden, "golden.json")
    for stored, wanted in zip(again.logits, logits, strict=True):
        assert np.array_equal(np.asarray(stored, dtype=np.float32), wanted)


def test_golden_examples_are_the_inputs() -> None:
    inputs = golden_inputs("pair")
    assert make_golden(inputs, [np.zeros((1, 2), np.float32)] * len(inputs)).examples() == inputs


def test_a_logit_that_is_not_finite_is_not_stored() -> None:
    with pytest.raises(NonFiniteError, match="golden input 0"):
        make_golden(golden_inputs("text")[:1], [np.float32([[np.nan]])])


def test_answers_must_be_as_many_as_inputs() -> None:
    with pytest.raises(VerificationError, match="0 answers for 1 inputs"):
        make_golden(golden_inputs("text")[:1], [])


def test_logits_without_a_line_for_each_row_are_refused() -> None:
    with pytest.raises(VerificationError, match=r"shape \(2,\)"):
        make_golden(golden_inputs("text")[:1], [np.zeros(2, np.float32)])


def test_golden_logits_have_one_line_a_sentence_and_one_a_token_for_tagging() -> None:
    backbone = backbone_of()
    sentence, tagging = make_branch("intent", backbone), make_branch("slots", backbone)
    assert {np.shape(lines) for lines in sentence.golden.logits} == {(1, 3)}
    rows = backbone.tokenizer.encode(golden_inputs("text"), max_length=32)
    assert [np.shape(lines) for lines in tagging.golden.logits] == [(len(row.token_ids), 3) for row in rows]


def test_golden_logits_run_in_evaluation_mode_and_put_training_mode_back() -> None:
    backbone = backbone_of()
    made = make_branch("intent", backbone)
    trunk = Trunk.build(backbone.config, backbone.tensors, depth=1)
    module = load_branch(made.spec, backbone.config, made.tensors)
    module.train()
    inputs = golden_inputs("text")
    logits = golden_logits(trunk, module, backbone.tokenizer, made.spec, inputs)
    assert module.training
    assert np.allclose(np.concatenate(logits), np.asarray(made.golden.logits, np.float32)[:, 0], atol=1e-6)


def test_a_loaded_branch_is_frozen_and_holds_what_was_stored() -> None:
    backbone = backbone_of()
    made = make_branch("mood", backbone)
    module = load_branch(branch_spec("mood", backbone), backbone.config, made.tensors)
    assert isinstance(module, Branch)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert {name: tensor.tobytes() for name, tensor in module.tensors().items()} == {
        name: tensor.tobytes() for name, tensor in made.tensors.items()
    }


def test_golden_refuses_unknown_keys() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"inputs": [], "logits": [], "extra": 1}, Golden)
