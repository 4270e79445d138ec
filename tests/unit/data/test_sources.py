"""Raw rows out of sources; what their formats say is tested with `trunkline.data.read`."""

import pytest

from trunkline.core.errors import DataError
from trunkline.data.sources import read_rows


def test_a_hub_data_set_that_is_read_by_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found set.py")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"hub:owner/set:train: .*scripts are no longer supported"):
        next(read_rows("hub:owner/set:train", ("text",)))
