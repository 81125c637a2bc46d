"""Generate the rows of LFM-1b and MovieLens-1M.

`lfm1b_files` and `ml1m_files` return the files of a dataset as `RawFile`s, whose blocks are generated
independently.

Source: the LFM-1b and MovieLens-1M datasets as published.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from longplay.data_shards.generators.distributions import (
    Repeats,
    RowOrder,
    ScatteredIds,
    ZipfLaw,
    copy_previous_rows,
    draw_lengths,
    hash_uniform,
    keyed_generator,
)

BLOCK_ROWS = 65_536
ML1M_MIN_LENGTH = 20

_LFM1B_MEAN, _LFM1B_CAP = 9_044, 20_000
_LFM1B_USER_SPAN = 50_000_000
_LFM1B_TRACKS_PER_ALBUM, _LFM1B_TRACKS_PER_ARTIST = 2, 10
_LFM1B_FIRST_S, _LFM1B_LAST_S = 1_108_339_200, 1_411_948_800  # 2005-02-14 and 2014-09-29
_SESSION_EVENTS_LOG2 = 4
SESSION_EVENTS = 1 << _SESSION_EVENTS_LOG2

_ML1M_BLOCK_USERS, _ML1M_BLOCK_KEYS = 1_024, 1 << 22
_ML1M_FIRST_S, _ML1M_LAST_S = 956_703_932, 1_046_454_590
_ML1M_RATINGS = (0.056, 0.107, 0.261, 0.349, 0.227)


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A file to write in blocks.

    Attributes:
        path: path relative to the output folder.
        header: the header line with its line break; empty if the file has none.
        bounds: (blocks + 1,) int64 first row of each block without the header; the last entry is the
            number of rows.
        text: (block, generator) -> the text of the block's rows.
    """

    path: str
    header: bytes
    bounds: np.ndarray
    text: Callable[[int, np.random.Generator], bytes]

    @property
    def num_rows(self) -> int:
        return int(self.bounds[-1])

    @property
    def num_blocks(self) -> int:
        return len(self.bounds) - 1


def row_blocks(start: int, stop: int) -> np.ndarray:
    """Return the bounds of the blocks of rows [start, stop)."""
    return np.unique(np.append(np.arange(start, stop, BLOCK_ROWS), [start, stop]))


def rows_text(columns: dict[str, np.ndarray | pl.Series], separator: str) -> bytes:
    """Format rows as delimited text. A text column is written unchanged and may hold several fields."""
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_csv(buffer, include_header=False, separator=separator, quote_style="never")
    return buffer.getvalue()


def session_starts(user: np.ndarray, index: np.ndarray, salt: int) -> np.ndarray:
    """Return (events,) start of each event's session as a fraction of the user's time span, in [0, 1).

    The sessions of a user start at random times, so no piece of a history is in time order.
    """
    return hash_uniform(user, index >> _SESSION_EVENTS_LOG2, salt)


def lfm1b_files(*, events: int, users: int, items: int, seed: int) -> list[RawFile]:
    """Return `LFM-1b_LEs.txt`: tab-separated user, artist, album, track and Unix seconds; no header."""
    rng = keyed_generator(seed, 0)
    max_length = max(-(-events // users), round(events / users * _LFM1B_CAP / _LFM1B_MEAN))
    lengths = draw_lengths(events, users, sigma=0.8, min_length=1, max_length=max_length, rng=rng)
    order = RowOrder.draw(lengths, max_pieces=8, rng=rng)
    salts = rng.integers(0, 2**63, 2)
    law = ZipfLaw(num_items=items, shift=min(200.0, items / 10))
    repeats = Repeats(share=0.55, pool=1 + lengths // 20, salt=int(salts[0]))
    user_ids = ScatteredIds(first=1, span=max(_LFM1B_USER_SPAN, 2 * users))(np.arange(users))
    track_ids, album_ids, artist_ids = (
        ScatteredIds(first=1, span=items // per + items // (50 * per) + 1)
        for per in (1, _LFM1B_TRACKS_PER_ALBUM, _LFM1B_TRACKS_PER_ARTIST)
    )
    whole = _LFM1B_LAST_S - _LFM1B_FIRST_S - 86_400
    spans = (whole * rng.uniform(0.02, 1.0, users)).astype(np.int64)
    starts = _LFM1B_FIRST_S + whole - spans
    bounds = row_blocks(0, events)

    def text(block: int, rng: np.random.Generator) -> bytes:
        user, index = order.rows(int(bounds[block]), int(bounds[block + 1]))
        track = law.ranks(repeats.uniform(user, rng))
        time = (session_starts(user, index, int(salts[1])) * spans[user]).astype(np.int64)
        time += starts[user]
        time += (index & (SESSION_EVENTS - 1)) * 230
        time += rng.integers(0, 180, len(user), dtype=np.uint8)
        copy_previous_rows([time], user, 0.03, rng)
        columns: dict[str, np.ndarray | pl.Series] = {
            "user": user_ids[user],
            "artist": artist_ids(track // _LFM1B_TRACKS_PER_ARTIST),
            "album": album_ids(track // _LFM1B_TRACKS_PER_ALBUM),
            "track": track_ids(track),
            "time": time,
        }
        return rows_text(columns, "\t")

    return [RawFile(path="LFM-1b_LEs.txt", header=b"", bounds=bounds, text=text)]


def ml1m_files(*, events: int, users: int, items: int, seed: int) -> list[RawFile]:
    """Return `ratings.dat`: UserID::MovieID::Rating::Timestamp, grouped by user, each movie once per user."""
    rng = keyed_generator(seed, 0)
    max_length = ml1m_max_length(events, users, items)
    lengths = draw_lengths(
        events, users, sigma=1.0, min_length=ML1M_MIN_LENGTH, max_length=max_length, rng=rng
    )
    weights = rng.permutation(1.0 / (np.arange(items) + 100.0)).astype(np.float32)
    starts = _ML1M_FIRST_S + (rng.beta(1.0, 6.0, users) * 80_000_000).astype(np.int64)
    step = max(1, min(_ML1M_BLOCK_USERS, _ML1M_BLOCK_KEYS // items))
    blocks = np.append(np.arange(0, users, step), users)
    bounds = np.append(0, np.cumsum(lengths))[blocks]

    def text(block: int, rng: np.random.Generator) -> bytes:
        members = np.arange(blocks[block], blocks[block + 1])
        length = lengths[members]
        keys = rng.standard_exponential((len(members), items), dtype=np.float32)
        keys /= weights  # exponential race: the `length` smallest keys are a sample without replacement
        movie = np.concatenate([np.argpartition(row, n - 1)[:n] for row, n in zip(keys, length, strict=True)])
        user = np.repeat(members, length)
        n = len(user)
        time = starts[user] + (rng.random(n) * lengths[user] / 2).astype(np.int64) * 20
        late = np.flatnonzero(rng.random(n) < 0.08)
        time[late] += rng.integers(0, 40_000_000, len(late))
        columns: dict[str, np.ndarray | pl.Series] = {
            "user": user + 1,
            "movie": movie + 1,
            "rating": 1 + rng.choice(5, n, p=_ML1M_RATINGS),
            "time": np.minimum(time, _ML1M_LAST_S),
        }
        return rows_text(columns, ":").replace(b":", b"::")

    return [RawFile(path="ratings.dat", header=b"", bounds=bounds, text=text)]


def ml1m_max_length(events: int, users: int, items: int) -> int:
    """Return the maximum history length: 58.5 % of the movies, as in the original, or the mean if larger."""
    return min(items, max(int(0.585 * items), -(-events // users), ML1M_MIN_LENGTH))
