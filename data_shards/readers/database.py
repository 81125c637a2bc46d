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
    yield database
    _idle_databases.append(database)  # not after an error, which may have made it unusable


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
    """Return column -> DuckDB's name of its type, or Arrow's, in lower case, if DuckDB has no such type."""
    try:
        found = query("SELECT column_name, column_type FROM (DESCRIBE block)", block=table.slice(0, 0))
        return {row["column_name"]: row["column_type"] for row in found.to_pylist()}
    except duckdb.Error:
        if table.num_columns == 1:
            return {table.column_names[0]: str(table.schema[0].type)}
        columns = (table.select([name]) for name in table.column_names)
        return {name: dtype for column in columns for name, dtype in column_types(column).items()}
