"""Read the inputs that the settings name from a dataset, and turn events into tensors of the input stage."""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.columns import EventColumns
from longplay.data_shards.stream.eval_stream import EvalBatch
from longplay.data_shards.stream.rows import Batch
from longplay.launch.inputs.item_inputs import ItemInputs, load_item_inputs
from longplay.launch.settings.errors import ConfigError
from longplay.models.inputs.config import InputConfig
from longplay.models.inputs.spec import InputSpec
from longplay.models.inputs.stage import missing_inputs


@dataclass(frozen=True, eq=False)
class EventInputs:
    """The inputs of a run's encoder besides the items.

    Attributes:
        spec: the layers of the input stage.
        columns: the columns of the events that the streams deliver.
        items: columns of the items.
    """

    spec: InputSpec
    columns: EventColumns
    items: ItemInputs

    def of_batch(self, batch: Batch | EvalBatch, device: torch.device) -> dict[str, Tensor] | None:
        """Return the input tensors (B, L) of a batch; None for an encoder of items only."""
        return self.of_events(batch.item_ids, batch.times, batch.features, device)

    def of_items(self, item_ids: Tensor, device: torch.device) -> dict[str, Tensor] | None:
        """Return the input tensors of events of which only the items (...) are known."""
        return self.of_known(item_ids.cpu(), None, {}, device)

    def of_known(
        self, item_ids: Tensor, times: Tensor | None, features: Mapping[str, Tensor], device: torch.device
    ) -> dict[str, Tensor] | None:
        """Return the input tensors (...) as `of_events`; times and features that are absent are missing."""
        if not self.spec:
            return None
        known = self.items.of_events(self.spec, item_ids, times, features)
        found = missing_inputs(self.spec, tuple(item_ids.shape), item_ids.device) | known
        return {key: values.to(device) for key, values in found.items()}

    def of_events(
        self, item_ids: Tensor, times: Tensor | None, features: Mapping[str, Tensor], device: torch.device
    ) -> dict[str, Tensor] | None:
        """Return the input tensors (...) of events; None for an encoder of items only.

        Args:
            item_ids: (...) int64 on the CPU.
            times, features: (...) each; those of `columns`.
        """
        if not self.spec:
            return None
        named = {name: features[name] for name in self.columns.names}
        found = self.items.of_events(self.spec, item_ids, times, named)
        if device.type == "cuda":  # as the batch is, so that the copies do not wait for the device
            found = {key: values.pin_memory() for key, values in found.items()}
        return {key: values.to(device, non_blocking=True) for key, values in found.items()}


@functools.lru_cache(maxsize=2)
def load_inputs(config: InputConfig, dataset: Dataset) -> EventInputs:
    """Read the inputs that the settings name. The result is cached.

    Raises:
        DataError: the dataset has no such feature.
        ConfigError: there is no such item column, it has values of another kind, or the unit of the times is
            unknown.
    """
    try:
        features = tuple(dataset.manifest.feature(name) for name in config.features)
    except DataError as error:
        raise DataError(f"inputs.features: {error}; prepare it with --features") from None
    items = load_item_inputs(dataset, config.item_categories, config.item_vectors)
    spec = InputSpec(
        categorical=tuple((each.name, each.num_values) for each in features if each.num_values is not None),
        floats=tuple(
            (each.name, each.mean or 0.0, each.std or 0.0) for each in features if each.kind == "float"
        ),
        time_gap=config.time_gap,
        ticks_per_s=_ticks_per_s(dataset) if config.time_of_day else None,
        item_categories=tuple((name, int(codes.max())) for name, codes in items.categories.items()),
        vector_width=0 if items.vectors is None else items.vectors.shape[1],
        items_digest=items.digest(),
    )
    return EventInputs(spec, EventColumns(features=features, times=spec.uses_times), items)


def check_recorded(recorded: Mapping[str, Any], inputs: EventInputs, dataset: Dataset) -> None:
    """Check that a run's inputs are those with which it was started.

    Args:
        recorded: the inputs in the run's config.json.

    Raises:
        ConfigError: the item columns or the unit of the times have changed since then.
    """
    if recorded != as_json(inputs.spec):
        raise ConfigError(
            f"{dataset.path}: the run's inputs have changed in items.parquet or in the manifest since it was "
            "started; restore the dataset, or start another run"
        )


def as_json(spec: InputSpec) -> dict[str, Any]:
    """Return the spec as JSON values, as a run's config.json records it."""
    return json.loads(json.dumps(asdict(spec)))


def _ticks_per_s(dataset: Dataset) -> int:
    """Return the units of time in a second.

    Raises:
        ConfigError: the unit is unknown, or times are not measured in seconds.
    """
    unit_s, unit = dataset.manifest.time_unit_s, dataset.manifest.time_unit
    if unit_s is None:
        why = "its times are row numbers" if unit == "index" else "the unit of its times is unknown"
        raise ConfigError(
            f"inputs.time_of_day=true: {dataset.path} has no time of day, because {why}; prepare the dataset "
            "again with --time-unit, or use --inputs.time_gap, which works in any unit"
        )
    return round(1 / unit_s)
