"""Files: folders, patterns, archives, copies, and files that change or are not text."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from support.sources import HEADER, STRICT, found, open_source, parquet, refusal, text

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation import passes
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.readers.inputs import check_copies, find_files


def test_folders_patterns_and_hive_partitions(tmp_path: Path) -> None:
    for year in (2019, 2020):
        parquet(tmp_path / f"p/year={year}/part-0.parquet", user_id=[1], item_id=[year], timestamp=[5])
    text(tmp_path / "p/_SUCCESS", "")
    text(tmp_path / "p/.part.crc", "x")
    everything = {1: [(2019, 5), (2020, 5)]}
    assert found(tmp_path, "parquet", tmp_path / "p") == everything
    assert found(tmp_path / "g", "parquet", tmp_path / "p/*/*.parquet") == everything
    selected = open_source("parquet", tmp_path / "p", "--where=year = '2020'")
    with pytest.raises(DataError, match="nothing left"):
        prepare_dataset(selected, tmp_path / "none", STRICT)
    assert "no file matches" in refusal(tmp_path / "n", "parquet", tmp_path / "*.pq")
    assert "is a folder without files" in refusal(tmp_path / "n", "csv", tmp_path / "p")


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "gz of two members": lambda content: gzip.compress(content[:30]) + gzip.compress(content[30:]),
}


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml-1m/", "")
        archive.writestr(name, content)
    return file.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("pack", ["xz", "gz of two members", "zip", "tar.gz"])
def test_text_is_read_from_any_compression_or_archive(tmp_path: Path, pack: str) -> None:
    content = (HEADER + "1,2,3\n1,3,4\n").encode()
    made = {"zip": zipped, "tar.gz": tarred}
    packed = ARCHIVES[pack](content) if pack in ARCHIVES else made[pack]("ml-1m/ratings.csv", content)
    (tmp_path / "a.csv").write_bytes(packed)
    assert found(tmp_path, "csv", tmp_path / "a.csv") == {1: [(2, 3), (3, 4)]}


def test_a_preset_finds_its_file_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/users.dat", "1::F::1::10::48067\n")
        archive.writestr("ml-1m/ratings.dat", "1::10::5::1\n1::11::5::2\n")
    assert found(tmp_path, "ml1m", tmp_path / "ml-1m.zip") == {1: [(10, 1), (11, 2)]}
    message = refusal(tmp_path / "x", "csv", tmp_path / "ml-1m.zip")
    assert "the archive holds 2 files (ml-1m/users.dat, ml-1m/ratings.dat); unpack it" in message


FOREIGN = {
    "UTF-16": ((HEADER + "1,2,3\n").encode("utf-16"), r"is UTF-16 text; convert it with `iconv"),
    "Parquet": (b"PAR1" + bytes(20), r"is a Parquet file; read it with `longplay prepare parquet .*a.csv`"),
    "SQLite": (b"SQLite format 3\x00" + bytes(99), r"is an SQLite database; export a table"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), r"is a 7z archive; unpack it"),
    "cut xz": (lzma.compress(HEADER.encode() * 9999)[:-40], r"cannot be read as text"),
    "cut zip": (zipped("a.csv", HEADER.encode() * 9999)[:-90], r"cannot be read as text"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_text_is_named_for_what_it_is(tmp_path: Path, kind: str) -> None:
    content, message = FOREIGN[kind]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        prepare_dataset(open_source("csv", tmp_path / "a.csv"), tmp_path / "set", STRICT)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "copy", ["a.csv.gz", "a.csv.1", "a.csv.bak", "a.csv~", "a.csv.old", "a (1).csv", "a copy.csv", "link.csv"]
)
def test_a_copy_of_a_file_is_refused_by_name(tmp_path: Path, copy: str) -> None:
    original = text(tmp_path / "a.csv", HEADER)
    if copy == "link.csv":
        (tmp_path / copy).symlink_to(original)
    else:
        text(tmp_path / copy, HEADER)
    with pytest.raises(DataError, match=r"holds the same data as .*pass only one of them"):
        check_copies(find_files([tmp_path / "*a*" if copy != "link.csv" else tmp_path / "*"], [".csv"]))


def test_parts_with_numbers_are_not_copies(tmp_path: Path) -> None:
    for number in (1, 2):
        text(tmp_path / f"a.csv.0{number}", HEADER + f"1,{number},{number}\n")
    paths = [tmp_path / "a.csv.01", tmp_path / "a.csv.02"]
    assert found(tmp_path, "csv", *paths) == {1: [(1, 1), (2, 2)]}


def test_an_archive_in_an_archive_and_an_encrypted_one_are_named(tmp_path: Path) -> None:
    content = zipped("a.csv", HEADER.encode())
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(content))
    assert "unpack it once" in refusal(tmp_path, "csv", path)
    path.write_bytes(pa.compress(tarred("a.csv", HEADER.encode()), "zstd", asbytes=True))
    assert "unpack it once" in refusal(tmp_path, "csv", path)
    encrypted = bytearray(content)
    encrypted[6] |= 1
    encrypted[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(encrypted)
    assert "is encrypted" in refusal(tmp_path, "csv", path)


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = text(tmp_path / "a.csv", HEADER + "1,1,1\n1,2")
    source = open_source("csv", path)
    assert source.max_events() > 0

    def finish() -> None:
        with path.open("a") as file:
            file.write("34,2\n")

    if when == "before it is read":
        finish()
    else:
        monkeypatch.setattr(passes, "write_runs", lambda *_, **__: finish())
    with pytest.raises(DataError, match=r"a\.csv: changed while it was read; wait until it is complete"):
        prepare_dataset(source, tmp_path / "set", STRICT)
