"""Group events into one row per user with Spark, for `longplay prepare sequences`.

    python examples/spark_sequences.py events/ histories/ --user user --item track --time played_at
    longplay prepare sequences histories/ --user user --item items --time times --out data/plays

Each row of the result holds a user, the list of the user's items and the list of their times, sorted by time.
Spark does not keep the order of its input, so events of equal time are sorted by item, then by the features.
Rows without a valid user, item or time are dropped and counted. To choose a cluster, its memory and the
packages that read s3a:// or gs://, run this file with `spark-submit`.
"""

from __future__ import annotations

import argparse

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F


def read(spark: SparkSession, paths: list[str], kind: str) -> DataFrame:
    """Read events. The columns of CSV are text, so that ids such as `007` stay as they are."""
    if kind != "csv":
        return spark.read.format(kind).load(paths)
    return spark.read.csv(paths, header=True, escape='"')  # a quote in a quoted field is written twice


def column(frame: DataFrame, name: str, cast: str | None) -> Column:
    """Return a column, cast to a type of Spark SQL; values that are not of this type become null."""
    chosen = F.col(f"`{name}`")
    return chosen if cast is None else chosen.try_cast(cast)


def sequences(events: DataFrame, features: list[str]) -> DataFrame:
    """Group the columns `user`, `item`, `time` and the features into a row for each user."""
    event = F.struct("time", "item", *features)  # the order of these columns decides ties
    history = events.groupBy("user").agg(F.sort_array(F.collect_list(event)).alias("events"))
    lists = [F.col("events.item").alias("items"), F.col("events.time").alias("times")]
    return history.select("user", *lists, *(F.col(f"events.{name}").alias(name) for name in features))


def main() -> None:
    """Read the events, group them and write Parquet files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files or folders of events")
    parser.add_argument("out", metavar="OUT", help="new folder for the histories")
    parser.add_argument("--format", choices=["csv", "json", "parquet"], default="parquet")
    for role in ("user", "item", "time"):
        parser.add_argument(f"--{role}", required=True, metavar="COLUMN")
        parser.add_argument(f"--{role}-type", metavar="TYPE", help="cast to this type, such as bigint")
    parser.add_argument(
        "--features", default="", metavar="NAMES", help="further columns, separated by commas"
    )
    args = parser.parse_args()

    spark = SparkSession.builder.appName("longplay sequences").getOrCreate()
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    rows = read(spark, args.paths, args.format)
    features = [name for name in args.features.split(",") if name]
    roles = [
        column(rows, getattr(args, r), getattr(args, f"{r}_type")).alias(r) for r in ("user", "item", "time")
    ]
    events = rows.select(*roles, *(F.col(f"`{name}`") for name in features))
    if dict(events.dtypes)["time"] == "string":
        parser.error(f"column {args.time} holds text; pass --time-type bigint, double or timestamp")
    whole = events.dropna(subset=["user", "item", "time"])
    sequences(whole, features).write.parquet(args.out)
    print(f"{rows.count() - whole.count()} rows without a valid user, item or time were dropped")
    spark.stop()


if __name__ == "__main__":
    main()
