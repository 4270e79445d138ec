"""Budgets, cost tables, and what parts of a plan cost."""

from dataclasses import dataclass
from decimal import ROUND_CEILING
from pathlib import Path

import pytest

from trunkline.core.costs import CostTable
from trunkline.core.errors import SpecError, UnknownNameError
from trunkline.model.cost import EncoderSizes, branch_flops, layer_flops
from trunkline.train.price import (
    LAYER_PRICES,
    Budget,
    Unit,
    cost_text,
    flop_prices,
    ms_prices,
    parse_budget,
    read_cost_table,
)

BERT_BASE = EncoderSizes(n_layers=12, width=768, n_heads=12, ffn_width=3072)


@dataclass(frozen=True, slots=True)
class Placed:
    """A branch at its place."""

    exit_layer: int
    own_layers: int
    folded: bool = True
    selection_mean: float = 80.0
    run_id: str = "r"


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("20layers", Budget(amount=20, unit="layers")),
        ("1 layer", Budget(amount=1, unit="layers")),
        ("3.5GFLOP", Budget(amount=3.5e9, unit="flops")),
        ("3.5 gflops", Budget(amount=3.5e9, unit="flops")),
        ("4.35TFLOP", Budget(amount=4_350_000_000_000, unit="flops")),
        ("1.5FLOP", Budget(amount=1, unit="flops")),
        ("700 MFLOP", Budget(amount=7e8, unit="flops")),
        ("12ms", Budget(amount=12, unit="ms")),
        (" 0.5 MS ", Budget(amount=0.5, unit="ms")),
    ],
)
def test_a_budget_is_a_number_and_a_unit(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "20", "layers", "-3layers", "3 seconds", "1e3layers", "20layers or so", "nanms"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(
        SpecError, match="is not a budget; give a number and one of layers, FLOP, KFLOP, MFLOP, GFLOP, TFLOP, ms"
    ):
        parse_budget(text)


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_an_amount_below_0_or_without_end_is_refused(amount: float) -> None:
    with pytest.raises(SpecError, match="is no amount"):
        Budget(amount=amount, unit="ms")


@pytest.mark.parametrize(
    ("amount", "unit", "steps"),
    [(20.9, "layers", 20), (3.5e9, "flops", 3_500_000_000), (0.1 + 0.2, "ms", 300_000), (4.35, "ms", 4_350_000)],
)
def test_a_budget_is_rounded_down_to_whole_steps(amount: float, unit: Unit, steps: int) -> None:
    assert Budget(amount=amount, unit=unit).steps == steps


@pytest.mark.parametrize(
    ("steps", "unit", "text"),
    [
        (1, "layers", "1 layer"),
        (20, "layers", "20 layers"),
        (3_500_000_000, "flops", "3.5 GFLOP"),
        (12, "flops", "12 FLOP"),
        (12_500_000, "ms", "12.5 ms"),
    ],
)
def test_a_cost_is_said_in_its_unit(steps: int, unit: Unit, text: str) -> None:
    assert cost_text(steps, unit) == text


@pytest.mark.parametrize("unit", ["layers", "flops", "ms"])
@pytest.mark.parametrize("steps", [0, 1, 7, 20, 999_999, 12_345_678, 3_512_499_999, 99_999_999_999, 10**15 + 1])
def test_what_is_printed_can_be_copied_as_a_budget(steps: int, unit: Unit) -> None:
    allowed = parse_budget(cost_text(steps, unit, rounding=ROUND_CEILING)).steps
    assert steps <= allowed <= steps * 1.001 + 1
    assert parse_budget(cost_text(steps, unit, rounding=None)).steps == steps


def test_a_share_is_of_single_models_whose_last_layer_folds_where_the_branch_does() -> None:
    prices = flop_prices(BERT_BASE, 32.0)
    assert prices.share([Placed(0, 12), Placed(0, 12, folded=False)], 12) == 1.0
    whole, folded = prices.own_layer, prices.folded_layer
    assert prices.share([Placed(8, 1)], 12) == (8 * whole + folded) / (11 * whole + folded)
    assert LAYER_PRICES.share([Placed(8, 1), Placed(6, 2)], 12) == 11 / 24


def test_layers_are_the_papers_overhead() -> None:
    branches = [Placed(2, 3), Placed(7, 1), Placed(4, 0), Placed(7, 2, folded=False)]
    assert LAYER_PRICES.total(branches) == 7 + 3 + 1 + 0 + 2


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("own_layers", [0, 1, 3])
def test_operations_are_those_of_the_cost_model(own_layers: int, folded: bool) -> None:
    prices = flop_prices(BERT_BASE, 32.0)
    branch = branch_flops(BERT_BASE, [32.0], own_layers=own_layers, folded=folded)
    assert prices.own(Placed(4, own_layers, folded)) == round(branch)
    assert prices.total([Placed(4, own_layers, folded)]) == round(branch + 4 * layer_flops(BERT_BASE, [32.0]))


def test_the_last_layer_under_a_cls_head_is_nearly_free() -> None:
    prices = flop_prices(BERT_BASE, 32.0)
    assert prices.own(Placed(8, 1)) < 0.05 * prices.own(Placed(8, 1, folded=False))


def test_milliseconds_are_sums_of_the_table() -> None:
    table = CostTable(trunk_layer_ms=0.9, own_layer_ms=1.0, folded_layer_ms=0.1, branch_ms=0.05, request_ms=0.5)
    total = ms_prices(table).total([Placed(4, 1), Placed(6, 3), Placed(6, 2, folded=False), Placed(0, 0)])
    assert total == round((0.5 + 6 * 0.9 + 4 * 0.05 + 0.1 + 2.1 + 2.0) * 1e6)


def test_a_cost_table_is_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text('{"trunk_layer_ms": 1, "own_layer_ms": 2, "folded_layer_ms": 0.5, "measured_on": "a machine"}')
    assert read_cost_table(path) == CostTable(
        trunk_layer_ms=1, own_layer_ms=2, folded_layer_ms=0.5, measured_on="a machine"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"trunk_layer_ms": -1, "own_layer_ms": 2, "folded_layer_ms": 0.5}', "trunk_layer_ms is -1.0; give millisec"),
        ('{"trunk_layer_ms": 1, "own_layer_ms": 1e300, "folded_layer_ms": 0.5}', r"own_layer_ms is 1e\+300"),
        ('{"trunk_layer_ms": 1, "own_layer_ms": 2}', "key 'folded_layer_ms' is missing"),
        ("not json", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_cost_table_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(SpecError, match=rf"cost table .*costs\.json.*{message}"):
        read_cost_table(tmp_path / "costs.json")


def test_an_unknown_cost_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text('{"trunk_layer": 1, "own_layer_ms": 2, "folded_layer_ms": 0.5}')
    with pytest.raises(UnknownNameError, match="did you mean 'trunk_layer_ms'"):
        read_cost_table(tmp_path / "costs.json")


def test_a_missing_cost_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cost table .*none\.json.*cannot be read"):
        read_cost_table(tmp_path / "none.json")
