"""Malformed files of every original format, prepared with every option, match plain Python."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.datasets import prepared, sequences
from support.naive_prepare import NaiveFormat, naive_prepare
from support.sources import open_source

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation import options as options_module
from longplay.data_shards.preparation.options import PrepareOptions, WorkPlan
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.readers.sources import Source

ID_AND_TIME = {"user_id": 0, "track_id": 0, "video_id": 0, "timestamp": 1, "time_ms": 1}
END_OF_9999 = 253402300799  # in seconds
LFM1B = NaiveFormat(
    sep="\t",
    header=("user_id", "artist_id", "album_id", "track_id", "timestamp"),
    roles=("user_id", "track_id", "timestamp"),
    least=ID_AND_TIME,
    most_time=END_OF_9999,
)
ML1M = NaiveFormat(
    sep="::",
    header=("UserID", "MovieID", "Rating", "Timestamp"),
    roles=("UserID", "MovieID", "Timestamp"),
    most_time=END_OF_9999,
)
KUAIRAND_HEADER = tuple(
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab".split(",")
)
NUMBER = st.integers(0, 5).map(str)
ODD = st.sampled_from(["", " 3", "x", "1.5", "2.0", "NaN", "-1", "0", "9" * 25, str(2**40), "é", "0x1"])
TIME = st.sampled_from(["5", "5", "6", "7", "1400000000000", "0", "-5", "8.0", "5 "])
FLAG = st.sampled_from(["0", "1", "1", "true", "False", "1.0", "2", ""])
OPTIONS = st.builds(
    PrepareOptions,
    min_user_events=st.integers(2, 3),
    min_item_events=st.integers(1, 3),
    max_user_events=st.none() | st.integers(3, 5),
    dedup_latest=st.booleans(),
    from_time=st.none() | st.just(5),
    until_time=st.none() | st.integers(7, 8),
    max_bad_fraction=st.just(1.0),
    overwrite=st.just(True),
)
PLAN = st.builds(
    WorkPlan,
    num_workers=st.integers(1, 2),
    block_bytes=st.integers(20, 400),
    num_buckets=st.integers(1, 4),
)
RELAXED = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rows(form: NaiveFormat) -> st.SearchStrategy[str]:
    """Draw lines of a format, most of them usable."""
    by_name = {form.roles[2]: TIME, "is_click": FLAG, "long_view": FLAG, "tab": NUMBER}
    fields = [by_name.get(name, NUMBER) for name in form.header]
    sound = st.tuples(*fields).map(form.sep.join)
    odd = st.tuples(*(field | ODD for field in fields)).map(form.sep.join)
    cut = st.builds(lambda line, at: line[: at % (len(line) + 1)], sound, st.integers(0, 60))
    longer = sound.map(lambda line: f"{line}{form.sep}1")
    return st.one_of(sound, sound, sound, odd, cut, longer, st.sampled_from(["", "  "]))


def text(lines: list[str], *, crlf: bool, newline_at_end: bool) -> bytes:
    end = "\r\n" if crlf else "\n"
    return (end.join(lines) + end * newline_at_end).encode()


@contextmanager
def work_divided_by(plan: WorkPlan) -> Iterator[None]:
    """Divide the work by `plan` instead of by size."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(options_module.WorkPlan, "make", classmethod(lambda *_: plan))
        yield


def assert_matches_plain_python(
    source: Source,
    lines: list[str],
    form: NaiveFormat,
    options: PrepareOptions,
    plan: WorkPlan,
    out: Path,
) -> None:
    expected, dropped = naive_prepare(lines, form, options)
    with work_divided_by(plan):
        if not expected:
            with pytest.raises(DataError, match=r"nothing left|no events|rows are dropped"):
                prepare_dataset(source, out, options)
            return
        dataset = prepared(source, out, options)
    assert sequences(dataset) == expected
    assert dataset.manifest.rows_dropped == dropped
    assert dataset.manifest.rows_in == len(lines) == dataset.num_events + sum(dropped.values())


@RELAXED
@given(st.data(), st.lists(rows(LFM1B), min_size=1, max_size=60), OPTIONS, PLAN, st.booleans(), st.booleans())
def test_malformed_lfm1b_matches_plain_python(
    tmp_path: Path,
    data: st.DataObject,
    lines: list[str],
    options: PrepareOptions,
    plan: WorkPlan,
    crlf: bool,
    newline_at_end: bool,
) -> None:
    newline_at_end |= lines[-1] == ""
    content = text(lines, crlf=crlf, newline_at_end=newline_at_end)
    pack = data.draw(st.sampled_from([bytes, gzip.compress, bz2.compress]))
    path = tmp_path / "LFM-1b_LEs.txt"
    path.write_bytes(pack(content))
    assert_matches_plain_python(open_source("lfm1b", path), lines, LFM1B, options, plan, tmp_path / "set")


@RELAXED
@given(st.lists(rows(ML1M), min_size=1, max_size=60), OPTIONS, PLAN, st.booleans())
def test_malformed_ml1m_matches_plain_python(
    tmp_path: Path, lines: list[str], options: PrepareOptions, plan: WorkPlan, crlf: bool
) -> None:
    (tmp_path / "ratings.dat").write_bytes(text(lines, crlf=crlf, newline_at_end=True))
    assert_matches_plain_python(open_source("ml1m", tmp_path), lines, ML1M, options, plan, tmp_path / "set")


def kuairand(wanted: dict[str, int]) -> NaiveFormat:
    return NaiveFormat(
        sep=",",
        header=KUAIRAND_HEADER,
        roles=("user_id", "video_id", "time_ms"),
        least=ID_AND_TIME,
        most_time=1000 * END_OF_9999,
        wanted=wanted,
    )


@settings(parent=RELAXED, max_examples=20)
@given(
    st.lists(st.lists(rows(kuairand({})), max_size=20), min_size=5, max_size=5),
    OPTIONS,
    PLAN,
    st.sampled_from(["all", "is_click", "long_view"]),
    st.none() | st.just(1),
    st.booleans(),
)
def test_malformed_kuairand_matches_plain_python(
    tmp_path: Path,
    parts: list[list[str]],
    options: PrepareOptions,
    plan: WorkPlan,
    events: str,
    tab: int | None,
    random: bool,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    names = [
        "log_standard_4_08_to_4_21_27k_part1.csv",
        "log_standard_4_08_to_4_21_27k_part2.csv",
        "log_standard_4_22_to_5_08_27k_part1.csv",
        "log_standard_4_22_to_5_08_27k_part2.csv",
        "log_random_4_22_to_5_08_27k.csv",
    ]
    for name, lines in zip(names, parts, strict=True):
        (folder / name).write_bytes(
            text([",".join(KUAIRAND_HEADER), *lines], crlf=False, newline_at_end=True)
        )
    wanted = {} if events == "all" else {events: 1}
    wanted |= {} if tab is None else {"tab": tab}
    flags = [
        "--events",
        events,
        *(["--random"] if random else []),
        *([] if tab is None else [f"--tab={tab}"]),
    ]
    source = open_source("kuairand", tmp_path, *flags)
    lines = [line for part in parts[: 5 if random else 4] for line in part]
    assert_matches_plain_python(source, lines, kuairand(wanted), options, plan, tmp_path / "set")


VALUE = st.none() | st.integers(-2, 5).map(float) | st.sampled_from([0.5, float("nan"), 2.0**53, 1e300])


@RELAXED
@given(st.lists(st.tuples(VALUE, VALUE, VALUE), min_size=1, max_size=60), OPTIONS, PLAN, st.booleans())
def test_malformed_parquet_matches_plain_python(
    tmp_path: Path,
    values: list[tuple[float | None, ...]],
    options: PrepareOptions,
    plan: WorkPlan,
    as_text: bool,
) -> None:
    header = ("user_id", "item_id", "timestamp")
    form = NaiveFormat(sep=",", header=header, roles=header)
    table = pl.DataFrame(values, schema=dict.fromkeys(header, pl.Float64), orient="row")
    lines = [",".join("" if v is None else "NaN" if v != v else repr(v) for v in row) for row in values]
    if as_text:
        table = table.with_columns(pl.all().cast(pl.String))
    table.write_parquet(tmp_path / "a.parquet", row_group_size=7)
    assert_matches_plain_python(
        open_source(
            "parquet",
            tmp_path / "a.parquet",
            "--user-type=integer",
            "--item-type=integer",
            "--time-type=integer",
        ),
        lines,
        form,
        options,
        plan,
        tmp_path / "set",
    )


def test_a_missing_part_of_kuairand_is_named(tmp_path: Path) -> None:
    (tmp_path / "log_standard_4_08_to_4_21_27k_part2.csv").write_text(",".join(KUAIRAND_HEADER) + "\n")
    with pytest.raises(DataError, match=r"27k_part1\.csv: no such file, although .*part2\.csv exists; add"):
        prepare_dataset(open_source("kuairand", tmp_path), tmp_path / "set", PrepareOptions())


def test_a_log_without_the_columns_of_kuairand_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log_standard_4_08_to_4_21_1k.csv").write_text("user,video\n1,2\n")
    with pytest.raises(DataError, match=r"no column 'user_id' .*; choose a column with --user"):
        prepare_dataset(open_source("kuairand", tmp_path), tmp_path / "set", PrepareOptions())


def test_the_result_does_not_depend_on_the_work_plan(tmp_path: Path) -> None:
    lines = [f"{n % 7}\t1\t1\t{n * n % 50 + (n % 3) * 2**33}\t{1000 + n * 37 % 90}" for n in range(3000)]
    (tmp_path / "LFM-1b_LEs.txt").write_text("\n".join(lines))
    source = open_source("lfm1b", tmp_path)
    found = set()
    for plan in (WorkPlan(1, 1 << 20, 1), WorkPlan(2, 999, 5), WorkPlan(2, 5000, 2)):
        with work_divided_by(plan):
            dataset = prepared(source, tmp_path / "set", PrepareOptions(overwrite=True, min_item_events=20))
        found.add((dataset.dataset_id, (tmp_path / "set" / "manifest.json").read_bytes()))
    assert len(found) == 1
