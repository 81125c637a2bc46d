"""Generated raw files have the layout and distributions of the originals; no partial file remains."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from longplay.data_shards.errors import DataError
from longplay.data_shards.generators import layouts as raw_layouts
from longplay.data_shards.generators import raw_files as raw_synthetic
from longplay.data_shards.generators.distributions import (
    RowOrder,
    ScatteredIds,
    ZipfLaw,
    copy_previous_rows,
    draw_lengths,
    hash_uniform,
)
from longplay.data_shards.generators.kuairand import KUAIRAND_COLUMNS
from longplay.data_shards.generators.raw_files import RawSynthetic, write_raw

LFM1B = ["user", "artist", "album", "track", "time"]
KUAIRAND_FILES = [
    "log_standard_4_08_to_4_21_27k_part1.csv",
    "log_standard_4_08_to_4_21_27k_part2.csv",
    "log_standard_4_22_to_5_08_27k_part1.csv",
    "log_standard_4_22_to_5_08_27k_part2.csv",
    "log_random_4_22_to_5_08_27k.csv",
]
DAYS = [*range(20220408, 20220431), *range(20220501, 20220509)]


@pytest.fixture(scope="module")
def lfm1b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = write_raw(RawSynthetic(format="lfm1b", events=300_000), tmp_path_factory.mktemp("lfm1b"))
    return path


@pytest.fixture(scope="module")
def kuairand(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_raw(RawSynthetic(format="kuairand", events=200_003), tmp_path_factory.mktemp("kuairand"))


@pytest.fixture(scope="module")
def ml1m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = write_raw(RawSynthetic(format="ml1m", events=100_001), tmp_path_factory.mktemp("ml1m"))
    return path


def read_lfm1b(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, has_header=False, separator="\t", new_columns=LFM1B)


def read_ml1m(path: Path) -> pl.DataFrame:
    rows = np.array(path.read_text().replace("::", " ").split(), np.int64).reshape(-1, 4)
    return pl.DataFrame(rows, schema=["user", "movie", "rating", "time"])


def share_of_ties(frame: pl.DataFrame, time: str, user: str) -> float:
    """Return the share of rows that repeat a time of the same user."""
    return 1 - frame.n_unique([user, time]) / frame.height


def test_lfm1b_rows_are_five_tab_separated_integers(lfm1b: Path) -> None:
    text = lfm1b.read_bytes()
    assert lfm1b.name == "LFM-1b_LEs.txt"
    assert text.count(b"\n") == 300_000
    assert re.fullmatch(rb"(?:[1-9]\d*\t[1-9]\d*\t[1-9]\d*\t[1-9]\d*\t1\d{9}\n)+", text)


def test_lfm1b_has_the_distributions_of_the_original(lfm1b: Path) -> None:
    frame = read_lfm1b(lfm1b)
    lengths = frame["user"].value_counts()["count"]
    assert len(lengths) == round(300_000 / 9_044)
    assert lengths.max() == round(300_000 / 33 * 20_000 / 9_044)
    assert 0.7 < lengths.median() / lengths.mean() < 0.95  # type: ignore[operator]
    assert frame["user"].max() > 10_000_000  # type: ignore[operator]
    assert 30_000_000 < frame["track"].max() < 32_300_000  # type: ignore[operator]
    assert 1_104_537_600 < frame["time"].min() < frame["time"].max() < 1_420_070_400  # type: ignore[operator]
    distinct = frame.n_unique(["user", "track"])
    assert 0.4 < 1 - distinct / frame.height < 0.6
    assert frame["track"].n_unique() > 100_000
    assert 0.02 < share_of_ties(frame, "time", "user") < 0.1


def test_lfm1b_is_unsorted(lfm1b: Path) -> None:
    frame = read_lfm1b(lfm1b)
    runs = frame["user"].rle().struct.unnest()
    pieces = runs["value"].value_counts()["count"]
    assert pieces.mean() > 3  # type: ignore[operator]
    later = frame.select((pl.col("time").diff() < 0).over("user")).to_series()
    assert 0.02 < later.mean() < 0.1  # type: ignore[operator]


def test_every_track_has_one_album_and_one_artist(lfm1b: Path) -> None:
    frame = read_lfm1b(lfm1b)
    assert frame.n_unique(["track", "album", "artist"]) == frame["track"].n_unique()
    assert frame["artist"].n_unique() < frame["album"].n_unique() < frame["track"].n_unique()


def test_kuairand_has_the_original_files_and_columns(kuairand: list[Path]) -> None:
    assert [path.name for path in kuairand] == KUAIRAND_FILES
    assert {path.parent.name for path in kuairand} == {"data"}
    flags = ",".join(["[01]"] * 7)
    row = rf"\d+,\d+,20220[45]\d\d,(?:0|[1-9]\d{{2,3}}),16\d{{11}},{flags},\d+,\d+,\d+,\d+,[01],RAND,\d\d?\n"
    counts = []
    for path in kuairand:
        header, _, rows = path.read_text().partition("\n")
        assert header == KUAIRAND_COLUMNS
        assert len(header.split(",")) == 19
        assert re.fullmatch(f"(?:{row.replace('RAND', '1' if 'random' in path.name else '0')})+", rows)
        counts.append(rows.count("\n"))
    assert sum(counts[:4]) == 200_003
    assert min(counts[:4]) > 40_000
    assert counts[4] == round(200_003 * 1_186_059 / 322_278_385)


def test_kuairand_has_the_distributions_of_the_original(kuairand: list[Path]) -> None:
    parts = [pl.read_csv(path) for path in kuairand]
    frame = pl.concat(parts[:4])
    assert sorted(frame["user_id"].unique()) == list(range(17))
    assert frame["video_id"].min() == 0
    assert 31_000_000 < frame["video_id"].max() < 32_038_725  # type: ignore[operator]
    assert 0.001 < 1 - frame.n_unique() / frame.height < 0.003
    assert 0.03 < share_of_ties(frame, "time_ms", "user_id") < 0.1
    assert 0.3 < frame["is_click"].mean() < 0.45  # type: ignore[operator]
    assert set(frame["tab"]) == set(range(15))
    assert frame["tab"].mode().to_list() == [1]
    assert frame.filter(pl.col("play_time_ms") == 0).height > 1000
    both = [set(early["user_id"]) & set(late["user_id"]) for early in parts[:2] for late in parts[2:4]]
    assert all(both)
    assert not frame["user_id"].is_sorted()


def test_kuairand_dates_match_the_file_names_in_china_time(kuairand: list[Path]) -> None:
    for path, days in zip(kuairand, [DAYS[:14]] * 2 + [DAYS[14:]] * 3, strict=True):
        frame = pl.read_csv(path)
        assert set(frame["date"]) <= set(days)
        assert len(set(frame["date"])) == len(days) or "random" in path.name
        local = pl.from_epoch(pl.col("time_ms"), "ms") + pl.duration(hours=8)
        shown = frame.select(
            date=local.dt.strftime("%Y%m%d").cast(pl.Int64), hourmin=local.dt.hour().cast(pl.Int64) * 100
        )
        assert shown.equals(frame.select("date", "hourmin"))


def test_ml1m_rows_are_four_integers_separated_by_double_colons(ml1m: Path) -> None:
    text = ml1m.read_bytes()
    assert ml1m.name == "ratings.dat"
    assert text.count(b"\n") == 100_001
    assert re.fullmatch(rb"(?:[1-9]\d*::[1-9]\d*::[1-5]::\d{9,10}\n)+", text)


def test_ml1m_has_the_distributions_of_the_original(ml1m: Path) -> None:
    frame = read_ml1m(ml1m)
    lengths = frame["user"].value_counts()["count"]
    assert frame["user"].unique().to_list() == list(range(1, round(100_001 / 165.6) + 1))
    assert frame["user"].is_sorted()
    assert lengths.min() >= 20  # type: ignore[operator]
    assert 0.4 < lengths.median() / lengths.mean() < 0.8  # type: ignore[operator]
    assert 1 <= frame["movie"].min() <= frame["movie"].max() <= 3952  # type: ignore[operator]
    assert frame.n_unique(["user", "movie"]) == frame.height
    assert share_of_ties(frame, "time", "user") > 0.3
    assert 956_703_932 <= frame["time"].min() <= frame["time"].max() <= 1_046_454_590  # type: ignore[operator]
    popular = frame["movie"].value_counts(sort=True)["count"]
    assert popular[:395].sum() > 3 * 395 / 3952 * frame.height


@pytest.mark.parametrize("name", ["lfm1b", "kuairand", "ml1m"])
def test_the_seed_determines_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(raw_layouts, "BLOCK_ROWS", 1_000)
    small = RawSynthetic(format=name, events=9_000, seed=5)
    first = [path.read_bytes() for path in write_raw(small, tmp_path / "a")]
    monkeypatch.setattr(raw_synthetic, "NUM_THREADS", 1)
    assert first == [path.read_bytes() for path in write_raw(small, tmp_path / "b")]
    other = RawSynthetic(format=name, events=9_000, seed=6)
    assert first != [path.read_bytes() for path in write_raw(other, tmp_path / "c")]


@pytest.mark.parametrize("block_rows", [1, 7, 64])
def test_the_block_size_does_not_change_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    small = {"format": "lfm1b", "events": 200, "users": 9}
    (whole,) = write_raw(RawSynthetic(**small), tmp_path / "whole")
    monkeypatch.setattr(raw_layouts, "BLOCK_ROWS", block_rows)
    (blocks,) = write_raw(RawSynthetic(**small), tmp_path / "blocks")
    assert read_lfm1b(whole)["user"].to_list() == read_lfm1b(blocks)["user"].to_list()


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "lfm1b", "events": 1},
        {"format": "lfm1b", "events": 3, "items": 1, "users": 3},
        {"format": "kuairand", "events": 1},
        {"format": "kuairand", "events": 5, "items": 2, "users": 5},
        {"format": "ml1m", "events": 20},
        {"format": "ml1m", "events": 60, "items": 20, "users": 3},
    ],
)
def test_the_smallest_sizes_give_the_exact_number_of_rows(tmp_path: Path, settings: dict) -> None:
    raw = RawSynthetic(**settings)
    paths = write_raw(raw, tmp_path)
    headers = len(paths) if raw.format == "kuairand" else 0
    assert sum(path.read_bytes().count(b"\n") for path in paths) - headers == settings["events"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"events": 0}, "--events is 0, but must be at least 1"),
        ({"items": 0}, "--items is 0, but must be at least 1"),
        ({"items": 10**10}, "--items is 10000000000, but must be at most 2000000000"),
        ({"users": 0}, "--users is 0, but must be at least 1"),
        ({"users": 101}, "--users is 101 with --events 100, but must be at most 100"),
        ({"seed": -1}, "--seed is -1, but must be at least 0"),
        ({"format": "ml1m", "events": 19}, "--events is 19, but must be at least 20"),
        (
            {"format": "ml1m", "items": 15},
            "movies once each; lower --events to 15 or raise --users or --items",
        ),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        RawSynthetic(**{"format": "lfm1b", "events": 100, **settings})


def test_existing_files_are_kept_without_overwrite(tmp_path: Path) -> None:
    small = RawSynthetic(format="lfm1b", events=100)
    old = tmp_path / "LFM-1b_LEs.txt"
    old.write_text("mine\n")
    with pytest.raises(DataError, match=r"already exists; pass --overwrite"):
        write_raw(small, tmp_path)
    assert old.read_text() == "mine\n"
    write_raw(small, tmp_path, overwrite=True)
    assert old.read_text().count("\n") == 100


def test_an_output_that_cannot_hold_the_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    small = RawSynthetic(format="lfm1b", events=100)
    with pytest.raises(DataError, match="is a file, not a folder; pass another --out"):
        write_raw(small, tmp_path / "file" / "below")
    (tmp_path / "LFM-1b_LEs.txt").mkdir()
    with pytest.raises(DataError, match="is a folder; pass another"):
        write_raw(small, tmp_path, overwrite=True)
    monkeypatch.setattr(raw_synthetic.RawSynthetic, "estimated_bytes", lambda _: 10**18)
    with pytest.raises(DataError, match=r"needs about 1,000,000,000\.0 GB, but .* or fewer --events"):
        write_raw(small, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["lfm1b", "kuairand", "ml1m"])
def test_an_exception_while_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(raw_layouts, "BLOCK_ROWS", 1_000)

    def stop(_: str, done: int, total: int) -> None:
        assert [path for path in tmp_path.rglob("*.writing") if path.stat().st_size]
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_raw(RawSynthetic(format=name, events=9_000), tmp_path, progress=stop)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_raises_and_leaves_no_file(tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"the disk is full after 100 of 100 rows; .* removed"):
        write_raw(RawSynthetic(format="lfm1b", events=100), tmp_path, progress=full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("total", "users", "least", "most"),
    [(10, 10, 1, 1), (57, 10, 1, 6), (60, 10, 1, 6), (10, 10, 1, 6), (100_000, 600, 20, 400), (7, 1, 1, 7)],
)
def test_lengths_are_within_bounds_and_add_up_to_the_total(
    total: int, users: int, least: int, most: int
) -> None:
    rng = np.random.default_rng(0)
    lengths = draw_lengths(total, users, sigma=1.0, min_length=least, max_length=most, rng=rng)
    assert (len(lengths), lengths.sum()) == (users, total)
    assert least <= lengths.min() <= lengths.max() <= most


def test_zipf_ranks_follow_the_law() -> None:
    law = ZipfLaw(num_items=1_000, shift=10.0)
    ranks = law.ranks(np.random.default_rng(0).random(400_000))
    counts = np.bincount(ranks, minlength=1_000)
    expected = np.diff(np.log1p(np.arange(1_001) / 10)) / np.log1p(100)
    assert len(counts) == 1_000
    np.testing.assert_allclose(counts[:50] / 400_000, expected[:50], rtol=0.1)
    assert law.ranks(np.array([0.0, np.nextafter(1.0, 0.0)])).tolist() == [0, 999]


@pytest.mark.parametrize("span", [1, 2, 6, 997, 32_267])
def test_scattered_ids_are_a_bijection(span: int) -> None:
    ids = ScatteredIds(first=3, span=span)(np.arange(span))
    assert sorted(ids) == list(range(3, span + 3))
    assert ids[0] == 3


def test_the_hash_is_uniform_and_depends_on_every_argument() -> None:
    user, number = np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300)
    hashed = hash_uniform(user, number, 1)
    assert len(np.unique(hashed)) == len(hashed)
    assert np.abs(np.histogram(hashed, 10, (0, 1))[0] / 9_000 - 1).max() < 0.05
    assert not np.isin(hash_uniform(user, number, 2), hashed).any()


def test_row_order_covers_every_event_once_for_any_range_size() -> None:
    lengths = np.array([1, 0, 5, 40, 2, 0, 300])
    order = RowOrder.draw(lengths, max_pieces=8, rng=np.random.default_rng(3))
    assert order.num_rows == 348
    for step in (1, 13, 348):
        ranges = [order.rows(at, min(at + step, 348)) for at in range(0, 348, step)]
        events = [pair for user, place in ranges for pair in zip(user.tolist(), place.tolist(), strict=True)]
        assert sorted(events) == [(u, i) for u, n in enumerate(lengths) for i in range(n)]


def test_copied_rows_equal_the_previous_row_of_the_same_user() -> None:
    user = np.repeat(np.arange(50), 20)
    column = np.arange(1_000)
    copy_previous_rows([column], user, 0.3, np.random.default_rng(0))
    rows = np.flatnonzero(column != np.arange(1_000))
    assert 100 < len(rows) < 300
    assert (column[rows] == column[rows - 1]).all()
    assert (user[rows] == user[rows - 1]).all()
