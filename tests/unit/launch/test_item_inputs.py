"""Item categories and vectors are read exactly, in parts, and unusable columns are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from longplay.data_shards.storage.item_columns import ItemColumns
from longplay.launch.inputs import item_inputs
from longplay.launch.inputs.item_inputs import ItemInputs, load_item_inputs
from longplay.launch.settings.errors import ConfigError


def load(folder: Path, values: list[Any], dtype: Any = None, *, vectors: bool) -> ItemInputs:
    """Load a column "x" of an items.parquet as categories or as vectors."""
    path = folder / "items.parquet"
    pl.DataFrame({"item_id": range(1, len(values) + 1), "x": pl.Series(values, dtype=dtype)}).write_parquet(
        path
    )
    dataset: Any = SimpleNamespace(path=folder, item_columns=ItemColumns(lambda: path, path))
    return load_item_inputs(dataset, [] if vectors else ["x"], "x" if vectors else None)


@pytest.mark.parametrize(
    "dtype", [pl.List(pl.Float64), pl.List(pl.Float32), pl.Array(pl.Float32, 3)], ids=str
)
@pytest.mark.parametrize("rows_at_once", [7, 1000])
def test_vectors_are_scaled_by_one_factor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, rows_at_once: int
) -> None:
    monkeypatch.setattr(item_inputs, "_ROWS_AT_ONCE", rows_at_once)
    vectors = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    values = [None if number % 9 == 4 else vector.tolist() for number, vector in enumerate(vectors)]
    table = load(tmp_path, values, dtype, vectors=True).vectors
    vectors[4::9] = 0
    scale = np.sqrt((vectors.astype(np.float64) ** 2).sum() / np.count_nonzero(vectors[:, 0]))
    assert table is not None
    assert table.shape == (101, 3)
    assert not table[0].any()
    assert not table[1:][4::9].any()
    np.testing.assert_allclose(table[1:], vectors / scale, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0], [3.0]], r"vectors of lengths \[1, 2\]"),
        ([[1.0, float("nan")]], "a vector contains a null, NaN or infinity"),
        ([[1.0, None]], "a vector contains a null, NaN or infinity"),
        ([[1e300, 1.0]], "a vector contains a null, NaN or infinity"),
        (["a"], "is String; give a column of lists of numbers"),
        ([["a"]], r"is List\(String\); give a column of lists of numbers"),
        ([None], "give a column of lists of numbers"),
    ],
)
def test_unusable_vectors_are_refused(tmp_path: Path, values: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^inputs.item_vectors x: .*{message}"):
        load(tmp_path, values, vectors=True)


@pytest.mark.parametrize(
    ("values", "codes"),
    [(["b", "a", None, "a"], [2, 1, 0, 1]), ([5, 3, 5, 4], [1, 2, 1, 3]), (["", "b", "b"], [2, 1, 1])],
)
def test_categories_are_numbered_by_falling_number_of_items(
    tmp_path: Path, values: list[Any], codes: list[int]
) -> None:
    inputs = load(tmp_path, values, vectors=False)
    assert inputs.categories["x"].tolist() == [0, *codes]
    assert inputs.gather(torch.tensor([[0, 2], [1, 1]]))["item_x"].tolist() == [[0, codes[1]], [codes[0]] * 2]


@pytest.mark.parametrize("values", [[1.5], [True], [None], [["a"]]])
def test_categories_of_other_types_are_refused(tmp_path: Path, values: list[Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"^inputs.item_categories x: is .*; give columns of text or integers"
    ):
        load(tmp_path, values, vectors=False)


def test_the_digest_depends_on_every_value(tmp_path: Path) -> None:
    digests = [
        load(tmp_path, values, vectors=vectors).digest()
        for values, vectors in [
            (["a", "b"], False),
            (["b", "a", "b"], False),
            (["a", "b", "b"], False),
            ([[1.0, 2.0]], True),
            ([[2.0, 1.0]], True),
        ]
    ]
    assert len(set(digests)) == 5
    assert ItemInputs().digest() == ""
