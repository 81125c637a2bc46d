"""Rows of plain text are parsed without DuckDB, to the same events and counts."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.sources import list_of

from longplay.data_shards.readers.columns import Columns
from longplay.data_shards.readers.kinds import ColumnKinds
from longplay.data_shards.readers.row_parser import RawTable, RowParser
from longplay.data_shards.readers.sources import ParsedBlock

COLUMNS = Columns(user="user", item="item", time="time", least={"time": 0})
VALUES = st.sampled_from(
    ["a", "é", "7", "007", " 7", "-7", "1e3", "NaN", "", " ", "\t", "\v", "\u00a0", None]
)
TIMES = st.sampled_from(["0", "5", "12", "-1", "05", "1.0", "x", "", None, str(2**63)])


def parsed(columns: Columns, kinds: ColumnKinds, rows: list[tuple[str | None, ...]]) -> ParsedBlock:
    names = ["c0", "c1", "c2"]
    texts = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()})
    parser = RowParser(
        columns, kinds, ("user", "item", "time"), dict.fromkeys(names, "VARCHAR"), "events.csv"
    )
    return parser.parse(RawTable(table, "events.csv, line", np.arange(1, len(rows) + 1)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(VALUES, VALUES, TIMES), min_size=1, max_size=4),
    st.sampled_from(["integer", "string"]),
    st.sampled_from(["integer", "string"]),
)
@example([("a", "b", "5"), ("b", "007", "0")], "string", "string")
@example([("7", "b", "5"), ("8", "", "0")], "integer", "string")
def test_both_ways_agree(rows: list[tuple[str | None, ...]], user: str, item: str) -> None:
    kinds = ColumnKinds({"user": user, "item": item, "time": "integer"}, None)
    quick = parsed(COLUMNS, kinds, rows)
    thorough = parsed(replace(COLUMNS, where="true"), kinds, rows)
    for role in ("user", "item", "time"):
        assert list_of(getattr(quick, role)) == list_of(getattr(thorough, role))
    assert (quick.rows_in, quick.bad_rows) == (thorough.rows_in, thorough.bad_rows)


@pytest.mark.parametrize(
    ("user", "item"), [("integer", "integer"), ("string", "integer"), ("string", "string")]
)
def test_plain_values_do_without_duckdb(monkeypatch: pytest.MonkeyPatch, user: str, item: str) -> None:
    monkeypatch.setattr("longplay.data_shards.readers.row_parser.query", None)
    kinds = ColumnKinds({"user": user, "item": item, "time": "integer"}, None)
    found = parsed(COLUMNS, kinds, [("1", "20", "5"), ("3", "20", "6")])
    assert [str(value) for value in list_of(found.user)] == ["1", "3"]
    assert [str(value) for value in list_of(found.item)] == ["20", "20"]
