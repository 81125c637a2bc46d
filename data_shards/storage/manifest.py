"""The manifest of a prepared dataset: `manifest.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from longplay.common.json_files import (
    Int64,
    JsonFileError,
    JsonObject,
    Natural,
    parse_json,
    read_content,
    read_json,
    sealed,
)
from longplay.common.settings import Count
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.features import FeatureInfo
from longplay.data_shards.storage.id_column import IdColumn

SCHEMA_VERSION = 2
KIND = "longplay-dataset"
MANIFEST_NAME = "manifest.json"
ITEMS_NAME = "items.parquet"
USERS_NAME = "users.parquet"
NUM_QUANTILES = 1000
"""`time_quantiles[i]`, i = 0..1000, is the exact i/1000 quantile of the event times."""
TimeUnit = Literal["ns", "us", "ms", "s", "index"]
"""Unit of the event times. `index`: the times are row numbers of the source."""
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class SourceInfo(TypedDict):
    """The source of a dataset, as `longplay prepare` names it."""

    format: str
    paths: list[str]
    options: dict[str, Any]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """A tar shard: its name, numbers of users and events, size and checksum."""

    # Below pipe:COMMAND, the name becomes part of a shell command.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    num_users: Count
    num_events: Natural
    num_bytes: Natural
    sha256: str


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Counts, provenance and shards of a prepared dataset.

    Attributes:
        dataset_id: hex fingerprint of the id mappings and of every shard's content.
        source: format, paths and options of `longplay prepare`.
        options: the options that select events.
        rows_in: rows of the source, without headers; equals `num_events` plus the sum of `rows_dropped`.
        rows_dropped: reason -> number of rows.
        time_quantiles: `NUM_QUANTILES + 1` times in ascending order, in the source's unit.
        shards: in user order.
        features: the event features, in the order of the source's options.
        time_unit: unit of the times; None if it is unknown.
    """

    dataset_id: str
    source: SourceInfo
    rows_in: Natural
    rows_dropped: dict[str, Natural]
    num_events: Natural
    num_users: Count
    num_items: Count
    time_quantiles: list[Int64]
    shards: tuple[ShardInfo, ...]
    options: JsonObject = dataclasses.field(default_factory=dict)
    features: tuple[FeatureInfo, ...] = ()
    time_unit: TimeUnit | None = None
    kind: str = KIND
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.rows_in != self.num_events + sum(self.rows_dropped.values()):
            raise ValueError(
                f"rows do not add up: {self.rows_in} in, {self.num_events} kept, {self.rows_dropped} dropped"
            )
        for field in ("num_events", "num_users"):
            total, expected = sum(getattr(shard, field) for shard in self.shards), getattr(self, field)
            if total != expected:
                raise ValueError(f"the shards' {field} add up to {total}, expected {expected}")
        if len(self.time_quantiles) != NUM_QUANTILES + 1:
            raise ValueError(
                f"time_quantiles has {len(self.time_quantiles)} entries, expected {NUM_QUANTILES + 1}"
            )
        if self.time_quantiles != sorted(self.time_quantiles):
            raise ValueError("time_quantiles: must be in ascending order")
        names = [feature.name for feature in self.features]
        if len(set(names)) < len(names):
            raise ValueError(f"a feature occurs twice in {names}")

    @property
    def time_unit_s(self) -> float | None:
        """Seconds in one unit of the times; None if the unit is unknown or `index`."""
        per_second = PER_SECOND.get(self.time_unit or "")
        return None if per_second is None else 1 / per_second

    def feature(self, name: str) -> FeatureInfo:
        """Return the entry of a feature.

        Raises:
            DataError: the dataset has no such feature.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        known = ", ".join(feature.name for feature in self.features) or "none"
        raise DataError(f"feature {name!r}: the dataset's features are: {known}")

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.num_bytes for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`. Equal manifests give equal bytes."""
        content = sealed(dataclasses.asdict(self))
        (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check `folder/manifest.json`.

        Raises:
            DataError: the file is missing, is not a manifest, has another schema version, or is inconsistent.
        """
        path = folder / MANIFEST_NAME
        try:
            return cls.parse(read_content(path), path)
        except FileNotFoundError:
            fault = f"contains no {MANIFEST_NAME}, so it is not a prepared dataset; make one"
            if not folder.exists():
                fault = "does not exist; check the path, or make a dataset"
            raise DataError(f"{folder}: {fault} with `longplay prepare ... --out DIR`") from None
        except JsonFileError as error:
            raise DataError(f"{error}; prepare the dataset again") from None

    @classmethod
    def parse(cls, content: bytes, path: Path | str) -> Manifest:
        """Parse and check the content of a manifest; `path` is used in messages.

        Raises:
            DataError: the text is not a manifest, has another schema version, or is inconsistent.
        """
        try:
            about: Any = parse_json(content, object, path)
            if not isinstance(about, dict) or about.get("kind") != KIND:
                raise DataError(
                    f"{path}: is not the manifest of a prepared dataset; pass the output of "
                    "`longplay prepare`"
                )
            if about.get("schema_version") != SCHEMA_VERSION:
                raise DataError(
                    f"{path}: schema_version is {reprlib.repr(about.get('schema_version'))}, but this "
                    f"version of longplay reads {SCHEMA_VERSION}; {_prepare_again(about, path)}"
                )
            return parse_json(content, cls, path)
        except JsonFileError as error:
            raise DataError(f"{error}; prepare the dataset again") from None


def _prepare_again(content: dict[str, Any], path: Path | str) -> str:
    """Return the remedy for a manifest of another schema version: the command that made the dataset."""
    try:
        folder = path.parent if isinstance(path, Path) else "DIR"
        source, options = content["source"], dict(content["options"])
        options["dedup"] = "latest" if options.pop("dedup_latest") else None
        options |= {"from": options.pop("from_time"), "until": options.pop("until_time")}
        options |= {**source["options"], "shards": len(content["shards"]), "out": folder}
        flags = [
            f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            for name, value in options.items()
            if value not in (None, False)
        ]
        words = ["longplay", "prepare", source["format"], *source["paths"], *flags, "--overwrite"]
        return f"prepare the dataset again with `{shlex.join(words)}`"
    except (KeyError, TypeError, AttributeError, ValueError):
        return "prepare the dataset again with `longplay prepare`"


def dataset_fingerprint(
    item_original_ids: np.ndarray | pl.Series,
    user_original_ids: np.ndarray | pl.Series,
    shards: Iterable[ShardInfo],
    vocabularies: Mapping[str, Iterable[str | int]] = MappingProxyType({}),
) -> str:
    """Return the `dataset_id` of a dataset.

    Args:
        item_original_ids: (items,) int64 or strings in the order of the item ids.
        user_original_ids: (users,) int64 or strings in the order of the shards.
        shards: the shards in order.
        vocabularies: categorical feature -> its values in the order of the codes.
    """
    digest = hashlib.sha256()
    for ids in (item_original_ids, user_original_ids):
        IdColumn(ids).update(digest.update)
    for shard in shards:
        digest.update(f"{shard.name}:{shard.sha256}\n".encode())
    for name, values in sorted(vocabularies.items()):
        digest.update(f"{name}:{json.dumps(list(values))}\n".encode())
    return digest.hexdigest()[:32]


def fingerprint(*texts: str) -> str:
    """Return 32 hex digits of the SHA-256 of a sequence of texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:32]


def is_dataset(folder: Path) -> bool:
    """Return whether `folder` contains the manifest of a prepared dataset of any schema version."""
    try:
        return read_json(folder / MANIFEST_NAME, JsonObject).get("kind") == KIND
    except (FileNotFoundError, JsonFileError):
        return False
