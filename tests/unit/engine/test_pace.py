"""Between two pieces of work requests get some times as long as the last one took."""

import pytest

from trunkline.engine.pace import Pace


@pytest.mark.parametrize(("took", "least", "most"), [(0.0, 0.01, 0.1), (0.1, 0.2, 0.5), (100.0, 0.2, 1.0)])
def test_requests_get_longer_after_a_longer_piece_but_never_without_end(took: float, least: float, most: float) -> None:
    now, waits = 100.0, []

    def give_way(most_s: float) -> None:
        nonlocal now
        waits.append(most_s)
        now += most_s  # An engine that always has something to do.

    pace = Pace(give_way, clock=lambda: now)
    for _ in range(2):  # What was waited before is no work.
        now += took
        pace()
    first, second = waits
    assert least <= first <= most
    assert second == pytest.approx(first)
