"""What the tests of refused commands share."""

from collections.abc import Callable
from pathlib import Path

SIZE = ["--users", "60", "--items", "60", "--events", "900"]

Refuse = Callable[..., None]

HEAD = "user_id,item_id,timestamp\n"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every path under a folder with the content of each file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
