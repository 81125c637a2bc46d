"""Generate the logs of KuaiRand-27K: the standard log in four parts and the random log.

A file has a header line and 19 columns. Users and videos are numbered from 0. The log of a period is divided
into two halves, so a user has rows in several parts. Columns that are drawn jointly are written as one text.

Source: the KuaiRand-27K dataset as published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from longplay.data_shards.generators.distributions import (
    Repeats,
    RowOrder,
    ScatteredIds,
    ZipfLaw,
    copy_previous_rows,
    draw_lengths,
    keyed_generator,
)
from longplay.data_shards.generators.layouts import (
    SESSION_EVENTS,
    RawFile,
    row_blocks,
    rows_text,
    session_starts,
)

KUAIRAND_COLUMNS = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)

_KUAIRAND_CAP = 2.5  # longest history, in multiples of the mean
_KUAIRAND_FIRST_MS = 1_649_347_200_000  # 2022-04-08 00:00 in China
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_KUAIRAND_RANDOM_SHARE = 1_186_059 / 322_278_385
_KUAIRAND_RANDOM_VIDEOS = 7_583
_TABLE = 65_536


def kuairand_files(*, events: int, users: int, items: int, seed: int) -> list[RawFile]:
    """Return the four parts of the standard log, `events` rows in total, and the log of random exposure."""
    rng = keyed_generator(seed, 0)
    max_length = max(-(-events // users), round(events / users * _KUAIRAND_CAP))
    lengths = draw_lengths(events, users, sigma=0.8, min_length=1, max_length=max_length, rng=rng)
    early = rng.binomial(lengths, 0.45)
    num_random = round(events * _KUAIRAND_RANDOM_SHARE)
    random_lengths = rng.multinomial(num_random, np.full(users, 1 / users))
    tables = _KuairandTables.draw(rng)
    salts = [int(salt) for salt in rng.integers(0, 2**63, 4)]
    repeats = Repeats(share=0.05, pool=1 + lengths // 100, salt=salts[0])
    law = ZipfLaw(num_items=items, shift=min(1000.0, items / 10))
    videos = ScatteredIds(first=0, span=items)

    def standard(user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return law.ranks(repeats.uniform(user, rng))

    def exposed(user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, min(items, _KUAIRAND_RANDOM_VIDEOS), len(user))

    files = []
    for name, period_lengths, days, is_rand, salt in (
        ("log_standard_4_08_to_4_21_27k_part{}.csv", early, range(14), False, salts[1]),
        ("log_standard_4_22_to_5_08_27k_part{}.csv", lengths - early, range(14, 31), False, salts[2]),
        ("log_random_4_22_to_5_08_27k.csv", random_lengths, range(14, 31), True, salts[3]),
    ):
        log = _KuairandLog(
            order=RowOrder.draw(period_lengths, max_pieces=3, rng=rng),
            days=days,
            is_rand=is_rand,
            ranks=exposed if is_rand else standard,
            videos=videos,
            tables=tables,
            salt=salt,
        )
        rows = log.order.num_rows
        cuts = [0, rows] if is_rand else [0, rows // 2, rows]
        for part, (start, stop) in enumerate(pairwise(cuts), 1):
            files.append(
                log.file(
                    f"data/{name.format(part)}", start, stop, holds_video_0=not any(f.num_rows for f in files)
                )
            )
    return files


@dataclass(frozen=True, kw_only=True)
class _KuairandTables:
    """Lookup tables of the columns that are drawn jointly. A table has 65,536 entries unless noted.

    Attributes:
        flags: uint32 bits of is_click .. long_view, 0..127.
        watched: (128,) float32 maximum share of a video that is played, for each value of `flags`.
        tails: uint32 index into `_TAILS` of is_profile_enter, is_rand = 0 and tab.
        durations: int64 duration of a video in milliseconds.
    """

    flags: np.ndarray
    watched: np.ndarray
    tails: np.ndarray
    durations: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _KuairandTables:
        click = rng.random(_TABLE) < 0.37
        flags = click * 64
        for bit, share in ((32, 0.04), (16, 0.002), (8, 0.006), (4, 0.002), (2, 0.0006)):
            flags += bit * (click & (rng.random(_TABLE) < share))
        flags += rng.random(_TABLE) < np.where(click, 0.65, 0.02)
        code = np.arange(128)
        watched = np.where(code & 1, 1.6, np.where(code & 64, 0.6, 0.15)).astype(np.float32)
        tab_shares = np.array([0.17, 0.72, 0.03, 0.002, 0.04, *[0.0038] * 10])
        tabs = rng.choice(15, _TABLE, p=tab_shares / tab_shares.sum())
        enters = rng.random(_TABLE) < 0.01
        durations = np.clip(rng.lognormal(np.log(20_000), 0.8, _TABLE), 3_000, 600_000)
        return cls(
            flags=flags.astype(np.uint32),
            watched=watched,
            tails=(enters * 30 + tabs).astype(np.uint32),
            durations=durations.astype(np.int64),
        )


_FLAGS = pl.Series([",".join(f"{code:07b}") for code in range(128)])
_TAILS = pl.Series(
    [f"{enter},{is_rand},{tab}" for enter in (0, 1) for is_rand in (0, 1) for tab in range(15)]
)
_HOURS = pl.Series(
    [
        f"{20220400 + day if day <= 30 else 20220500 + day - 30},{hour * 100}"
        for day in range(8, 39)
        for hour in range(24)
    ]
)


@dataclass(frozen=True, kw_only=True)
class _KuairandLog:
    """A log of one period.

    Attributes:
        order: the order of its rows.
        days: days of the period, counted from the first day of the dataset.
        is_rand: the log is the one of random exposure.
        ranks: (users, generator) -> popularity ranks of the viewed videos.
        videos: popularity rank -> video id.
        tables: values of the other columns.
        salt: salt of the hash that gives the start of a session.
    """

    order: RowOrder
    days: range
    is_rand: bool
    ranks: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    videos: ScatteredIds
    tables: _KuairandTables
    salt: int

    def file(self, path: str, start: int, stop: int, *, holds_video_0: bool) -> RawFile:
        """Return rows [start, stop) of this log as a file."""
        bounds = row_blocks(start, stop)

        def text(block: int, rng: np.random.Generator) -> bytes:
            first, end = int(bounds[block]), int(bounds[block + 1])
            return self._rows(first, end, rng, holds_video_0=holds_video_0 and block == 0)

        return RawFile(path=path, header=f"{KUAIRAND_COLUMNS}\n".encode(), bounds=bounds - start, text=text)

    def _rows(self, start: int, stop: int, rng: np.random.Generator, *, holds_video_0: bool) -> bytes:
        user, index = self.order.rows(start, stop)
        n = len(user)
        ranks = self.ranks(user, rng)
        if holds_video_0:
            ranks[:1] = 0
        video = self.videos(ranks)
        span = len(self.days) * _DAY_MS - _HOUR_MS
        time = (session_starts(user, index, self.salt) * span).astype(np.int64)
        time += _KUAIRAND_FIRST_MS + self.days.start * _DAY_MS
        time += (index & (SESSION_EVENTS - 1)) * 90_000
        time += rng.integers(0, 60_000, n, dtype=np.uint16)
        flags = self.tables.flags[rng.integers(0, _TABLE, n, dtype=np.uint16)]
        tail = self.tables.tails[rng.integers(0, _TABLE, n, dtype=np.uint16)] + np.uint32(15 * self.is_rand)
        duration = self.tables.durations[video & (_TABLE - 1)]
        watched = rng.random(n, dtype=np.float32)
        watched -= np.float32(0.1)
        play = (np.maximum(watched, 0) * self.tables.watched[flags] * duration).astype(np.int64)
        stays = [np.zeros(n, np.int64), np.zeros(n, np.int64)]
        for stay, share in zip(stays, (0.01, 0.08), strict=True):
            at = rng.integers(0, n, int(n * share))
            stay[at] = rng.integers(500, 60_000, len(at))
        copy_previous_rows([time], user, 0.06, rng)
        copy_previous_rows([video, time, flags, play, duration, *stays, tail], user, 0.002, rng)
        hour = ((time - _KUAIRAND_FIRST_MS) // _HOUR_MS).astype(np.uint32)
        columns: dict[str, np.ndarray | pl.Series] = {
            "user": user,
            "video": video,
            "hour": _HOURS.gather(hour),
            "time": time,
            "flags": _FLAGS.gather(flags),
            "play": play,
            "duration": duration,
            "profile_stay": stays[0],
            "comment_stay": stays[1],
            "tail": _TAILS.gather(tail),
        }
        return rows_text(columns, ",")
