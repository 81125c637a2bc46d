"""Turn the times and features that callers give into the inputs of an exported encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from longplay.common.tensor_file import TensorFileError, read_tensors
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.features import vocabulary_name
from longplay.data_shards.storage.id_column import IdColumn, as_int64
from longplay.data_shards.storage.manifest import PER_SECOND
from longplay.data_shards.storage.parquet_tables import read_table
from longplay.models.inputs.items import ItemInputs
from longplay.models.inputs.spec import VECTORS, InputSpec, category_key
from longplay.models.inputs.stage import missing_inputs
from longplay.serving.export_format import ITEM_INPUTS_NAME, ExportError

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class ExportedInputs:
    """The inputs of an exported encoder.

    Attributes:
        spec: the layers of its input stage.
        items: the item columns that it reads.
        values: categorical feature -> its values; entry i has code i + 1.
        time_unit: unit of the times; None if it is unknown.
    """

    spec: InputSpec
    items: ItemInputs
    values: dict[str, IdColumn]
    time_unit: str | None

    @classmethod
    def read(cls, folder: Path, spec: InputSpec, time_unit: str | None, num_items: int) -> ExportedInputs:
        """Read the inputs of an export.

        Raises:
            ExportError: a file does not fit `spec`, or is damaged.
        """
        values = {}
        for name, count in spec.categorical:
            file = folder / vocabulary_name(name)
            try:
                values[name] = IdColumn(read_table(file, ["value"])["value"])
            except (OSError, pl.exceptions.PolarsError, DataError) as error:
                cause = str(error).splitlines()[0]
                raise ExportError(f"{file}: cannot be read ({cause}); export the run again") from None
            if len(values[name]) != count:
                raise ExportError(
                    f"{file}: has {len(values[name])} values, not {count}; export the run again"
                )
        items = ItemInputs()
        if spec.item_categories or spec.vector_width:
            file = folder / ITEM_INPUTS_NAME
            try:
                found = read_tensors(file)
                items = ItemInputs(
                    {name: found[category_key(name)] for name, _ in spec.item_categories}, found.get(VECTORS)
                )
            except (KeyError, TensorFileError) as error:
                raise ExportError(f"{file}: cannot be read ({error}); export the run again") from None
            rows = {len(tensor) for tensor in found.values()}
            if rows != {num_items + 1} or items.digest() != spec.items_digest:
                raise ExportError(f"{file}: does not fit config.json; export the run again")
        return cls(spec, items, values, time_unit)

    def parse(
        self, num_events: int, times: Any, features: Mapping[str, Any] | None, name: str
    ) -> dict[str, np.ndarray]:
        """Return the times and features of events as arrays (n,), under the key "" and the features' names.

        Args:
            num_events: number of events n.
            times: in the unit of the dataset, ascending; or of NumPy's type datetime64, in UTC.
            features: name -> original values of a categorical feature, or numbers. None is a missing value.
            name: name of the events, for messages.

        Raises:
            ValueError: they are of another length or type, or the model has no such input.
        """
        found = {}
        if times is not None:
            found[""] = self._times(times, f"times of {name}")
        if not isinstance(features, Mapping | None):
            raise ValueError(f"features of {name}: give a dict of feature name -> list of values")
        for feature, values in (features or {}).items():
            found[feature] = self._codes_or_numbers(feature, values, f"feature {feature} of {name}")
        for feature, values in found.items():
            if len(values) != num_events:
                what = f"feature {feature}" if feature else "times"
                raise ValueError(f"{what} of {name}: has {len(values)} values for {num_events} events")
        return found

    def tensors(self, item_ids: np.ndarray, parsed: Mapping[str, np.ndarray]) -> dict[str, Tensor] | None:
        """Return the tensors (n,) of the input stage; None if the encoder reads items only.

        Args:
            item_ids: (n,) int64.
            parsed: the result of `parse` for these events; times and features that are absent are missing.
        """
        if not self.spec:
            return None
        features = {name: torch.from_numpy(values) for name, values in parsed.items() if name}
        times = torch.from_numpy(parsed[""]) if "" in parsed else None
        given = self.items.of_events(self.spec, torch.from_numpy(item_ids), times, features)
        return missing_inputs(self.spec, item_ids.shape, _CPU) | given

    def _times(self, times: Any, name: str) -> np.ndarray:
        if not self.spec.uses_times:
            raise ValueError(f"{name}: this model does not read times; leave them out")
        try:
            times = np.asarray(times)
        except ValueError:  # lists of different lengths
            times = None
        if times is not None and times.dtype.kind == "M" and self.time_unit in PER_SECOND:
            if np.isnat(times).any():
                raise ValueError(f"{name}: contain NaT; give the time of each event, or no times")
            times = times.astype(f"datetime64[{self.time_unit}]").astype(np.int64)
        array = as_int64(times)
        if array is None:
            raise ValueError(
                f"{name}: are not a list of integers in the dataset's unit of time "
                f"({self.time_unit or 'unknown'})"
            )
        if (array[1:] < array[:-1]).any():
            raise ValueError(f"{name}: decrease; give events oldest first")
        return array

    def _codes_or_numbers(self, feature: str, values: Any, name: str) -> np.ndarray:
        entries = np.asarray(values, dtype=object)
        if entries.ndim != 1:
            raise ValueError(f"{name}: is not a list of values")
        is_missing = np.array([value is None for value in entries], bool)
        if feature in self.values:
            column, codes = self.values[feature], np.zeros(len(entries), np.int32)
            try:
                codes[~is_missing] = column.find(column.typed(entries[~is_missing].tolist())) + 1
            except ValueError as error:
                raise ValueError(f"{name}: {str(error).replace('ids here', 'its values')}") from None
            return codes
        if feature not in {one for one, _, _ in self.spec.floats}:
            known = [*self.values, *(one for one, _, _ in self.spec.floats)]
            raise ValueError(f"{name}: this model reads {', '.join(known) or 'no features'}")
        numbers, present = np.full(len(entries), np.nan, np.float32), entries[~is_missing]
        is_numeric = all(isinstance(value, float | int | np.number) for value in present)
        if is_numeric:
            with np.errstate(over="ignore"):
                numbers[~is_missing] = present.astype(np.float32)
        if not is_numeric or np.isinf(numbers).any():
            raise ValueError(f"{name}: is not a list of finite numbers")
        return numbers
