"""Times and features that callers give to an exported model."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from longplay.data_shards.storage.id_column import IdColumn
from longplay.models.inputs.items import ItemInputs
from longplay.models.inputs.spec import InputSpec
from longplay.serving.exported_inputs import ExportedInputs

SPEC = InputSpec(categorical=(("genre", 3),), floats=(("price", 0.0, 1.0),), time_gap="bucket")
INPUTS = ExportedInputs(SPEC, ItemInputs(), {"genre": IdColumn(pl.Series(["a", "b", "c"]))}, "s")


def test_missing_and_unknown_values_are_distinguished_by_type_only() -> None:
    found = INPUTS.parse(3, [5, 5, 6], {"genre": ["c", None, "new"], "price": [1, None, 2.5]}, "history")
    assert found[""].tolist() == [5, 5, 6]
    assert found["genre"].tolist() == [3, 0, 0]
    assert np.array_equal(found["price"], np.array([1, np.nan, 2.5], np.float32), equal_nan=True)


def test_times_of_the_whole_range_are_compared_without_overflow() -> None:
    times = [-(2**63) + 1, 2**63 - 1]
    assert INPUTS.parse(2, times, None, "history")[""].tolist() == times


@pytest.mark.parametrize(
    ("times", "features", "message"),
    [
        ([2**63, 2**63], None, "times of history: are not a list of integers"),
        ([[1], [1, 2]], None, "times of history: are not a list of integers"),
        (np.array(["NaT", "NaT"], "datetime64[s]"), None, "times of history: contain NaT"),
        (None, [{"genre": ["a", "b"]}], "features of history: give a dict"),
        (None, {"genre": 5}, "feature genre of history: is not a list of values"),
        (None, {"genre": "ab"}, "feature genre of history: is not a list of values"),
        (None, {"price": ["5", "6"]}, "feature price of history: is not a list of finite numbers"),
        (None, {"price": [1e300, 1.0]}, "feature price of history: is not a list of finite numbers"),
    ],
)
def test_other_types_and_values_that_do_not_fit_are_refused(times: Any, features: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        INPUTS.parse(2, times, features, "history")
