"""The state of an exported model after one user's history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from longplay.models.encoder import EncoderState

if TYPE_CHECKING:
    from longplay.serving.exported_model import ExportedModel


@dataclass(repr=False)
class Session:
    """The encoder's state after one user's history; created by `ExportedModel.session`, advanced by `step`.

    Attributes:
        model: the model that created it.
        state: the encoder's recurrent state.
        hidden: (1, D), the encoder's output after the last event; None before the first event.
        seen: item ids of the history.
    """

    model: ExportedModel
    state: EncoderState
    hidden: Tensor | None
    seen: set[int]

    def __repr__(self) -> str:
        return f"<Session of {self.model!r}, {len(self.seen):,} different items seen>"

    def recommend(self, *, top: int = 20, exclude_seen: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return the best next items: original ids (n,) and scores (n,) float64, best first.

        Raises:
            ValueError: the session has no event yet, or `top` is below 1.
        """
        if self.hidden is None:
            raise ValueError("the session has no event yet; add one with model.step(session, item)")
        seen = [sorted(self.seen)] if exclude_seen else [[]]
        item_ids, scores = self.model.top_items(self.hidden, seen, top)
        found = scores[0] > -np.inf
        return item_ids[0][found], scores[0][found]

    def copy(self) -> Session:
        """Return an independent session in the same state."""
        return Session(self.model, self.state, self.hidden, set(self.seen))
