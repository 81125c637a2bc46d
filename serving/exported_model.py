"""An exported model on one machine: recommendations after histories, and after each new event."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longplay.data_shards.storage.vocabulary import ItemVocabulary
from longplay.models.encoder import EncoderState, SequenceEncoder
from longplay.models.encoder_checks import check_packages
from longplay.models.inputs.spec import NO_TIME, TIMES
from longplay.models.inputs.stage import Inputs, missing_inputs
from longplay.serving.export_files import read_encoder, read_items
from longplay.serving.export_format import (
    ENCODER_NAME,
    ITEMS_NAME,
    TABLE_NAME,
    ExportConfig,
    check_sha256,
    read_export_config,
)
from longplay.serving.exported_inputs import ExportedInputs
from longplay.serving.histories import (
    GIVE_A_HISTORY,
    Events,
    Features,
    History,
    HistoryReader,
    Times,
    warn_caller,
)
from longplay.serving.item_rows import ItemRows, parse_device

_SLOTS_AT_ONCE = 1 << 15  # slots of histories that are encoded together


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
        item_ids, scores = self.model._top(self.hidden, seen, top)
        return _without_padding(item_ids[0], scores[0])

    def copy(self) -> Session:
        """Return an independent session in the same state."""
        return Session(self.model, self.state, self.hidden, set(self.seen))


class ExportedModel:
    """An encoder and its memory-mapped item table, as returned by `longplay.load`.

    Attributes:
        config: the content of the export's config.json.
        encoder: in eval mode, on `device`.
        rows: the item table.
        items: the items' original ids and counts.
        inputs: the times, features and item columns that the encoder reads.
        device: device of the encoder and of scoring.
    """

    def __init__(
        self,
        config: ExportConfig,
        encoder: SequenceEncoder,
        rows: ItemRows,
        items: ItemVocabulary,
        inputs: ExportedInputs,
    ) -> None:
        self.config, self.encoder, self.rows, self.items, self.inputs = config, encoder, rows, items, inputs
        self.device = rows.device
        self._reader = HistoryReader(items, inputs)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"<ExportedModel {config.encoder.model} of {config.checkpoint.get('name')}, "
            f"{config.num_items:,} items x {config.encoder.d_model}, "
            f"context_length {config.encoder.context_length}, {self.device}>"
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, verify: bool = False, device: str = "cpu"
    ) -> ExportedModel:
        """Open an export; see `longplay.load`."""
        folder = Path(path)
        config = read_export_config(folder)
        for name in config.files:
            if verify or name != TABLE_NAME:  # the others are read in full anyway
                check_sha256(folder, config, name)
        where = parse_device(device)
        width, num_items = config.encoder.d_model, config.num_items
        rows = ItemRows(folder / TABLE_NAME, num_items=num_items, width=width, device=where)
        encoder = read_encoder(folder / ENCODER_NAME, config)
        check_packages(encoder, where)
        items = read_items(folder / ITEMS_NAME, num_items)
        inputs = ExportedInputs.read(folder, config.inputs, config.time_unit, num_items)
        return cls(config, encoder.to(where), rows, items, inputs)

    # ------------------------------------------------------------------ whole histories

    @torch.inference_mode()
    def recommend(
        self,
        history: History | Sequence[History],
        *,
        times: Times | Sequence[Times] | None = None,
        features: Features | Sequence[Features] | None = None,
        top: int = 20,
        exclude_seen: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best next items after one history, or after each of several.

        Only the latest `context_length` events are encoded, but every event counts as seen. Items that are
        not in the model are ignored, with a warning. `longplay recommend` returns the same items.

        Args:
            history: original item ids, oldest first; or a list of such histories. Ids are integers or
                strings, as in the dataset: 5 is not "5".
            times: for a model that was trained with times, those of the events: integers in the unit of the
                dataset, or datetime64 in UTC. Several histories: a list of them. None = unknown.
            features: for a model that was trained with event features, name -> original values, or numbers;
                None is a missing value. Several histories: a list of them. None = all are missing.
            top: number of items to return.
            exclude_seen: exclude the items of the history.
        Returns:
            Original ids (int64, or an object array of `str`) and scores (float64), best first, ties by item
            id. One history: (n,) each, with n below `top` if fewer items remain. B histories:
            (B, min(top, num_items)) each, padded with id -1, or None among strings, and score -inf; the row
            of an empty history is all padding.
        Raises:
            ValueError: the only history is empty, a history has events but no item of the model or is not a
                list of ids of the dataset's type, times or features do not fit the history or the model, or
                `top` is below 1.
        """
        histories, single = self._reader.histories(history, times, features)
        filled = [number for number, one in enumerate(histories) if one is not None]
        known = [one for one in histories if one is not None]
        seen = [np.unique(one.items).tolist() if exclude_seen else [] for one in known]
        item_ids, scores = self._top(self._encode(known), seen, top)
        if single:
            return _without_padding(item_ids[0], scores[0])
        shape = len(histories), item_ids.shape[1]
        all_ids = np.full(shape, self.items.original_ids.padding, item_ids.dtype)
        all_scores = np.full(shape, -np.inf)
        all_ids[filled], all_scores[filled] = item_ids, scores
        return all_ids, all_scores

    @torch.inference_mode()
    def scores(
        self,
        history: History | Sequence[History],
        item_ids: History,
        *,
        times: Times | Sequence[Times] | None = None,
        features: Features | Sequence[Features] | None = None,
    ) -> np.ndarray:
        """Return float64 scores of given items: (n,) after one history, (B, n) after B histories.

        Args:
            history, times, features: as for `recommend`.
            item_ids: (n,) original ids.
        Raises:
            ValueError: as for `recommend`, or one of `item_ids` is not an item of the model.
        """
        originals = self._reader.typed(item_ids, "item_ids")
        ids = self.items.item_ids(originals)
        if (ids == 0).any():
            raise ValueError(f"item_ids: {originals[int(np.argmin(ids))]!r} is not an item of this model")
        histories, single = self._reader.histories(history, times, features)
        known = [one for one in histories if one is not None]
        if len(known) < len(histories):
            raise ValueError(f"history {histories.index(None)}: is empty; {GIVE_A_HISTORY}")
        scores = self.rows.score(self._encode(known), torch.from_numpy(ids)).cpu().numpy()
        return scores[0] if single else scores

    def titles(self, item_ids: Any) -> list[str | None]:
        """Return the titles of items, None where an item has none. The first call reads all titles.

        Args:
            item_ids: (n,) original ids, such as `recommend` returns; the titles of padding are None.
        Raises:
            ValueError: the export has no titles, or `item_ids` is not a list of ids of the dataset's type.
        """
        values = list(item_ids)
        known = [value for value in values if value is not None]
        titles = self.items.columns.titles(self.items.item_ids(self._reader.typed(known, "item_ids")))
        if titles is None:
            raise ValueError("the export has no titles, because the dataset's items have no column `title`")
        found = iter(titles)
        return [None if value is None else next(found) for value in values]

    # ------------------------------------------------------------------ one event at a time

    @torch.inference_mode()
    def session(
        self, history: History = (), *, times: Times | None = None, features: Features | None = None
    ) -> Session:
        """Return a session after `history`; `step` then adds one event in constant time.

        Args:
            history: original item ids, oldest first; only the latest `context_length` are encoded. May be
                empty.
            times, features: as for `recommend`.
        Raises:
            TypeError: the encoder is not recurrent (sasrec, moematrrec); use `recommend`.
            ValueError: as for `recommend`.
        """
        state = self.encoder.init_state(1)
        originals = self._reader.typed(history, "history")
        if len(originals) == 0:
            return Session(self, state, None, set())
        known = self._reader.events(originals, times, features, "history")
        recent = known.latest(self.config.encoder.context_length)
        rows = self.rows.lookup(torch.from_numpy(recent.items).unsqueeze(0))
        inputs = recent.inputs and {key: values.unsqueeze(0) for key, values in recent.inputs.items()}
        lengths = torch.tensor([len(recent)], device=self.device)
        hidden, state = self.encoder.prefill(rows, lengths, self._on_device(inputs))
        return Session(self, state, hidden.float(), set(known.items.tolist()))

    @torch.inference_mode()
    def step(
        self,
        session: Session,
        item_id: int | str,
        *,
        time: int | np.datetime64 | None = None,
        features: Mapping[str, Any] | None = None,
    ) -> Session:
        """Add one event to a session in place, and return the session.

        Unlike in `recommend`, events older than the latest `context_length` still count. An item that is not
        in the model is ignored, with a warning.

        Args:
            item_id: original item id.
            time: the time of the event, as for `recommend`.
            features: name -> value of the event.
        Raises:
            ValueError: as for `recommend`, or the time is before that of the event before.
        """
        original = self._reader.typed([item_id], "item_id")
        if not self.items.item_ids(original).any():
            warn_caller(f"item {original[0]!r} is not an item of this model; it is ignored")
            return session
        times = None if time is None else np.array([time])
        if isinstance(features, Mapping):
            features = {name: [value] for name, value in features.items()}
        event = self._reader.events(original, times, features, "the event")
        latest = session.state.time
        if latest is not None and event.inputs is not None:
            when = int(event.inputs[TIMES])
            if NO_TIME < when < int(latest):
                raise ValueError(f"time: {when} is before the time of the event before, {int(latest)}")
        row = self.rows.lookup(torch.from_numpy(event.items))
        hidden, session.state = self.encoder.step(row, session.state, self._on_device(event.inputs))
        session.hidden = hidden.float()
        session.seen.update(event.items.tolist())
        return session

    # ------------------------------------------------------------------ helpers

    def _on_device(self, inputs: Inputs | None) -> Inputs | None:
        return inputs and {key: values.to(self.device) for key, values in inputs.items()}

    def _encode(self, histories: list[Events]) -> Tensor:
        """Encode histories to (B, D) fp32; histories of similar length run together."""
        recent = [history.latest(self.config.encoder.context_length) for history in histories]
        lengths = np.array([len(history) for history in recent])
        hidden = torch.empty(len(recent), self.config.encoder.d_model, device=self.device)
        waiting = np.argsort(-lengths, kind="stable")
        while len(waiting):
            longest = int(lengths[waiting[0]])
            batch, waiting = np.split(waiting, [max(1, _SLOTS_AT_ONCE // longest)])
            items = torch.zeros(len(batch), longest, dtype=torch.int64)
            inputs = missing_inputs(self.inputs.spec, (len(batch), longest), items.device)
            for row, number in enumerate(batch):
                items[row, : lengths[number]] = torch.from_numpy(recent[number].items)
                for key, values in (recent[number].inputs or {}).items():
                    inputs[key][row, : lengths[number]] = values
            seq_idx = (items == 0).int().to(self.device)  # padding after a history is another segment
            last = torch.from_numpy(np.arange(len(batch)) * longest + lengths[batch] - 1).to(self.device)
            encoded = self.encoder(
                self.rows.lookup(items), seq_idx, at=last, inputs=self._on_device(inputs or None)
            )
            hidden[torch.from_numpy(batch).to(self.device)] = encoded.float()
        return hidden

    @torch.inference_mode()
    def _top(self, hidden: Tensor, seen: Sequence[Sequence[int]], top: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best items and their scores, (B, min(top, num_items)) each, padded as in `recommend`.

        Args:
            hidden: (B, D) output of the encoder.
            seen: item ids to exclude, for each query.
            top: at least 1.
        Raises:
            ValueError: `top` is below 1.
        """
        if top < 1:
            raise ValueError(f"top={top}: must be at least 1")
        items, scores = self.rows.top(hidden, top, seen)
        originals = self.items.originals(np.maximum(items, 1).ravel()).reshape(items.shape)
        return np.where(items > 0, originals, self.items.original_ids.padding), scores


def _without_padding(item_ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = scores > -np.inf
    return item_ids[found], scores[found]
