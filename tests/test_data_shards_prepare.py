"""Sources -> dataset folders: nothing lost, nothing reordered, whole or not at all."""

from __future__ import annotations

import gzip
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from data_shards_support import FrameSource, log_normal_lengths, random_events, real_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longplay.data_shards import prepare as prepare_module
from longplay.data_shards.dataset import Dataset
from longplay.data_shards.errors import DataError
from longplay.data_shards.fields import Columns
from longplay.data_shards.parquet_reader import ParquetSource
from longplay.data_shards.prepare import PrepareOptions, prepare_dataset
from longplay.data_shards.sequences import build_sequences
from longplay.data_shards.shard_writer import assign_users, default_num_shards
from longplay.data_shards.sources import Source
from longplay.data_shards.text_reader import CsvSource, Ml1mSource

LENIENT = PrepareOptions(max_bad_fraction=1)
Sequences = dict[int, list[tuple[int, int]]]


def sequences(dataset: Dataset) -> Sequences:
    """original user id -> [(original item id, time), ...]."""
    found = {}
    for user, original in enumerate(dataset.user_original_ids.tolist()):
        items, times = dataset.sequence(user)
        found[original] = list(zip(dataset.items.originals(items).tolist(), times.tolist(), strict=True))
    return found


def naive_sequences(rows: list[tuple[int, int, int]], min_user_events: int = 2) -> Sequences:
    """The same by plain Python; `rows` are (user, item, time) in source order."""
    found: Sequences = {}
    for user, item, time in sorted(rows, key=lambda row: (row[0], row[2])):
        found.setdefault(user, []).append((item, time))
    return {user: events for user, events in found.items() if len(events) >= min_user_events}


def prepared(source: Source, out: Path, options: PrepareOptions = LENIENT) -> Dataset:
    prepare_dataset(source, out, options)
    return Dataset.open(out)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FIELD = st.one_of(
    st.integers(0, 4).map(str),
    st.sampled_from(["", " 3", "x", "1.5", "2.0", "nan", '"1"', '"1', "-1", "9" * 25, "é"]),
)
LINE = st.lists(FIELD, min_size=2, max_size=5).map(",".join) | st.sampled_from(["", "   "])


def naive_number(text: str) -> int | str | None:
    """A whole number of 64 bits, None for nothing, the text for anything else."""
    text = text.strip()
    if not text:
        return None
    try:
        return int(text) if abs(int(text)) < 2**63 else text
    except ValueError:
        return 2 if text == "2.0" else text


def naive_row(line: str, columns: tuple[str, ...]) -> list[int] | str:
    """The wanted numbers of a line of four fields, or the reason why not."""
    if not line.strip():
        return "blank_line"
    if '"' in line.replace('"1"', ""):
        return "bad_quoting"
    fields = [field.strip().strip('"') for field in line.split(",")]
    if len(fields) != 4:
        return "too_few_columns" if len(fields) < 4 else "too_many_columns"
    numbers = []
    for name, text in zip(columns, fields[:3], strict=True):
        number = naive_number(text)
        if not isinstance(number, int):
            missing = number is None or number == "NaN"
            return f"{'missing' if missing else 'not_an_integer'}:{name}"
        numbers.append(number)
    return numbers


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, min_size=1, max_size=40), crlf=st.booleans(), newline_at_end=st.booleans())
def test_dirtied_csv_gives_the_naive_sequences_and_drop_counts(
    tmp_path: Path, lines: list[str], crlf: bool, newline_at_end: bool
) -> None:
    path, end = tmp_path / "events.csv", "\r\n" if crlf else "\n"
    lines = [*lines, "7,1,5,0", "7,2,5,0"]
    path.write_bytes((end.join(["user_id,item_id,timestamp,x", *lines]) + end * newline_at_end).encode())
    rows = [naive_row(line, ("user_id", "item_id", "timestamp")) for line in lines]
    good = [(row[0], row[1], row[2]) for row in rows if not isinstance(row, str)]
    expected, dropped = naive_sequences(good), Counter(row for row in rows if isinstance(row, str))
    if short := len(good) - sum(map(len, expected.values())):
        dropped["user_too_short"] = short
    dataset = prepared(
        CsvSource(paths=(path,)), tmp_path / "set", PrepareOptions(max_bad_fraction=1, overwrite=True)
    )
    assert sequences(dataset) == expected
    assert dataset.manifest.rows_dropped == dropped
    assert dataset.manifest.rows_in == len(lines) == dataset.num_events + sum(dropped.values())


def test_equal_times_keep_the_order_of_the_source(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 30, 5000),
            "item": rng.integers(0, 999, 5000),
            "time": rng.integers(0, 4, 5000),
        }
    )
    dataset = prepared(FrameSource(frame), tmp_path / "set")
    assert sequences(dataset) == naive_sequences(list(frame.iter_rows()))


def test_items_are_numbered_by_falling_frequency_then_original_id(tmp_path: Path) -> None:
    frame = random_events(log_normal_lengths(50))
    dataset = prepared(FrameSource(frame), tmp_path / "set")
    counted = sorted(Counter(frame["item"].to_list()).items(), key=lambda pair: (-pair[1], pair[0]))
    assert list(zip(dataset.items.original_ids, dataset.items.counts, strict=True)) == counted


def test_short_users_are_dropped_and_counted(tmp_path: Path) -> None:
    frame = random_events(np.array([1, 2, 3, 4, 9]))
    dataset = prepared(FrameSource(frame), tmp_path / "set", PrepareOptions(min_user_events=4))
    assert dataset.manifest.rows_dropped == {"user_too_short": 6}
    assert sorted(dataset.user_original_ids) == [3, 4]
    with pytest.raises(
        DataError, match=r"no user has 10 of the 19 usable events .* 9\); lower --min-user-events"
    ):
        build_sequences(frame, 10)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    frame = random_events(log_normal_lengths(100))
    first = prepared(FrameSource(frame), tmp_path / "first")
    prepared(FrameSource(frame), tmp_path / "second")
    assert folder_bytes(tmp_path / "first") == folder_bytes(tmp_path / "second")
    other = prepared(FrameSource(frame), tmp_path / "other", PrepareOptions(seed=1))
    assert other.dataset_id != first.dataset_id
    assert sequences(other) == sequences(first)


def test_shards_hold_equally_many_users_and_nearly_equal_events() -> None:
    lengths = log_normal_lengths(3000)
    assignment = assign_users(lengths, 24, seed=0)
    assert sorted(np.concatenate(assignment)) == list(range(3000))
    assert {len(users) for users in assignment} == {125}
    events = [lengths[users].sum() for users in assignment]
    assert max(events) - min(events) < 0.01 * np.mean(events) + lengths.max() - np.median(lengths)


@pytest.mark.parametrize(
    ("num_events", "num_users", "expected"),
    [(10, 5, 5), (1_000_000, 6040, 24), (96_000_000, 10_000, 24), (96_000_001, 10_000, 48), (10**9, 50, 48)],
)
def test_default_number_of_shards(num_events: int, num_users: int, expected: int) -> None:
    assert default_num_shards(num_events, num_users) == expected


def test_time_quantiles_are_exact(tmp_path: Path) -> None:
    frame = random_events(log_normal_lengths(100))
    quantiles = prepared(FrameSource(frame), tmp_path / "set").manifest.time_quantiles
    times = sorted(frame["time"].to_list())
    assert quantiles == [times[i * (len(times) - 1) // 1000] for i in range(1001)]


@pytest.mark.parametrize("step", ["write_shards", "_write_items", "_write_users", "_time_quantiles"])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, replacing: bool
) -> None:
    source = FrameSource(random_events(np.full(30, 5)))
    if replacing:
        prepared(source, tmp_path / "set")
    before = {path.name: folder_bytes(path) for path in tmp_path.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, step, fail)
    with pytest.raises(DataError, match=r"set: cannot be written \(No space left on device\)"):
        prepare_dataset(source, tmp_path / "set", PrepareOptions(overwrite=True))
    assert {path.name: folder_bytes(path) for path in tmp_path.iterdir()} == before


def test_an_existing_dataset_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "set"
    first = prepared(FrameSource(random_events(np.full(30, 5))), out)
    source = FrameSource(random_events(np.full(30, 6)))
    with pytest.raises(DataError, match="a dataset is there already; pass --overwrite"):
        prepare_dataset(source, out, PrepareOptions())
    assert Dataset.open(out).dataset_id == first.dataset_id
    assert prepared(source, out, PrepareOptions(overwrite=True)).num_events == 180
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    source = FrameSource(random_events(np.full(30, 5)))
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"is no prepared dataset; choose another --out .*--overwrite"):
            prepare_dataset(source, tmp_path, PrepareOptions(overwrite=overwrite))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def write_zstd(path: Path, content: bytes) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(content)


def test_every_format_gives_the_same_sequences(tmp_path: Path) -> None:
    frame = random_events(log_normal_lengths(20))
    rows, names = list(frame.iter_rows()), ("user_id", "item_id", "timestamp")

    def text(sep: str, header: tuple[str, ...] = names, form: str = "{}") -> bytes:
        lines = [header, *((form.format(field) for field in row) for row in rows)]
        return "".join(sep.join(line) + "\n" for line in lines).encode()

    recbole = ("user_id:token", "item_id:token", "timestamp:float")
    (tmp_path / "a.csv").write_bytes(text(","))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text(",")))
    (tmp_path / "a.inter").write_bytes(text("\t", recbole, "{}.0"))
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + text(","))
    (tmp_path / "quoted.csv").write_bytes(text(",", tuple(f'"{name}"' for name in names), '"{}"'))
    (tmp_path / "semicolon.txt").write_bytes(text(";"))
    write_zstd(tmp_path / "a.tsv.zst", text("\t"))
    texts = sorted(tmp_path.iterdir())
    frame.rename(dict(zip(frame.columns, names, strict=True))).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "ratings.dat").write_text("".join(f"{u}::{i}::5::{t}\n" for u, i, t in rows))
    sources: list[Source] = [
        *(CsvSource(paths=(path,)) for path in texts),
        ParquetSource(paths=(tmp_path / "a.parquet",)),
        Ml1mSource(path=tmp_path),
        Ml1mSource(path=tmp_path / "ratings.dat"),
    ]
    for number, source in enumerate(sources):
        dataset = prepared(source, tmp_path / f"set-{number}", PrepareOptions(max_bad_fraction=0))
        assert sequences(dataset) == naive_sequences(rows), source
        assert dataset.manifest.rows_in == len(rows)


def test_a_separator_inside_quotes_separates_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'title,user_id,item_id,timestamp\n"Heat, part ""two""",1,10,5\nplain,1,11,6\n,1,12,7\n'
    )
    dataset = prepared(CsvSource(paths=(tmp_path / "a.csv",)), tmp_path / "set", PrepareOptions())
    assert sequences(dataset) == {1: [(10, 5), (11, 6), (12, 7)]}


def test_several_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name, rows in {"b.csv": [(1, 5, 0), (1, 6, 0)], "a.csv": [(1, 7, 0)]}.items():
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
            tmp_path / name
        )
    dataset = prepared(CsvSource(paths=(tmp_path / "b.csv", tmp_path / "a.csv")), tmp_path / "set")
    assert sequences(dataset) == {1: [(5, 0), (6, 0), (7, 0)]}


def test_times_with_a_fraction_need_a_time_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,timestamp\n1,1,978300760.125\n1,2,978300760\n")
    with pytest.raises(DataError, match=r"line 2: timestamp is not an integer \('978300760\.125'\)"):
        prepare_dataset(CsvSource(paths=(path,)), tmp_path / "set", PrepareOptions())
    source = CsvSource(paths=(path,), columns=Columns(time_scale=1000))
    assert sequences(prepared(source, tmp_path / "set")) == {1: [(2, 978300760000), (1, 978300760125)]}


def test_a_datetime_column_counts_in_its_own_unit(tmp_path: Path) -> None:
    times = pl.Series([30, 10], dtype=pl.Int64).cast(pl.Datetime("ms"))
    pl.DataFrame({"user_id": [1, 1], "item_id": [5, 6], "timestamp": times}).write_parquet(
        tmp_path / "a.parquet"
    )
    dataset = prepared(ParquetSource(paths=(tmp_path / "a.parquet",)), tmp_path / "set")
    assert sequences(dataset) == {1: [(6, 10), (5, 30)]}


def test_a_scaled_time_beyond_64_bits_is_unusable(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [5, 6, 7], "timestamp": [1, 2, 2**62]})
    frame.write_parquet(tmp_path / "a.parquet")
    source = ParquetSource(paths=(tmp_path / "a.parquet",), columns=Columns(time_scale=1000))
    dataset = prepared(source, tmp_path / "set")
    assert sequences(dataset) == {1: [(5, 1000), (6, 2000)]}
    assert dataset.manifest.rows_dropped == {"not_an_integer:timestamp": 1}


def test_ml100k_is_read_whole(tmp_path: Path) -> None:
    path = real_data("ml-100k.inter.gz")
    dataset = prepared(CsvSource(paths=(path,)), tmp_path / "set", PrepareOptions())
    lines = itertools.islice(gzip.open(path, "rt"), 1, None)
    rows = [tuple(int(line.split("\t")[at]) for at in (0, 1, 3)) for line in lines]
    assert (dataset.num_users, dataset.num_items, dataset.num_events) == (943, 1682, 100_000)
    assert sequences(dataset) == naive_sequences([(u, i, t) for u, i, t in rows])
