"""Item categories and item vectors, in host memory, and the input tensors of events."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from longplay.models.inputs.spec import TIMES, VECTORS, InputSpec, category_key, feature_key


@dataclass(frozen=True, eq=False)
class ItemInputs:
    """Columns of the items, by item id; row 0 is padding.

    Attributes:
        categories: column -> (items + 1,) int32 codes, 0 = missing.
        vectors: (items + 1, V) float32, scaled to a mean squared length of 1, 0 = missing; None without.
    """

    categories: dict[str, Tensor] = field(default_factory=dict)
    vectors: Tensor | None = None

    def gather(self, item_ids: Tensor) -> dict[str, Tensor]:
        """Return the columns of item ids (...) on the CPU."""
        found = {category_key(name): codes[item_ids] for name, codes in self.categories.items()}
        if self.vectors is not None:
            found[VECTORS] = self.vectors[item_ids]
        return found

    def digest(self) -> str:
        """Return the SHA-256 of the columns; "" without any."""
        tensors = [*self.categories.values(), *([] if self.vectors is None else [self.vectors])]
        sha256 = hashlib.sha256()
        for tensor in tensors:
            sha256.update(tensor.numpy().data)
        return sha256.hexdigest() if tensors else ""

    def of_events(
        self, spec: InputSpec, item_ids: Tensor, times: Tensor | None, features: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the tensors (...) of an input stage on the CPU.

        Args:
            spec: the layers of the stage.
            item_ids: (...) int64.
            times: (...) int64; not used unless the stage reads times.
            features: name -> (...) int32 codes or float32 values.
        """
        found = {feature_key(name): values for name, values in features.items()}
        if times is not None and spec.uses_times:
            found[TIMES] = times
        return found | self.gather(item_ids)
