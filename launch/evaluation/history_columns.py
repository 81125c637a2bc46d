"""Read the times and the features of a history as `longplay prepare` reads those of a dataset."""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from longplay.data_shards.readers.columns import Columns, parse_features
from longplay.data_shards.readers.database import query
from longplay.data_shards.readers.kinds import stored_unit, time_kind
from longplay.data_shards.readers.values import float_sql, id_sql, present_sql, time_sql
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.stream.columns import EventColumns
from longplay.launch.evaluation.history_files import Row
from longplay.launch.settings.errors import ConfigError


def column_names(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """Return "item", "time" or a feature -> the names that its column may have in a history file.

    The first is the name in the dataset's source. The second is the default of `longplay prepare` or, for a
    feature, its own name.
    """
    manifest, default = dataset.manifest, Columns()
    options = manifest.source["options"]
    given = {"item": options.get("item"), "time": options.get("time")}
    if isinstance(options.get("features"), str):
        given |= {feature.name: feature.column for feature in parse_features(options["features"])}
    names = {"item": default.item, "time": default.time} | {one.name: one.name for one in manifest.features}
    return {
        role: (first, name) if isinstance(first := given.get(role), str) and first != name else (name,)
        for role, name in names.items()
    }


def read_columns(
    rows: Sequence[Row],
    names: Mapping[str, Sequence[str]],
    dataset: Dataset,
    columns: EventColumns,
    where: str,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return the requested columns that the rows have.

    Args:
        rows: the events.
        names: the result of `column_names`.
        dataset: gives the unit of the times, and the codes of the features' values.
        columns: the requested columns.
        where: the file, for messages.

    Returns:
        The (n,) int64 times, and name -> (n,) int32 codes or float32 values of each feature. A value that the
        dataset does not have counts as missing.

    Raises:
        ConfigError: a value is not one of its column, a time is missing, or times decrease.
    """
    present = {field for row in rows for field in row.fields}
    chosen = {role: next((one for one in several if one in present), None) for role, several in names.items()}
    features = {}
    for info in columns.features:
        if (column := chosen[info.name]) is None:
            continue
        if info.kind == "float":
            values = _column(rows, column, float_sql("c0"), "a finite number", where)
            features[info.name] = values.fill_null(float("nan"))
            continue
        known = IdColumn(dataset.feature_values(info.name)["value"])
        kind, what = ("string", "a string") if known.is_text else ("integer", "an integer")
        values = _column(rows, column, id_sql("c0", "VARCHAR", kind), what, where)
        codes = known.find(values.fill_null("" if known.is_text else 0)) + 1
        features[info.name] = pl.Series(codes, dtype=pl.Int32).set(values.is_null(), 0)
    tensors = {name: torch.from_numpy(values.to_numpy(writable=True)) for name, values in features.items()}
    column = chosen["time"]
    if not columns.times or column is None or dataset.manifest.time_unit == "index":
        return None, tensors
    times = _column(rows, column, _time_sql(rows, column, dataset, where), "a time", where, is_required=True)
    if not times.is_sorted():
        raise ConfigError(f"{where}: the times in {column} decrease; give events oldest first")
    return torch.from_numpy(times.to_numpy(writable=True)), tensors


def _column(
    rows: Sequence[Row], column: str, sql: str, what: str, where: str, *, is_required: bool = False
) -> pl.Series:
    """Return (n,) values of a column, null where missing.

    Args:
        sql: the value of the text `c0`, null if it is unusable.
        what: what `sql` accepts, for the message.
        is_required: no value may be missing.
    """
    present = present_sql("c0", "VARCHAR", is_number=what != "a string")
    found = query(f"SELECT {sql} AS value, {present} AS present FROM block", block=_texts(rows, column))
    values, is_present = (pl.Series(found[name]) for name in ("value", "present"))
    wrong = values.is_null() & (is_present.fill_null(False) | is_required)
    if wrong.any():
        row = rows[wrong.arg_true()[0]]
        raise ConfigError(f"{where}, {row.place}: {column} is {row.fields.get(column)!r}, not {what}")
    return values


def _time_sql(rows: Sequence[Row], column: str, dataset: Dataset, where: str) -> str:
    """Return the SQL of the times `c0` in the dataset's unit.

    Raises:
        ConfigError: the times are in another unit.
    """
    unit, options = dataset.manifest.time_unit, dataset.manifest.source["options"]
    if "time" not in options:  # a format whose times are integers
        return time_sql("c0", "VARCHAR", "integer", 1)
    columns = Columns(
        time_type=options.get("time_type"),
        time_unit=options.get("time_unit"),
        time_scale=options.get("time_scale") or 1,
    )
    kind = columns.time_type or time_kind(_texts(rows, column), "c0", "VARCHAR", columns.time_scale)
    if kind == "integer" and stored_unit(kind, "VARCHAR", columns) != unit:
        kind = "decimal"  # seconds without a fraction
    if stored_unit(kind, "VARCHAR", columns) != unit:
        raise ConfigError(
            f"{where}: the times in {column} are not written as in the source of the dataset, where they are "
            f"in {unit or 'an unknown unit'}; convert them"
        )
    return time_sql("c0", "VARCHAR", kind, columns.time_scale)


def _texts(rows: Sequence[Row], column: str) -> pa.Table:
    return pa.table({"c0": pa.array([_as_text(row.fields.get(column)) for row in rows], pa.string())})


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.isoformat() if isinstance(value, date) else json.dumps(value, default=str)
