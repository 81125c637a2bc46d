"""Run SQL over Arrow tables with DuckDB, in any thread, without access to files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

_idle_databases: list[duckdb.DuckDBPyConnection] = []


@contextmanager
def _database() -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield an in-memory database that cannot read or write files, for one thread at a time."""
    try:
        database = _idle_databases.pop()
    except IndexError:
        database = duckdb.connect()
        database.execute("SET threads=1; SET TimeZone='UTC'")
        database.execute("SET enable_external_access=false; SET lock_configuration=true")
    try:
        yield database
    finally:
        _idle_databases.append(database)


def query(sql: str, **tables: pa.Table) -> pa.Table:
    """Run a query over Arrow tables. Thread-safe.

    Args:
        sql: the query.
        tables: name in the query -> table.

    Raises:
        duckdb.Error: the query is invalid or fails on a value.
    """
    with _database() as database:
        for name, table in tables.items():
            database.register(name, table)
        try:
            return database.sql(sql).to_arrow_table()
        finally:
            for name in tables:
                database.unregister(name)


def column_types(table: pa.Table) -> dict[str, str]:
    """Return column -> DuckDB's name of its type, or Arrow's name if DuckDB has no such type."""
    types = {}
    for name in table.column_names:
        try:
            (row,) = query("SELECT column_type FROM (DESCRIBE block)", block=table.select([name])).to_pylist()
            types[name] = row["column_type"]
        except duckdb.Error:
            types[name] = str(table.schema.field(name).type)
    return types
