"""All formats give the same events, and every unusable row is counted."""

from __future__ import annotations

import gzip
import itertools
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.datasets import (
    log_normal_lengths,
    naive_sequences,
    prepared,
    random_events,
    real_data,
    sequences,
)
from support.sources import open_source

from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.readers.sources import Source

FIELD = st.one_of(
    st.integers(0, 4).map(str),
    st.sampled_from(["", " 3", "x", "1.5", "2.0", "nan", '"1"', '"1', "-1", "9" * 25, "é"]),
)
LINE = st.lists(FIELD, min_size=2, max_size=5).map(",".join) | st.sampled_from(["", "   "])


def naive_number(text: str) -> int | str | None:
    """Parse a field: return a 64-bit integer, None if it is empty, or its text if it is anything else."""
    text = text.strip()
    if not text:
        return None
    try:
        return int(text) if abs(int(text)) < 2**63 else text
    except ValueError:
        return 2 if text == "2.0" else text


def naive_row(line: str, columns: tuple[str, ...]) -> list[int] | str:
    """Return the numbers of a line of four fields, or the reason why it is unusable."""
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
            missing = number is None or number == "nan"
            return f"{'missing' if missing else 'not_an_integer'}:{name}"
        numbers.append(number)
    return numbers


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, min_size=1, max_size=40), crlf=st.booleans(), newline_at_end=st.booleans())
def test_malformed_csv_matches_plain_python(
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
    source = open_source(
        "csv", path, "--user-type=integer", "--item-type=integer", "--quote=double", "--time-type=integer"
    )
    dataset = prepared(source, tmp_path / "set", PrepareOptions(max_bad_fraction=1, overwrite=True))
    assert sequences(dataset) == expected
    assert dataset.manifest.rows_dropped == dropped
    assert dataset.manifest.rows_in == len(lines) == dataset.num_events + sum(dropped.values())


def write_zstd(path: Path, content: bytes) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(content)


def test_all_formats_give_the_same_sequences(tmp_path: Path) -> None:
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
        *(open_source("csv", path) for path in texts),
        open_source("parquet", tmp_path / "a.parquet"),
        open_source("ml1m", tmp_path),
        open_source("ml1m", tmp_path / "ratings.dat"),
    ]
    for number, source in enumerate(sources):
        dataset = prepared(source, tmp_path / f"set-{number}", PrepareOptions(max_bad_fraction=0))
        assert sequences(dataset) == naive_sequences(rows), source
        assert dataset.manifest.rows_in == len(rows)


def test_a_separator_inside_quotes_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'title,user_id,item_id,timestamp\n"Heat, part ""two""",1,10,5\nplain,1,11,6\n,1,12,7\n'
    )
    dataset = prepared(open_source("csv", tmp_path / "a.csv"), tmp_path / "set", PrepareOptions())
    assert sequences(dataset) == {1: [(10, 5), (11, 6), (12, 7)]}


def test_several_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name, rows in {"b.csv": [(1, 5, 0), (1, 6, 0)], "a.csv": [(1, 7, 0)]}.items():
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
            tmp_path / name
        )
    dataset = prepared(open_source("csv", tmp_path / "b.csv", tmp_path / "a.csv"), tmp_path / "set")
    assert sequences(dataset) == {1: [(5, 0), (6, 0), (7, 0)]}


def test_times_with_a_fraction_become_microseconds_or_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,timestamp\n1,1,978300760.125\n1,2,978300760\n")
    dataset = prepared(open_source("csv", path), tmp_path / "set")
    assert sequences(dataset) == {1: [(2, 978300760000000), (1, 978300760125000)]}
    assert dataset.manifest.time_unit == "us"
    source = open_source("csv", path, "--time-scale=1000", "--time-unit=s")
    dataset = prepared(source, tmp_path / "scaled")
    assert sequences(dataset) == {1: [(2, 978300760000), (1, 978300760125)]}
    assert dataset.manifest.time_unit == "ms"


def test_a_scaled_time_that_exceeds_64_bits_is_unusable(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [5, 6, 7], "timestamp": [1, 2, 2**62]})
    frame.write_parquet(tmp_path / "a.parquet")
    source = open_source("parquet", tmp_path / "a.parquet", "--time-scale=1000")
    dataset = prepared(source, tmp_path / "set")
    assert sequences(dataset) == {1: [(5, 1000), (6, 2000)]}
    assert dataset.manifest.rows_dropped == {"not_an_integer:timestamp": 1}


def test_ml100k_is_read_completely(tmp_path: Path) -> None:
    path = real_data("ml-100k.inter.gz")
    dataset = prepared(open_source("csv", path), tmp_path / "set", PrepareOptions())
    lines = itertools.islice(gzip.open(path, "rt"), 1, None)
    rows = [tuple(int(line.split("\t")[at]) for at in (0, 1, 3)) for line in lines]
    assert (dataset.num_users, dataset.num_items, dataset.num_events) == (943, 1682, 100_000)
    assert sequences(dataset) == naive_sequences([(u, i, t) for u, i, t in rows])
