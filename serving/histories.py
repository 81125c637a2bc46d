"""Turn the histories that callers give to an exported model into item ids and inputs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from longplay.data_shards.storage.vocabulary import ItemVocabulary
from longplay.serving.exported_inputs import ExportedInputs

History = Sequence[int] | Sequence[str] | np.ndarray
Times = Sequence[int] | np.ndarray
Features = Mapping[str, Sequence[Any] | np.ndarray]
GIVE_A_HISTORY = "give original item ids, oldest first"


def warn_caller(message: str) -> None:
    """Warn at the line of the user's code that called this package, also through PyTorch's wrappers."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(("longplay.", "torch.")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one user, oldest first.

    Attributes:
        items: (n,) int64 item ids.
        inputs: tensors (n,) of the input stage on the CPU; None if the encoder reads items only.
    """

    items: np.ndarray
    inputs: dict[str, Tensor] | None

    def __len__(self) -> int:
        return len(self.items)

    def latest(self, count: int) -> Events:
        """Return the latest `count` events, or all if they are fewer."""
        inputs = self.inputs and {key: values[-count:] for key, values in self.inputs.items()}
        return Events(self.items[-count:], inputs)


@dataclass(frozen=True)
class HistoryReader:
    """Reads histories of original ids, with the times and features of their events."""

    items: ItemVocabulary
    inputs: ExportedInputs

    def typed(self, ids: Any, name: str) -> pl.Series:
        """Return original ids as a series; `name` is used in messages.

        Raises:
            ValueError: they are not a list of ids of the dataset's type.
        """
        try:
            return self.items.original_ids.typed(ids)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def histories(self, history: Any, times: Any, features: Any) -> tuple[list[Events | None], bool]:
        """Return the events of each history, and whether `history` is a single one.

        Among several, None stands for an empty one. Arguments as in `ExportedModel.recommend`.

        Raises:
            ValueError: see there.
        """
        try:
            first = history[0] if len(history) else None
        except (TypeError, LookupError):
            raise ValueError(
                f"history: {str(history)[:40]} is not a list; {GIVE_A_HISTORY}, such as "
                f"[{self.items.original_ids[0]!r}]"
            ) from None
        if first is None:
            raise ValueError(f"history: is empty; {GIVE_A_HISTORY}")
        if np.ndim(first) == 0:
            return [self.events(self.typed(history, "history"), times, features, "history")], True
        nothing = [None] * len(history)
        for name, given in (("times", times), ("features", features)):
            if given is None:
                continue
            if isinstance(given, Mapping) or not isinstance(given, Sized) or len(given) != len(history):
                raise ValueError(
                    f"{name}: give a list with an entry for each of the {len(history)} histories"
                )
        found = []
        each_times, each_features = (nothing if given is None else given for given in (times, features))
        several = zip(history, each_times, each_features, strict=True)
        for number, (one, its_times, its_features) in enumerate(several):
            name = f"history {number}"
            ids = self.typed(one, name)
            found.append(self.events(ids, its_times, its_features, name) if len(ids) else None)
        return found, False

    def events(self, originals: pl.Series, times: Any, features: Any, name: str) -> Events:
        """Return the events of a history of original ids, without unknown items.

        Raises:
            ValueError: no item is known, or times or features do not fit.
        """
        ids = self.items.item_ids(originals)
        unknown = originals.filter(ids == 0)
        if len(unknown) == len(originals):
            raise ValueError(f"{name}: has no item of this model; {GIVE_A_HISTORY}")
        parsed = self.inputs.parse(len(ids), times, features, name)
        if len(unknown):
            shown = ", ".join(map(repr, unknown[:5]))
            warn_caller(
                f"{name}: {len(unknown)} of {len(ids)} items are not in this model ({shown}); ignored"
            )
        if times is None and self.inputs.spec.uses_times:
            warn_caller(f"{name}: has no times, which this model reads; they count as missing")
        kept = ids > 0
        of_kept = {key: values[kept] for key, values in parsed.items()}
        return Events(ids[kept], self.inputs.tensors(ids[kept], of_kept))
