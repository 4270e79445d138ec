import msgspec

from tests.tiny_bundles import backbone_of, branch_spec
from trunkline.bundle.card import model_card


def test_a_card_names_what_people_need_to_know() -> None:
    spec = branch_spec("intent", backbone_of())
    card = model_card(spec, n_parameters=12345)
    for fact in ("`intent`", "classification", "12,345", spec.trunk_digest, "79.50 points", "`run-intent`", "`book`"):
        assert fact in card


def test_a_card_of_many_labels_stays_short() -> None:
    labels = tuple(f"label-{number:03}" for number in range(150))
    card = model_card(branch_spec("intent", backbone_of(), labels=labels), n_parameters=1)
    assert "150: " in card
    assert "and 120 more" in card
    assert "label-149" not in card


def test_a_card_of_a_score_has_no_labels() -> None:
    assert "a score" in model_card(branch_spec("urgency", backbone_of()), n_parameters=1)


def test_a_label_stays_on_its_line() -> None:
    card = model_card(branch_spec("intent", backbone_of(), labels=("a|b\nc", "d")), n_parameters=1)
    assert "`a\\|b c`" in card


def test_no_name_can_break_the_table() -> None:
    spec = branch_spec("intent", backbone_of())
    origin = msgspec.structs.replace(
        spec.provenance, backbone="a|b\nc", run_id="a|b\nc", label_teacher="a|b\nc", init="a|b\nc"
    )
    card = model_card(msgspec.structs.replace(spec, provenance=origin), n_parameters=1)
    rows = [line for line in card.split("## Labels")[0].splitlines() if line.startswith("|")]
    assert sum("`a\\|b c`" in row for row in rows) == 4
    assert {row.replace("\\|", "").count("|") for row in rows} == {3}
