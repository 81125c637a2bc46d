"""Detect what a path holds, for error messages that name the command which reads it."""

from pathlib import Path

from longplay.common.json_files import JsonFileError, JsonObject, read_json

_READERS = {".parquet": "parquet", ".pq": "parquet", ".json": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""Extension -> format of `longplay prepare`; other files are `csv`."""


def kind_of(path: Path) -> str | None:
    """Return what a path is: "dataset", "run", "export", "sweep", "file", or None for anything else."""
    if path.is_file():
        return "file"
    for kind, name in (("dataset", "manifest.json"), ("sweep", "sweep.json")):
        if (path / name).is_file():
            return kind
    try:
        saved = read_json(path / "config.json", JsonObject)
    except (FileNotFoundError, JsonFileError):
        return None
    return "export" if saved.get("format") == "longplay-export" else "run" if "config" in saved else None


def not_a(wanted: str, path: Path) -> str | None:
    """Return why `path` is not of the wanted kind: "PATH: does not exist", or "PATH: is an export, ...".

    Return None if it is of the kind `wanted`, or of none.
    """
    if not path.exists():
        return f"{path}: does not exist"
    kind = kind_of(path)
    if kind is None or kind == wanted:
        return None
    reader = _READERS.get(path.suffix.lower(), "csv")
    return (
        f"{path}: is "
        + {
            "dataset": "a prepared dataset, which commands take as --data",
            "run": "a run folder, which `longplay evaluate`, `recommend` and `export` take",
            "export": f"an export, which longplay.load({str(path)!r}) opens in Python",
            "sweep": f"a sweep, which `longplay report` takes; its runs are in {path / 'runs'}",
            "file": f"a file; `longplay prepare {reader} {path} --out DIR` makes a dataset of it",
        }[kind]
    )
